"""``lm-generate --input``: many prompts in JSON Lines, their texts in JSON Lines, in order.

Every line is checked before the first text is generated. Interrupted, the same command goes on behind the
last complete line: until a file is complete its name has a hash of all that its texts depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lm_runtime.commands import Progress, note
from lm_runtime.files import UnusableFileError, is_read_once, lock, open_own, read_lines
from lm_runtime.generation.complete import Completion, Request, complete
from lm_runtime.generation.engine import compiled
from lm_runtime.models.protocol import BundleModel, StepModel
from lm_runtime.sampling.params import SamplingParams

_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)}
_OURS = {"text", "tokens", "finish", "sample"}
Record = dict[str, Any]


def run_requests(
    model: BundleModel, source: Path, output: Path | None, params: SamplingParams, *, seed: int, samples: int
) -> None:
    """Complete every line of ``source``.

    Args:
        model: the model.
        source: a JSON object a line: ``prompt``, any field of :class:`SamplingParams`, ``seed``; what else
            there is, an id perhaps, comes back with the text. A pipe is read to its end first.
        output: where the texts go; None is standard output.
        params: what a line does not say.
        seed: likewise. A text's generator is made from it and the number of the text, or, where the line has
            a seed of its own, from that and the number of the sample.
        samples: how many texts a line.

    Raises:
        UnusableFileError: a file cannot be used; the message names the line.
        ValueError: the output is there already, or another run writes it.
    """
    if output is not None and os.path.lexists(output):
        raise ValueError(f"{output} is there already; give --output another name")
    lines = _Lines(source)
    digest = hashlib.sha256(repr([model.identity, params, seed, samples]).encode())
    total = 0
    for number, line in lines:
        _request(model, source, number, _parse(source, number, line), params, seed, 0, 0)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        total += samples
    with _lines_to(output, digest.hexdigest()[:12]) as (file, done):
        waiting: deque[Record] = deque()  # what comes back with the texts that are being generated

        def requests() -> Iterator[Request]:
            for place, (number, line) in enumerate(lines):
                record = _parse(source, number, line)
                for sample in range(max(0, done - place * samples), samples):
                    waiting.append(record | ({"sample": sample} if samples > 1 else {}))
                    yield _request(
                        model, source, number, record, params, seed, place * samples + sample, sample
                    )

        progress, written = Progress(total), done
        for completion in complete(model, requests()):
            file.write(_to_line(waiting.popleft() | completion_record(model, completion)))
            file.flush()
            written += 1
            progress.show(written, done)
    note(f"{written} texts" + (f", {done} of them from before" if done else ""))


class _Lines:
    """The lines of a file that are not empty, with their numbers from 1, as often as they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = list(_read_lines(path)) if is_read_once(path) else None

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(_read_lines(self._path) if self._kept is None else self._kept)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())


def _parse(path: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("prompt", ""), str):
        raise UnusableFileError(path, f'line {number} is not a JSON object with a text "prompt"')
    if taken := sorted(_OURS & record.keys()):
        raise UnusableFileError(path, f'line {number} has "{taken[0]}", which the text needs; rename it')
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _request(
    model: BundleModel,
    path: Path,
    number: int,
    record: Record,
    params: SamplingParams,
    seed: int,
    index: int,
    sample: int,
) -> Request:
    given = {name: value for name, value in record.items() if name in _FIELDS}
    try:
        if isinstance(bias := given.get("logit_bias"), dict):
            # JSON's keys are texts, and it has no infinity.
            given["logit_bias"] = {
                int(token): float("-inf") if value is None else value for token, value in bias.items()
            }
        own = dataclasses.replace(params, **given) if given else params
        own.check_ids(model.config.vocab_size)
        prompt, own_seed = record.get("prompt", ""), record.get("seed", seed)
        if type(own_seed) is not int or own_seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {own_seed!r}")
        "".join((prompt, *own.banned, *own.stop, own.regex or "")).encode()
        if own.regex is not None:
            compiled(own.regex, model.tokenizer).matcher(not prompt or prompt.endswith("\n"))
    except UnicodeEncodeError:
        raise UnusableFileError(path, f"line {number}: not valid text") from None
    except (ValueError, OverflowError) as error:
        raise UnusableFileError(path, f"line {number}: {error}") from None
    return Request(prompt, own, own_seed, sample if "seed" in record else index)


@contextmanager
def _lines_to(output: Path | None, settings: str) -> Iterator[tuple[IO[bytes], int]]:
    """The file to write lines to, and how many it has already; it gets its name when it is complete."""
    if output is None:
        yield sys.stdout.buffer, 0
        return
    partial = output.with_name(f".{output.name}.{settings}.partial")
    with open_own(partial) as file:
        own = os.fstat(file.fileno())
        # A run that ended just now has renamed the file between the opening and the lock.
        if not (lock(file.fileno()) and partial.exists() and os.path.samestat(own, partial.lstat())):
            raise ValueError(f"{output} is being written by another run")
        file.seek(0)
        done, whole = 0, 0
        for line in file:
            if line.endswith(b"\n"):  # else it was cut off as it was written
                done, whole = done + 1, whole + len(line)
        file.truncate(whole)
        if done:
            note(f"going on behind {done} texts")
        yield file, done
        os.fsync(file.fileno())
        if os.path.lexists(output):
            raise ValueError(f"{output} has come in the meantime; the texts are in {partial}")
        partial.replace(output)


def _to_line(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate in what the line brought
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def completion_record(model: StepModel, completion: Completion) -> Record:
    """A completion as JSON has it."""
    record: Record = {
        "text": completion.text,
        "tokens": len(completion.pieces),
        "finish": completion.finish,
    }
    if completion.pieces and completion.pieces[0].log_probability is not None:
        record["logprobs"] = [
            {
                **token_record(model, piece.token or 0, piece.log_probability or 0.0),
                "top": [token_record(model, *pair) for pair in piece.alternatives],
            }
            for piece in completion.pieces
        ]
    return record


def token_record(model: StepModel, token: int, log_probability: float) -> Record:
    """A token and its log-probability as JSON has them."""
    return {"token": model.tokenizer.tokens[token], "id": token, "logprob": log_probability}
