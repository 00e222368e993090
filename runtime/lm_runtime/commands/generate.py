"""``lm-generate``: text from a bundle."""

from __future__ import annotations

import dataclasses
import itertools
import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_runtime.commands import Command, imports, note, where_it_runs, which_graph
from lm_runtime.files import read_text_file, require_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_runtime.engine import Piece
    from lm_runtime.model import OnnxModel
    from lm_runtime.session import Session

_BATCH = 32  # samples at a time; more would only take more memory
_EXAMPLES = """
\b
Examples:
  lm-generate                                     the bundle in artifacts/bundle
  lm-generate my-bundle --prompt "Once upon" --temperature 0.8 --top-p 0.95
  lm-generate my-bundle --max-tokens 1000 --seed 1 > sample.txt
  lm-generate my-bundle --stop '\\n' --samples 5 --json
  lm-generate my-bundle --prompt "Once upon" --suggest 5
  lm-generate my-bundle --prompt "Once upon" --save-state tale.npz
  lm-generate my-bundle --load-state tale.npz     the same text, bit for bit, from there on
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
@click.option("--repetition-penalty", type=float, help="Above 1 discourages tokens that came before.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End before this text; \\n is a line break. Repeatable."
)
@click.option("--allow-unk", is_flag=True, default=None, help="Let <unk> be generated.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Makes a run repeatable.  [default: a new one each time]"
)
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="How many texts.")
@click.option(
    "--suggest",
    type=click.IntRange(min=1),
    metavar="K",
    help="Print the K most probable next tokens instead.",
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
    suggest: int | None,
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
        from lm_runtime import generation
        from lm_runtime.model import OnnxModel
        from lm_runtime.session import Session

    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give --prompt or --prompt-file, not both")
    if prompt_file is not None:
        prompt = _read_prompt(prompt_file)
    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    if "stop" in given:
        given["stop"] = tuple(text.replace("\\n", "\n") for text in given["stop"])
        "".join(given["stop"]).encode()
    if save_state:
        require_place(save_state)
    model = OnnxModel(bundle, precision=precision, provider=provider, threads=threads)
    params = dataclasses.replace(model.defaults, **given)
    vocab_size = model.config.vocab_size
    if params.top_k > vocab_size:
        raise ValueError(f"top_k must be at least 0 and at most {vocab_size}, got {params.top_k}")
    if suggest:
        _print_suggestions(generation.suggest(model, prompt or "", suggest), as_json=as_json)
        return
    started = time.perf_counter()
    if save_state or load_state:
        if samples > 1 or as_json:
            raise click.UsageError(
                "--save-state and --load-state go on with one text; leave out --samples and --json"
            )
        session = _session(model, load_state, prompt or "", seed)
        count = _stream(generation.generate_batch(model, [session], params))
        if save_state:
            session.save(save_state, model)
        note(_rate(count, time.perf_counter() - started) + f", position {session.position:,}")
        return
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    groups = (range(first, min(first + _BATCH, samples)) for first in range(0, samples, _BATCH))
    session = Session.start(model, prompt or "")
    pieces = itertools.chain.from_iterable(
        generation.generate_samples(model, session, params, seed=seed, indices=group) for group in groups
    )
    streams = samples == 1 and not as_json
    count = _stream(pieces) if streams else _collect(pieces, samples, as_json=as_json)
    note(_rate(count, time.perf_counter() - started) + f", seed {seed}")


def _print_suggestions(suggestions: list[tuple[str, float]], *, as_json: bool) -> None:
    for text, probability in suggestions:
        if as_json:
            click.echo(json.dumps({"text": text, "probability": probability}, ensure_ascii=False))
        else:
            click.echo(f"{probability:.6f}\t{json.dumps(text, ensure_ascii=False)}")


def _rate(count: int, seconds: float) -> str:
    return f"{count} tokens in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} tokens/s)"


def _session(model: OnnxModel, load_state: Path | None, prompt: str, seed: int | None) -> Session:
    """The session to go on with: a new one, or a saved one that reads the prompt and keeps its generator."""
    from lm_runtime.session import Session

    if load_state is None:
        return Session.start(model, prompt, seed=secrets.randbelow(1 << 32) if seed is None else seed)
    session = Session.load(load_state, model)
    session.read(model, prompt)
    return session if seed is None else session.fork(seed=seed)


def _read_prompt(name: str) -> str:
    """The prompt in a file; the line break that ends its last line is not part of it."""
    path = Path("/dev/stdin" if name == "-" else name)
    return read_text_file(path).removesuffix("\n")


def _stream(pieces: Iterator[Piece]) -> int:
    """Write one text as it comes; return the number of tokens."""
    count, text = 0, "\n"
    for piece in pieces:
        count += 1
        if piece.text:
            text = piece.text
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))
            sys.stdout.buffer.flush()
    if not text.endswith("\n"):
        sys.stdout.buffer.write(b"\n")
    return count


def _collect(pieces: Iterator[Piece], samples: int, *, as_json: bool) -> int:
    """Write several texts, each when it and those before it are complete; return the number of tokens."""
    texts, tokens = [""] * samples, [0] * samples
    finish: list[str | None] = [None] * samples
    written = 0
    for piece in pieces:
        texts[piece.index] += piece.text
        tokens[piece.index] += 1
        finish[piece.index] = piece.finish
        while written < samples and finish[written]:
            _write_sample(written, samples, texts[written], tokens[written], finish[written], as_json)
            written += 1
    for index in range(written, samples):  # of no tokens at all
        _write_sample(index, samples, "", 0, "length", as_json)
    return sum(tokens)


def _write_sample(
    index: int, samples: int, text: str, tokens: int, finish: str | None, as_json: bool
) -> None:
    if as_json:
        record = {"index": index, "text": text, "tokens": tokens, "finish": finish}
        line = json.dumps(record, ensure_ascii=False) + "\n"
    else:
        line = f"--- {index + 1} of {samples}\n{text}" + "\n" * (not text.endswith("\n"))
    sys.stdout.buffer.write(line.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
