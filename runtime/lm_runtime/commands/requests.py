"""``lm-generate --input``: many prompts in JSON Lines, their texts in JSON Lines, in order.

Every line is checked before the first text is generated. Interrupted, the same command goes on after the
last complete line: until a file is complete, its name has a hash of all that its texts depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lm_runtime.commands import Progress, note
from lm_runtime.files import UnusableFileError, hidden_name, lock, open_own
from lm_runtime.generation.complete import Request, complete
from lm_runtime.models.protocol import BundleModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.settings import short
from lm_runtime.text_files import is_read_once, read_lines
from lm_runtime.wire import TAKEN, Record, completion_record, parse, request_of, to_line, unknown_keys


def run_requests(
    model: BundleModel,
    source: Path,
    output: Path | None,
    params: SamplingParams,
    *,
    seed: int,
    samples: int,
    strict: bool = False,
) -> None:
    """Complete every line of ``source``.

    Args:
        model: the model.
        source: a request a line, as :mod:`lm_runtime.wire` reads it; what else there is, an id perhaps, comes
            back with the text. A pipe is read to its end first.
        output: where the texts go; None is standard output.
        params: what a line does not say.
        seed: likewise. A text's generator is made from it and the number of the text, or, where the line has
            a seed of its own, from that and the number of the sample.
        samples: the number of texts for each line.
        strict: refuse a line with keys that mean nothing.

    Raises:
        UnusableFileError: a file cannot be used; the message names the line.
        ValueError: the output is there already, or another run writes it.
    """
    if output is not None and os.path.lexists(output):
        raise ValueError(f"{output} is there already; give --output another name")
    lines = _Lines(source)
    settings = [model.identity, dataclasses.astuple(params), seed, samples]
    digest = hashlib.sha256(repr(settings).encode())
    total = 0
    known = _Keys(source, strict)
    for number, line in lines:
        record = _parse(source, number, line)
        _requests(model, source, number, record, params, seed, 0, range(1))
        known.check(number, record)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        total += samples
    with _lines_to(output, digest.hexdigest()[:12]) as (file, done):
        waiting: deque[Record] = deque()  # what comes back with the texts that are being generated

        def requests() -> Iterator[Request]:
            for place, (number, line) in enumerate(lines):
                record = _parse(source, number, line)
                open_ = range(max(0, done - place * samples), samples)
                waiting.extend(record | ({"sample": sample} if samples > 1 else {}) for sample in open_)
                yield from _requests(model, source, number, record, params, seed, place * samples, open_)

        progress, written = Progress(total), done
        for completion in complete(model, requests()):
            file.write(to_line(waiting.popleft() | completion_record(model, completion)))
            file.flush()
            written += 1
            progress.show(written, done)
    note(f"{written} texts" + (f", {done} of them from before" if done else ""))


def _parse(source: Path, number: int, line: str) -> Record:
    try:
        record = parse(line)
        for key in TAKEN:
            if key in record:
                raise ValueError(f'"{key}" is a key of the completion; rename it')
    except ValueError as error:
        raise UnusableFileError(source, f"line {number}: {error}") from None
    return record


def _requests(
    model: BundleModel,
    source: Path,
    number: int,
    record: Record,
    params: SamplingParams,
    seed: int,
    index: int,
    samples: range,
) -> list[Request]:
    """The requests of a line; its first sample without a seed of its own has ``index``."""
    start = 0 if record.get("seed") is not None else index
    try:
        first = request_of(record, model.tokenizer, params, seed=seed)
    except ValueError as error:
        raise UnusableFileError(source, f"line {number}: {error}") from None
    return [dataclasses.replace(first, index=start + sample) for sample in samples]


class _Keys:
    """Tells of keys that mean nothing, of each once."""

    def __init__(self, source: Path, strict: bool) -> None:
        self._source = source
        self._strict = strict
        self._told: set[str] = set()

    def check(self, number: int, record: Record) -> None:
        """Note the keys that may be misspelt.

        Raises:
            UnusableFileError: no unknown key is allowed, and there is one.
        """
        for key, meant in unknown_keys(record).items():
            hint = f"; is {meant!r} meant?" if meant else ""
            if self._strict:
                raise UnusableFileError(self._source, f"line {number}: unknown key {short(key)}{hint}")
            if meant and key not in self._told:
                self._told.add(key)
                note(f"{self._source}: line {number}: {short(key)} means nothing{hint}")


class _Lines:
    """The lines of a file that are not empty, with their numbers from 1, as often as they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = list(_read_lines(path)) if is_read_once(path) else None

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(_read_lines(self._path) if self._kept is None else self._kept)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())


@contextmanager
def _lines_to(output: Path | None, settings: str) -> Iterator[tuple[IO[bytes], int]]:
    """The file to write lines to, and how many it has already; it gets its name when it is complete."""
    if output is None:
        yield sys.stdout.buffer, 0
        return
    partial = output.with_name(hidden_name(output.name, settings, "partial"))
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
            note(f"going on after {done} texts")
        yield file, done
        os.fsync(file.fileno())
        if os.path.lexists(output):
            raise ValueError(f"{output} has come in the meantime; the texts are in {partial}")
        partial.replace(output)
