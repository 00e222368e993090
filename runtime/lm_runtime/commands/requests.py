"""``lm-generate --input``: many prompts in JSON Lines, their texts in JSON Lines, in order.

Interrupted, the same command goes on behind the last complete line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lm_runtime.commands import Progress, note
from lm_runtime.completion import Completion, Request, complete
from lm_runtime.files import UnusableFileError, read_pieces
from lm_runtime.model import OnnxModel
from lm_runtime.sampling import SamplingParams

_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)}
Record = dict[str, Any]
_OURS = {"text", "tokens", "finish", "logprobs", "sample"}


def run_requests(
    model: OnnxModel, source: Path, output: Path | None, params: SamplingParams, *, seed: int, samples: int
) -> None:
    """Complete every line of ``source``.

    Args:
        model: the model.
        source: a JSON object a line: ``prompt``, any field of :class:`SamplingParams`, ``seed``; what else
            there is, an id perhaps, comes back with the text.
        output: where the texts go; None is standard output.
        params: what a line does not say.
        seed: likewise; the generators are made from it and the number of the text.
        samples: how many texts a line.

    Raises:
        UnusableFileError: a file cannot be used; the message names the line.
    """
    if output is not None and output.exists():
        raise ValueError(f"{output} is there already; give --output another name")
    settings = [model.identity, dataclasses.asdict(params), seed, samples, str(source.resolve())]
    with _lines_to(output, hashlib.sha256(repr(settings).encode()).hexdigest()[:12]) as (file, done):
        records: list[Record] = []  # of the lines that are being completed
        total = sum(1 for _ in _read_lines(source)) * samples if source.is_file() else 0
        progress, written = Progress(total), 0

        def requests() -> Iterator[Request]:
            for place, (number, line) in enumerate(_read_lines(source)):
                record = _parse(source, number, line)
                for sample in range(place * samples, (place + 1) * samples):
                    if sample >= len(done):
                        records.append(record | ({"sample": sample % samples} if samples > 1 else {}))
                        yield _request(model, source, number, record, params, seed, sample)
                    else:
                        _check_done(output, done[sample], record)

        for completion in complete(model, requests()):
            record = records.pop(0) | completion_record(model, completion)
            file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            written += 1
            progress.show(len(done) + written, len(done))
    note(f"{len(done) + written} texts" + (f", {len(done)} of them from before" if done else ""))


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, whatever their length, with their numbers from 1."""
    line, number = "", 1
    for text, ends in read_pieces(path):
        line += text
        if ends:
            if line.strip():
                yield number, line
            line, number = "", number + 1


def _parse(path: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("prompt", ""), str):
        raise UnusableFileError(path, f'line {number} is not a JSON object with a text "prompt"')
    return record


def _request(
    model: OnnxModel, path: Path, number: int, record: Record, params: SamplingParams, seed: int, index: int
) -> Request:
    given = {name: value for name, value in record.items() if name in _FIELDS}
    try:
        if isinstance(bias := given.get("logit_bias"), dict):  # JSON's keys are texts
            given["logit_bias"] = {int(token): value for token, value in bias.items()}
        own = dataclasses.replace(params, **given) if given else params
        own.check_ids(model.config.vocab_size)
        chosen = record.get("seed", seed)
        if type(chosen) is not int or chosen < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {chosen!r}")
        prompt = record.get("prompt", "")
        prompt.encode()
    except UnicodeEncodeError:
        raise UnusableFileError(path, f"line {number}: the prompt is not valid text") from None
    except (TypeError, ValueError) as error:
        raise UnusableFileError(path, f"line {number}: {error}") from None
    return Request(prompt, own, chosen, index)


def _check_done(output: Path | None, done: Record, record: Record) -> None:
    if any(done.get(name) != value for name, value in record.items() if name not in _OURS):
        raise ValueError(
            f"{output} was begun with other prompts; give --output another name, or put the prompts back"
        )


@contextmanager
def _lines_to(output: Path | None, settings: str) -> Iterator[tuple[IO[bytes], list[Record]]]:
    """The file to write lines to, and what it holds already; it gets its name when it is complete.

    Until then its name tells the settings, so that only the same command goes on with it.
    """
    if output is None:
        yield sys.stdout.buffer, []
        return
    partial = output.with_name(f".{output.name}.{settings}.partial")
    with partial.open("a+b") as file:
        file.seek(0)
        done, whole = [], 0
        for line in file:
            try:
                done.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:  # cut off as it was written
                break
            whole += len(line)
        file.truncate(whole)
        if done:
            note(f"going on behind {len(done)} texts")
        yield file, done
    partial.replace(output)


def completion_record(model: OnnxModel, completion: Completion) -> dict[str, Any]:
    """A completion as JSON has it."""
    record: dict[str, Any] = {
        "text": completion.text,
        "tokens": len(completion.pieces),
        "finish": completion.finish,
    }
    if completion.pieces and completion.pieces[0].log_probability is not None:
        record["logprobs"] = [
            {
                **token_record(model, piece.token, piece.log_probability or 0.0),
                "top": [token_record(model, *pair) for pair in piece.alternatives],
            }
            for piece in completion.pieces
        ]
    return record


def token_record(model: OnnxModel, token: int, log_probability: float) -> dict[str, Any]:
    return {"token": model.tokenizer.tokens[token], "id": token, "logprob": log_probability}
