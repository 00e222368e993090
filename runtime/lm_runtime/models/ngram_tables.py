"""The n-gram tables: probabilities and back-off weights in one file.

An n-gram has a probability, and as a context a back-off weight (Katz 1987): the probability of a word is
that of the longest n-gram that was seen, times the weights of the longer contexts. No n-gram crosses a
line's end: ``<eos>`` ends one as the last word, or begins one as the line before. Knows nothing about
how the tables are estimated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import HIGHEST_ORDER
from lm_runtime.files import first_line, read_regular, reading, write_whole

LARGEST_VOCABULARY = 1 << 24
LARGEST_FILE = 1 << 37

_FORMAT = "steplm ngram"
_FORMAT_VERSION = 1
_ALIGNMENT = 64
_LONGEST_HEADER = 1 << 16
_ROUNDING = 1e-5
"""How far above 0 rounding may leave a log-probability, in nats."""
_LARGEST_WEIGHT = 1e4
"""Of back-off, in nats: far above what any model has."""


@dataclass(frozen=True, eq=False, repr=False)
class NgramTables:
    """A trie of n-grams: those of ``n`` words are numbered by the n-gram without its last word, then by it.

    Those of one word are numbered by their id, and all of them are there. The entries of each tuple are the
    levels of the trie, in the order of their lengths; logarithms are natural.
    """

    order: int
    """The length of the longest n-grams."""
    vocab_size: int
    """The number of tokens."""
    eos_id: int
    """The id of a line's end."""
    words: tuple[NDArray[Any], ...]
    """The last word of each n-gram, from length 2 on; uint16, or uint32 for more than 65,536 tokens."""
    log_probabilities: tuple[NDArray[np.float32], ...]
    """Of the last word of each n-gram after the others, from length 1 on."""
    backoffs: tuple[NDArray[np.float32], ...]
    """Added to the log-probability of a word that was not seen after the n-gram; up to length order - 1."""
    offsets: tuple[NDArray[np.uint32], ...]
    """Where the n-grams that extend each one are: offsets[i] to offsets[i + 1]; up to length order - 1."""

    @property
    def counts(self) -> list[int]:
        """How many n-grams there are of each length."""
        return [level.size for level in self.log_probabilities]

    @cached_property
    def sha256(self) -> str:
        """Of the file that :meth:`write` writes (hexadecimal)."""
        digest = hashlib.sha256()
        for part in self._file_parts():
            digest.update(part)
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the tables to ``path``, atomically: 8 to 14 bytes an n-gram, in the layout of FORMAT.md."""
        with write_whole(path) as file:
            for part in self._file_parts():
                file.write(part)

    def _file_parts(self) -> Iterator[bytes | memoryview]:
        facts = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "order": self.order,
            "vocab_size": self.vocab_size,
            "eos_id": self.eos_id,
            "counts": self.counts,
        }
        header = json.dumps(facts).encode()
        yield header + b" " * (-(len(header) + 1) % _ALIGNMENT) + b"\n"
        for name, level, dtype, _ in _layout(self.vocab_size, self.counts):
            data = np.ascontiguousarray(getattr(self, name)[level], dtype)
            yield data.data.cast("B") if data.size else b""
            yield b"\0" * (-data.nbytes % _ALIGNMENT)

    @classmethod
    def read(cls, path: Path) -> NgramTables:
        """Read a file that :meth:`write` wrote, and check everything that stepping relies on.

        Raises:
            UnusableFileError: the file is missing, damaged, or of another format.
        """
        return cls.from_file_content(path, read_regular(path, LARGEST_FILE))

    @classmethod
    def from_file_content(cls, path: Path, content: bytes) -> NgramTables:
        """The tables in the ``content`` of the file ``path``, of which they are views.

        Raises:
            UnusableFileError: it is damaged, or of another format.
        """
        with reading(path, "not a file of n-grams, or damaged"):
            return cls._read(content)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> NgramTables:
        """The tables in the content of a file; they are views of ``data``.

        Raises:
            ValueError: it is damaged, or of another format.
        """
        try:
            return cls._read(data)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"not a file of n-grams, or damaged ({first_line(error)})") from None

    @classmethod
    def _read(cls, data: bytes | memoryview) -> NgramTables:
        start = bytes(data[:_LONGEST_HEADER])
        tables = cls(**_read_arrays(start[: start.find(b"\n") + 1], data))
        _check(tables)
        return tables

    def __repr__(self) -> str:
        return f"NgramTables(order={self.order}, vocab_size={self.vocab_size}, counts={self.counts})"

    def to_bytes(self) -> bytes:
        """The content of the file that :meth:`write` writes."""
        return b"".join(self._file_parts())


def _layout(vocab_size: int, counts: Sequence[int]) -> Iterator[tuple[str, int, str, int]]:
    """The arrays of a file in their order: attribute, index, numpy's name of the type, elements."""
    word = "<u2" if vocab_size <= 1 << 16 else "<u4"
    for index, count in enumerate(counts):
        yield "log_probabilities", index, "<f4", count
        if index:
            yield "words", index - 1, word, count
        if index < len(counts) - 1:
            yield "backoffs", index, "<f4", count
            yield "offsets", index, "<u4", count + 1


def _read_arrays(header: bytes, data: bytes | memoryview) -> dict[str, Any]:
    """The attributes of the tables, by the sizes that the header says."""
    if not header.startswith(b"{") or not header.endswith(b"\n") or len(header) % _ALIGNMENT:
        raise ValueError("no header")
    facts = json.loads(header)
    if facts["format"] != _FORMAT or facts["format_version"] != _FORMAT_VERSION:
        raise ValueError(f"format {facts['format']} {facts['format_version']}")
    order, vocab_size, eos_id, counts = (facts[name] for name in ("order", "vocab_size", "eos_id", "counts"))
    if not all(type(number) is int for number in (order, vocab_size, eos_id, *counts)):
        raise ValueError("a size is no number")
    if not (1 <= order <= HIGHEST_ORDER and 0 <= eos_id < vocab_size <= LARGEST_VOCABULARY):
        raise ValueError(f"order {order}, {vocab_size} tokens, <eos> {eos_id}")
    if len(counts) != order or counts[0] != vocab_size or not all(0 <= count < 1 << 32 for count in counts):
        raise ValueError(f"n-grams {counts}")
    found: dict[str, list[Any]] = {"log_probabilities": [], "words": [], "backoffs": [], "offsets": []}
    layout = list(_layout(vocab_size, counts))
    sizes = [np.dtype(dtype).itemsize * count for _, _, dtype, count in layout]
    position = len(header)
    if (end := position + sum(size + -size % _ALIGNMENT for size in sizes)) != len(data):
        raise ValueError(f"{len(data)} bytes, not {end}")
    for (name, _, dtype, count), size in zip(layout, sizes, strict=True):
        found[name].append(np.frombuffer(data, dtype, count, position))
        position += size + -size % _ALIGNMENT
    arrays = {name: tuple(levels) for name, levels in found.items()}
    return {"order": order, "vocab_size": vocab_size, "eos_id": eos_id, **arrays}


def _check(tables: NgramTables) -> None:
    """Raise ValueError for numbers that no estimate gives."""
    # Weights of pruned models may be above 0. Of NaN, each comparison is false.
    for name, highest in (("log_probabilities", _ROUNDING), ("backoffs", _LARGEST_WEIGHT)):
        for level, values in enumerate(getattr(tables, name), 1):
            if values.size and not (-np.inf < values.min() and values.max() <= highest):
                raise ValueError(f"{name} of length {level} are not finite and at most {highest}")
    for level, (offsets, words) in enumerate(zip(tables.offsets, tables.words, strict=True), 1):
        if offsets[0] != 0 or offsets[-1] != words.size or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"offsets of length {level} do not rise from 0 to {words.size}")
        if words.size and words.max() >= tables.vocab_size:
            raise ValueError(f"a word of length {level + 1} is not in the vocabulary")
        rises = np.ones(words.size + 1, dtype=np.bool_)
        np.greater(words[1:], words[:-1], out=rises[1:-1])
        rises[offsets] = True
        if not rises.all():
            raise ValueError(f"words of length {level + 1} do not rise")
