"""What ``lm-generate`` prints: texts as they come, completions, hypotheses, suggestions.

Text goes to standard output in UTF-8, notes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lm_runtime.commands import note
from lm_runtime.generation.beam import beam_search
from lm_runtime.generation.complete import Request, complete
from lm_runtime.generation.generate import generate_batch, generate_samples, suggest
from lm_runtime.generation.rows import Piece
from lm_runtime.generation.session import Session
from lm_runtime.generation.words import complete_word, split_typed
from lm_runtime.models.protocol import BundleModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import id_log_probabilities
from lm_runtime.wire import Record, completion_record, hypothesis_record, to_line, token_record


def print_samples(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    seed: int,
    samples: int,
    *,
    echo: bool,
    as_json: bool,
) -> None:
    """Print texts of one prompt, a single one as it comes."""
    started = time.perf_counter()
    if samples == 1 and not as_json:
        session = Session.start(model, prompt)
        count, finish = _stream(generate_samples(model, session, params, seed=seed), prompt if echo else "")
        if finish == "stuck" or (params.regex is not None and finish == "length"):
            why = "nothing may follow" if finish == "stuck" else "it does not match yet"
            note(f"the text was cut: {why}")
    else:
        count = 0
        before = _prompt_tokens(model, prompt) if echo and params.logprobs is not None else []
        requests = (Request(prompt, params, seed, index) for index in range(samples))
        for index, completion in enumerate(complete(model, requests)):
            count += len(completion.pieces)
            text = prompt * echo + completion.text
            if as_json:
                record = {"index": index, **completion_record(model, completion), "text": text}
                write_record(record | ({"prompt_logprobs": before} if before else {}))
            else:
                write_text(f"--- {index + 1} of {samples}\n{text}" + "\n" * (not text.endswith("\n")))
    note(_rate(count, time.perf_counter() - started) + f", seed {seed}")


def go_on(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    seed: int | None,
    save_state: Path | None,
    load_state: Path | None,
    *,
    echo: bool,
) -> None:
    """Print the text that goes on from a saved one, and save where it ends."""
    started = time.perf_counter()
    session = session_of(model, load_state, prompt, seed)
    pieces = generate_batch(model, [session], params)
    if save_state is None:  # nothing will follow what is held back
        pieces = (
            dataclasses.replace(piece, text=piece.text + session.last_words(piece.finish)) for piece in pieces
        )
    count, _ = _stream(pieces, prompt if echo else "")
    if save_state is not None:
        session.save(save_state, model)
    note(_rate(count, time.perf_counter() - started) + f", position {session.position:,}")


def session_of(model: BundleModel, load_state: Path | None, prompt: str, seed: int | None) -> Session:
    """The session to go on with: a new one, or a saved one that reads the prompt and keeps its generator."""
    if load_state is None:
        return Session.start(model, prompt, seed=secrets.randbelow(1 << 32) if seed is None else seed)
    session = Session.load(load_state, model)
    session.read(model, prompt)
    return session if seed is None else session.fork(seed=seed)


def print_hypotheses(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    beams: int,
    samples: int,
    *,
    echo: bool,
    as_json: bool,
) -> None:
    """Print the best lines that a beam search finds.

    Raises:
        ValueError: more are wanted than it has beams.
    """
    if samples > beams:
        raise ValueError(f"samples must be at most the {beams} beams, got {samples}")
    found = beam_search(model, prompt, beams=beams, max_tokens=params.max_tokens, allow_unk=params.allow_unk)
    for hypothesis in found[:samples]:
        text = prompt * echo + hypothesis.text
        if as_json:
            write_record(hypothesis_record(hypothesis) | {"text": text})
        else:
            write_text(text + "\n")


def print_suggestions(
    model: BundleModel, start: Session, k: int, *, allow_unk: bool, line_breaks: bool, as_json: bool
) -> None:
    """Print the most probable next tokens."""
    found = suggest(model, start, k, allow_unk=allow_unk, line_breaks=line_breaks)
    _print_probabilities(found, as_json=as_json)


def print_words(
    model: BundleModel, load_state: Path | None, prompt: str, k: int, *, line_breaks: bool, as_json: bool
) -> None:
    """Print the most probable words that begin as the prompt's last one."""
    if load_state is None:
        found = complete_word(model, prompt, k=k, line_breaks=line_breaks)
    else:
        context, typed = split_typed(prompt)
        session = session_of(model, load_state, context, None)
        found = complete_word(model, session, typed, k, line_breaks=line_breaks)
    _print_probabilities(found, as_json=as_json)


def _print_probabilities(found: list[tuple[str, float]], *, as_json: bool) -> None:
    for text, probability in found:
        if as_json:
            write_record({"text": text, "probability": probability})
        else:
            write_text(f"{probability:.6f}\t{json.dumps(text, ensure_ascii=False)}\n")


def _prompt_tokens(model: BundleModel, prompt: str) -> list[Record]:
    """The prompt's tokens and their log-probabilities."""
    ids = np.array(model.tokenizer.encode(prompt), dtype=np.int64)
    return [
        token_record(model, int(token), float(value))
        for tokens, values in id_log_probabilities(model, [ids])
        for token, value in zip(tokens, values, strict=True)
    ]


def _stream(pieces: Iterator[Piece], echoed: str) -> tuple[int, str | None]:
    """Write one text as it comes, what is echoed first; return the number of tokens and why it ended."""
    write_text(echoed)
    count, text, finish = 0, echoed or "\n", None
    for piece in pieces:
        count += piece.token is not None
        finish = piece.finish
        if piece.text:
            text = piece.text
            write_text(text)
    if not text.endswith("\n"):
        write_text("\n")
    return count, finish


def _rate(count: int, seconds: float) -> str:
    return f"{count} tokens in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} tokens/s)"


def write_record(record: Record) -> None:
    """Write one JSON object and its line break to standard output."""
    sys.stdout.buffer.write(to_line(record))
    sys.stdout.buffer.flush()


def write_text(text: str) -> None:
    """Write text to standard output."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
