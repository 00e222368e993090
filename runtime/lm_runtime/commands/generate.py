"""``lm-generate``: text from a bundle."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_runtime.commands import Command, imports, note, where_it_runs, which_graph
from lm_runtime.files import STANDARD_INPUT, read_text_file, require_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_runtime.generation.engine import Piece
    from lm_runtime.generation.session import Session
    from lm_runtime.models.protocol import BundleModel
    from lm_runtime.sampling.params import SamplingParams

_EXAMPLES = """
\b
Examples:
  lm-generate                                     the bundle in artifacts/bundle
  lm-generate my-bundle --prompt "Once upon" --temperature 0.8 --top-p 0.95
  lm-generate my-bundle --max-tokens 1000 --seed 1 > sample.txt
  lm-generate my-bundle --stop '\\n' --samples 5 --json
  lm-generate my-bundle --prompt "Once upon" --suggest 5
  lm-generate my-bundle --prompt "Once upon" --beams 4
  lm-generate my-bundle --regex '[A-Z][a-z]+ [A-Z][a-z]+'
  lm-generate my-bundle --prompt "Once upon" --save-state tale.npz
  lm-generate my-bundle --load-state tale.npz     the same text, bit for bit, from there on
  lm-generate my-bundle --input prompts.jsonl --output texts.jsonl
  echo "Once upon" | lm-generate my-bundle --prompt-file -
"""


@click.command(cls=Command, name="lm-generate", epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path), default=Path("artifacts/bundle"))
@click.option("--prompt", metavar="TEXT", help="Text to continue.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from a file, or - for standard input.")
@click.option("--max-tokens", type=int, help="Most tokens to generate.  [default: the bundle's]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the bundle's]")
@click.option(
    "--top-k", type=int, help="Keep the K most probable tokens, 0 for all.  [default: the bundle's]"
)
@click.option(
    "--top-p", type=float, help="Keep the tokens that reach probability P.  [default: the bundle's]"
)
@click.option("--min-p", type=float, help="Keep tokens at least P times as probable as the best.")
@click.option("--typical-p", type=float, help="Keep the most typical tokens that reach probability P.")
@click.option("--repetition-penalty", type=float, help="Above 1 discourages tokens that came before.")
@click.option("--frequency-penalty", type=float, help="Taken from a logit for every time its token came.")
@click.option("--presence-penalty", type=float, help="Taken from a logit if its token came.")
@click.option("--no-repeat-ngram-size", type=int, metavar="N", help="No N tokens come twice in a row.")
@click.option(
    "--logit-bias", multiple=True, metavar="TOKEN=B", help="Add B to a token's logit; -inf bans. Repeatable."
)
@click.option(
    "--ban",
    "banned",
    multiple=True,
    metavar="TEXT",
    help="Never generate this word or string, as the tokenizer spells it. Repeatable.",
)
@click.option(
    "--regex",
    metavar="PATTERN",
    help="The whole text matches this regular expression; behind a prompt, words begin with a space.",
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End before this text; \\n is a line break. Repeatable."
)
@click.option("--allow-unk", is_flag=True, default=None, help="Let <unk> be generated.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Makes a run repeatable.  [default: a new one each time; 0 with --input]",
)
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="How many texts.")
@click.option("--echo", is_flag=True, help="Print the prompt before its text.")
@click.option(
    "--logprobs",
    type=int,
    metavar="K",
    help="With --json: each token's log-probability, and of the K most probable.",
)
@click.option(
    "--suggest",
    type=click.IntRange(min=1),
    metavar="K",
    help="Print the K most probable next tokens instead.",
)
@click.option(
    "--beams", type=click.IntRange(min=1), metavar="K", help="Search the most probable line with K beams."
)
@click.option(
    "--input",
    "input_",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON Lines, each with "prompt" and perhaps parameters; - for standard input.',
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the texts of --input go; interrupted, the same command goes on.",
)
@click.option(
    "--save-state",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Save where the text ends, to go on from there.",
)
@click.option(
    "--load-state", type=click.Path(path_type=Path), metavar="FILE", help="Go on where a text was saved."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a text.")
@which_graph
@where_it_runs
@click.version_option(package_name="steplm")
def main(
    bundle: Path,
    prompt: str | None,
    prompt_file: str | None,
    seed: int | None,
    samples: int,
    echo: bool,
    suggest: int | None,
    beams: int | None,
    input_: Path | None,
    output: Path | None,
    save_state: Path | None,
    load_state: Path | None,
    as_json: bool,
    precision: Any,
    provider: Any,
    threads: int | None,
    **sampling: Any,
) -> None:
    """Generate text from BUNDLE, a folder that lm-export wrote.

    The text goes to standard output, notes to standard error. No torch is needed.
    """
    with imports():
        from lm_runtime.generation import generate as generation
        from lm_runtime.models.load import load

    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    states = save_state or load_state
    _check_together(
        prompt is not None and prompt_file is not None, "give --prompt or --prompt-file, not both"
    )
    _check_together(output and not input_, "--output takes the texts of --input; give both")
    _check_together(
        input_ and (states or suggest or beams or echo or prompt is not None or prompt_file),
        "--input brings its prompts and prints JSON; beside it only sampling options and --samples go",
    )
    _check_together(
        "logprobs" in given and not (as_json or input_), "--logprobs prints JSON; give --json too"
    )
    _check_together(
        states and (samples > 1 or as_json) and not suggest,
        "--save-state and --load-state go on with one text; leave out --samples and --json",
    )
    _check_together(
        states and "regex" in given, "--regex matches a whole text; leave out --save-state and --load-state"
    )
    _check_together(
        suggest and (set(given) - {"allow_unk"} or save_state or beams or samples > 1 or echo),
        "--suggest prints the model's own probabilities; beside it only a prompt, --load-state, --allow-unk "
        "and --json go",
    )
    _check_together(
        beams and (set(given) - {"max_tokens", "allow_unk"} or states),
        "--beams searches and does not sample; beside it only a prompt, --max-tokens, --samples, "
        "--allow-unk, --echo and --json go",
    )
    if prompt_file is not None:
        prompt = _read_prompt(prompt_file)
    for name in ("stop", "banned"):
        if name in given:
            given[name] = tuple(text.replace("\\n", "\n") for text in given[name])
            "".join(given[name]).encode()
    output = None if output == Path("-") else output  # standard output, as without it
    for place in filter(None, (save_state, output)):
        require_place(place)
    model = load(bundle, precision=precision, provider=provider, threads=threads)
    if "logit_bias" in given:
        given["logit_bias"] = _bias(model, given["logit_bias"])
    params = dataclasses.replace(model.defaults, **given)
    params.check_ids(model.config.vocab_size)
    prompt = prompt or ""
    if suggest:
        start = _session(model, load_state, prompt, seed)
        found = generation.suggest(model, start, suggest, allow_unk=params.allow_unk)
        _print_suggestions(found, as_json=as_json)
    elif beams:
        _print_hypotheses(model, prompt, params, beams, samples, echo=echo, as_json=as_json)
    elif input_:
        from lm_runtime.commands.requests import run_requests

        input_ = STANDARD_INPUT if str(input_) == "-" else input_
        run_requests(model, input_, output, params, seed=seed or 0, samples=samples)
    elif states:
        _go_on(model, prompt, params, seed, save_state, load_state, echo=echo)
    else:
        seed = secrets.randbelow(1 << 32) if seed is None else seed
        _sample(model, prompt, params, seed, samples, echo=echo, as_json=as_json)


def _check_together(wrong: object, why: str) -> None:
    if wrong:
        raise click.UsageError(why)


def _bias(model: BundleModel, given: tuple[str, ...]) -> dict[int, float]:
    """``TOKEN=B`` by ids."""
    bias = {}
    for text in given:
        token, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"logit_bias must be TOKEN=NUMBER, got {text!r}") from None
        try:
            bias[model.tokenizer.one_token(token)] = number
        except ValueError as error:
            raise ValueError(f"logit_bias {text!r}: {error}") from None
    return bias


def _sample(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    seed: int,
    samples: int,
    *,
    echo: bool,
    as_json: bool,
) -> None:
    from lm_runtime.commands.requests import completion_record
    from lm_runtime.generation.complete import Request, complete
    from lm_runtime.generation.generate import generate_samples
    from lm_runtime.generation.session import Session

    started = time.perf_counter()
    if samples == 1 and not as_json:
        session = Session.start(model, prompt)
        count, finish = _stream(generate_samples(model, session, params, seed=seed), prompt if echo else "")
        if finish == "stuck" or (params.regex is not None and finish == "length"):
            note(
                "the text was cut: "
                + ("nothing may follow" if finish == "stuck" else "it does not match yet")
            )
    else:
        count = 0
        before = _prompt_tokens(model, prompt) if echo and params.logprobs is not None else []
        requests = (Request(prompt, params, seed, index) for index in range(samples))
        for index, completion in enumerate(complete(model, requests)):
            count += len(completion.pieces)
            text = prompt * echo + completion.text
            if as_json:
                record = {"index": index, **completion_record(model, completion)}
                record |= {"text": text} | ({"prompt_logprobs": before} if before else {})
                _write(json.dumps(record, ensure_ascii=False) + "\n")
            else:
                _write(f"--- {index + 1} of {samples}\n{text}" + "\n" * (not text.endswith("\n")))
    note(_rate(count, time.perf_counter() - started) + f", seed {seed}")


def _go_on(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    seed: int | None,
    save_state: Path | None,
    load_state: Path | None,
    *,
    echo: bool,
) -> None:
    from lm_runtime.generation.generate import generate_batch

    started = time.perf_counter()
    session = _session(model, load_state, prompt, seed)
    pieces = generate_batch(model, [session], params)
    if save_state is None:  # nothing will follow what is held back
        pieces = (
            dataclasses.replace(piece, text=piece.text + session.last_words(piece.finish)) for piece in pieces
        )
    count, _ = _stream(pieces, prompt if echo else "")
    if save_state is not None:
        session.save(save_state, model)
    note(_rate(count, time.perf_counter() - started) + f", position {session.position:,}")


def _prompt_tokens(model: BundleModel, prompt: str) -> list[dict[str, Any]]:
    """The prompt's tokens and their log-probabilities."""
    import numpy as np

    from lm_runtime.commands.requests import token_record
    from lm_runtime.scoring.score import id_log_probabilities

    ids = np.array(model.tokenizer.encode(prompt), dtype=np.int64)
    return [
        token_record(model, int(token), float(value))
        for tokens, values in id_log_probabilities(model, [ids])
        for token, value in zip(tokens, values, strict=True)
    ]


def _print_hypotheses(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    beams: int,
    samples: int,
    *,
    echo: bool,
    as_json: bool,
) -> None:
    from lm_runtime.generation.beam import beam_search

    if samples > beams:
        raise ValueError(f"samples must be at most the {beams} beams, got {samples}")
    found = beam_search(model, prompt, beams=beams, max_tokens=params.max_tokens, allow_unk=params.allow_unk)
    for hypothesis in found[:samples]:
        text = prompt * echo + hypothesis.text
        if as_json:
            record = {
                "text": text,
                "tokens": len(hypothesis.tokens),
                "log_probability": hypothesis.log_probability,
                "score": hypothesis.score,
            }
            _write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            _write(text + "\n")


def _print_suggestions(suggestions: list[tuple[str, float]], *, as_json: bool) -> None:
    for text, probability in suggestions:
        if as_json:
            click.echo(json.dumps({"text": text, "probability": probability}, ensure_ascii=False))
        else:
            click.echo(f"{probability:.6f}\t{json.dumps(text, ensure_ascii=False)}")


def _rate(count: int, seconds: float) -> str:
    return f"{count} tokens in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} tokens/s)"


def _session(model: BundleModel, load_state: Path | None, prompt: str, seed: int | None) -> Session:
    """The session to go on with: a new one, or a saved one that reads the prompt and keeps its generator."""
    from lm_runtime.generation.session import Session

    if load_state is None:
        return Session.start(model, prompt, seed=secrets.randbelow(1 << 32) if seed is None else seed)
    session = Session.load(load_state, model)
    session.read(model, prompt)
    return session if seed is None else session.fork(seed=seed)


def _read_prompt(name: str) -> str:
    """The prompt in a file; the line break that ends its last line is not part of it."""
    path = STANDARD_INPUT if name == "-" else Path(name)
    return read_text_file(path).removesuffix("\n")


def _stream(pieces: Iterator[Piece], echoed: str) -> tuple[int, str | None]:
    """Write one text as it comes, what is echoed first; return the number of tokens and why it ended."""
    _write(echoed)
    count, text, finish = 0, echoed or "\n", None
    for piece in pieces:
        count += piece.token is not None
        finish = piece.finish
        if piece.text:
            text = piece.text
            _write(text)
    if not text.endswith("\n"):
        _write("\n")
    return count, finish


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
