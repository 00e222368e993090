"""The parts of a text to train, validate and test on, and how one file is divided into them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_runtime.files import UnusableFileError, open_regular
from lm_runtime.text_files import read_fragments
from lm_trainer.corpora.unwrapping import unwrap

_SHARE = 0.05
"""Of the text, for each of validation and test."""
_STRETCHES = 5
_SHORTEST_STRETCH = 1000
"""In bytes; a shorter text has fewer stretches."""
_SEED = 1
_SEARCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Split:
    """A text: a file, or stretches of one."""

    path: Path
    """The file."""
    parts: tuple[tuple[int, int | None], ...] = ((0, None),)
    """The stretches' first bytes, and the bytes after their last; None is the file's end."""
    unwrap: bool = False
    """Whether lines are joined to paragraphs."""

    def stretches(self) -> Iterator[Iterator[tuple[str, bool]]]:
        """The text of each stretch, as :func:`lm_runtime.text_files.read_fragments`."""
        texts = (read_fragments(self.path, start, end) for start, end in self.parts)
        return map(unwrap, texts) if self.unwrap else texts

    def fragments(self) -> Iterator[tuple[str, bool]]:
        """The text of all stretches."""
        return itertools.chain.from_iterable(self.stretches())

    @property
    def size(self) -> int:
        """In bytes."""
        whole = self.path.stat().st_size
        return sum((whole if end is None else end) - start for start, end in self.parts)


Splits = dict[str, Split]


def split_spread(path: Path) -> tuple[Splits, str]:
    """Take validation and test text in stretches that are spread over the file; the rest is for training.

    The end of a book may be its licence, and the end of a newspaper another year. In each fifth of the file
    one stretch of either text begins at a place that is drawn with a fixed seed, so that all runs on a file
    have the same. Of texts below 20 kB each has one stretch, by position; below 100 kB there are fewer than
    five.

    Returns:
        the splits, and how they were made, for the person at the terminal.

    Raises:
        UnusableFileError: it is empty, or has too few lines.
    """
    size = path.stat().st_size
    count = min(_STRETCHES, int(size * _SHARE / _SHORTEST_STRETCH))
    if count < 2:
        return split_by_position(path)
    draw = random.Random(_SEED)
    held: dict[str, list[tuple[int, int]]] = {"valid": [], "test": []}
    rest, at = [], 0
    for number in range(count):
        block, length = int(size * number / count), int(size * _SHARE / count)
        free = int(size / count) - 2 * length
        first, second = sorted((draw.random() * free, draw.random() * free))
        places = (block + int(first), block + int(second) + length)
        for name, place in zip(draw.sample(["valid", "test"], 2), places, strict=True):
            start = max(at, _line_after(path, place))
            end = _line_after(path, place + length)
            if start < end:
                rest.append((at, start))
                held[name].append((start, end))
                at = end
    rest.append((at, size))
    parts = {"train": [part for part in rest if part[0] < part[1]], **held}
    if not all(parts.values()):
        raise _too_few_lines(path)
    splits = {name: Split(path, tuple(own)) for name, own in parts.items()}
    places_told = "; ".join(f"{name} bytes {_in_words(own)}" for name, own in held.items())
    return splits, f"{path} split in stretches spread over it (seed {_SEED}): {places_told}; train the rest"


def split_by_position(path: Path) -> tuple[Splits, str]:
    """Take the last part as the test text, and the one before it as the validation text.

    Returns:
        as :func:`split_spread`.

    Raises:
        UnusableFileError: it is empty, or has too few lines.
    """
    size = path.stat().st_size
    if not size:
        raise UnusableFileError(path, "empty")
    valid = _line_after(path, int(size * (1 - 2 * _SHARE)))
    test = _line_after(path, max(int(size * (1 - _SHARE)), valid))
    if not 0 < valid < test < size:
        raise _too_few_lines(path)
    parts = {"train": (0, valid), "valid": (valid, test), "test": (test, size)}
    told = ", ".join(f"{name} bytes {_in_words([part])}" for name, part in parts.items())
    return {name: Split(path, (part,)) for name, part in parts.items()}, f"{path} split by position: {told}"


def _too_few_lines(path: Path) -> UnusableFileError:
    return UnusableFileError(
        path,
        "too few lines to split off a validation and a test text; give a folder with train.txt and valid.txt",
    )


def _in_words(parts: list[tuple[int, int]]) -> str:
    return ", ".join(f"{start:,} to {end:,}" for start, end in parts)


def _line_after(path: Path, position: int) -> int:
    """Where the first line at or after ``position`` begins; without lines the first word, else character."""
    before = min(position, _SEARCH_BYTES)
    with open_regular(path, "text file") as file:
        file.seek(position - before)
        earlier = file.read(before)
        block = file.read(_SEARCH_BYTES)
    for mark, skipped in ((b"\n", 1), (b" ", 0)):
        if (at := block.find(mark)) >= 0:
            return position + at + skipped
    if b"\n" in earlier or b" " in earlier:
        return position + len(block)
    begins = (at for at, byte in enumerate(block) if byte & 0xC0 != 0x80)  # a character of UTF-8
    return position + next(begins, len(block))
