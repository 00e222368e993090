"""Reading the ARPA files of other tools: KenLM's, SRILM's, or our own. Knows nothing about bundles.

Pruned models may lack what an n-gram is made of: the n-gram without its last word, or without its first. Each
is added with the probability that the back-off rule gives it, so that the tables say what the file says.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import HIGHEST_ORDER
from lm_runtime.files import UnusableFileError, open_regular
from lm_runtime.models.ngram_tables import LARGEST_VOCABULARY, NgramTables

START, END = "<s>", "</s>"
UNKNOWN = ("<unk>", "<UNK>")
_NEVER = -100.0
"""The probability, to base 10, of a word that has none; KenLM's of <unk>."""
_LN_10 = math.log(10)
_LONGEST_LINE = 1 << 20

Keys = NDArray[np.bytes_]
"""N-grams as bytes: four for each word, the highest first, so that they sort as lists of ids do."""


@dataclass
class _Level:
    """The n-grams of one length, sorted; logarithms to base 10."""

    keys: Keys
    log_probabilities: NDArray[np.float64]
    backoffs: NDArray[np.float64]


def read_arpa(path: Path, names: Sequence[str] | None = None) -> tuple[list[str], NgramTables]:
    """Read an ARPA file.

    Args:
        path: the file.
        names: its words in the order of the ids that they get, where those are given; ``</s>`` among them. By
            default ``</s>`` is 0, ``<unk>`` is 1, and the others follow in the file's order.

    Returns:
        the words in the order of their ids, and the tables.

    Raises:
        UnusableFileError: it is missing, damaged, or a word of it is not in ``names``; with the line.
    """
    with open_regular(path) as file:
        lines = _Lines(path, iter(lambda: file.readline(_LONGEST_LINE), b""))
        counts = _header(lines)
        words, unigrams = _unigrams(lines, counts[0], names)
        ids = {word.encode(): id_ for id_, word in enumerate(words)}
        levels = [
            unigrams,
            *(_ngrams(lines, length, counts[length - 1], ids) for length in range(2, len(counts) + 1)),
        ]
        lines.section("\\end\\")
    return words, _tables(levels, words.index(END))


def arpa_counts(path: Path) -> list[int]:
    """The number of n-grams of each length, by the file's header.

    Raises:
        UnusableFileError: it is missing or damaged.
    """
    with open_regular(path) as file:
        return _header(_Lines(path, iter(lambda: file.readline(_LONGEST_LINE), b"")))


def arpa_entries(path: Path) -> Iterator[tuple[float, list[bytes], float]]:
    """The log-probability to base 10, the words and the back-off weight of each n-gram of an ARPA file.

    Raises:
        UnusableFileError: it is missing or damaged; with the line.
    """
    with open_regular(path) as file:
        lines = _Lines(path, iter(lambda: file.readline(_LONGEST_LINE), b""))
        for length, count in enumerate(_header(lines), 1):
            yield from _entries(lines, length, count)
        lines.section("\\end\\")


class _Lines:
    """The lines of a file that are not empty, counted."""

    def __init__(self, path: Path, lines: Iterator[bytes]) -> None:
        self._path = path
        self._lines = lines
        self._number = 0
        self._next: bytes | None = None

    def take(self) -> bytes:
        """The next line without white space around it; empty at the file's end."""
        if self._next is not None:
            line, self._next = self._next, None
            return line
        for line in self._lines:
            self._number += 1
            if line := line.strip():
                return line
        return b""

    def peek(self) -> bytes:
        """The next line, which stays."""
        self._next = self.take()
        return self._next

    def section(self, name: str) -> None:
        """Take the line ``name``."""
        if (found := self.take()) != name.encode():
            raise self.wrong(
                f"{name} expected, {_shown(found)} found" if found else f"the file ends before {name}"
            )

    def wrong(self, problem: str) -> UnusableFileError:
        """An error at the line that was taken last."""
        return UnusableFileError(self._path, f"not an ARPA file, or damaged: line {self._number}: {problem}")


def _shown(line: bytes) -> str:
    return repr(line[:60].decode(errors="backslashreplace"))


def _header(lines: _Lines) -> list[int]:
    """The number of n-grams of each length. Anything may stand above ``\\data\\``."""
    while line := lines.take():
        if line == b"\\data\\":
            break
    else:
        raise lines.wrong("the file ends before \\data\\")
    counts: list[int] = []
    while lines.peek().startswith(b"ngram "):
        length, _, count = lines.take()[6:].partition(b"=")
        if length.strip() != str(len(counts) + 1).encode() or not count.strip().isdigit():
            raise lines.wrong(f"ngram {len(counts) + 1}=COUNT expected")
        counts.append(int(count))
    if not counts or max(counts) >= 1 << 32 or counts[0] > LARGEST_VOCABULARY or len(counts) > HIGHEST_ORDER:
        raise lines.wrong(
            f"n-grams {counts}, where there must be from 1 to {HIGHEST_ORDER} lengths, "
            f"and at most {LARGEST_VOCABULARY} words"
        )
    return counts


def _entries(lines: _Lines, length: int, count: int) -> Iterator[tuple[float, list[bytes], float]]:
    """The log-probability, the words and the back-off weight of each n-gram of a section."""
    lines.section(f"\\{length}-grams:")
    for _ in range(count):
        fields = lines.take().split()
        if not length < len(fields) <= length + 2:
            raise lines.wrong(f"a probability, {length} words and a weight expected")
        try:
            value, weight = float(fields[0]), float(fields[-1]) if len(fields) == length + 2 else 0.0
        except ValueError:
            raise lines.wrong("a probability or a weight is no number") from None
        if not (-math.inf < value <= 1e-5 and math.isfinite(weight)):  # of NaN it is false too
            raise lines.wrong(f"a probability of {value} and a weight of {weight}")
        yield value, fields[1 : length + 1], weight


def _unigrams(lines: _Lines, count: int, names: Sequence[str] | None) -> tuple[list[str], _Level]:
    found: dict[str, tuple[float, float]] = {}
    known = None if names is None else {START, *names}
    for value, (name,), weight in _entries(lines, 1, count):
        try:
            word = name.decode()
        except UnicodeDecodeError:
            raise lines.wrong("not UTF-8") from None
        word = UNKNOWN[0] if word in UNKNOWN and names is None else word
        if word in found:
            raise lines.wrong(f"{_shown(name)} comes twice")
        if known is not None and word not in known:
            raise lines.wrong(f"{_shown(name)} is no token of the vocabulary")
        found[word] = value, weight
    if END not in found:
        raise lines.wrong(f"there is no {END}, which ends a line")
    words = list(
        names or [END, UNKNOWN[0], *(word for word in found if word not in (START, END, UNKNOWN[0]))]
    )
    values = np.array([found.get(word, (_NEVER, 0.0)) for word in words])
    # An n-gram that begins with the end of the line before is called <s> there.
    values[words.index(END), 1] = found.get(START, (0.0, 0.0))[1]
    keys = _keys(np.arange(len(words))[:, None])
    return words, _Level(keys, values[:, 0], values[:, 1])


def _ngrams(lines: _Lines, length: int, count: int, ids: dict[bytes, int]) -> _Level:
    words, values, weights = array("I"), array("d"), array("d")
    end, start = ids[END.encode()], START.encode()
    for value, names, weight in _entries(lines, length, count):
        try:
            own = [ids[name] for name in names[1:]]
            first = end if names[0] == start else ids[names[0]]
        except KeyError as error:
            raise lines.wrong(f"{_shown(error.args[0])} is not among the words") from None
        if end in own[:-1] or (first == end and names[0] != start):
            raise lines.wrong(f"{END} stands before other words")
        words.append(first)
        words.extend(own)
        values.append(value)
        weights.append(weight)
    keys = _keys(np.frombuffer(words, dtype=np.uint32).reshape(-1, length))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if (twice := np.flatnonzero(keys[1:] == keys[:-1])).size:
        raise lines.wrong(f"{twice.size} {length}-grams come twice")
    return _Level(keys, np.frombuffer(values)[order], np.frombuffer(weights)[order])


def _tables(levels: list[_Level], eos_id: int) -> NgramTables:
    for shorter, level in zip(levels[-2:0:-1], levels[:1:-1], strict=True):
        _add_parts(shorter, level)
    for lower, level in itertools.pairwise(levels):
        _fill(lower, level)
    words, offsets = [], []
    vocab_size = levels[0].keys.size
    kind = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    for lower, level in itertools.pairwise(levels):
        words.append(_words(level.keys)[:, -1].astype(kind))
        starts = np.searchsorted(_without_last(level.keys), lower.keys)
        offsets.append(np.append(starts, level.keys.size).astype(np.uint32))
    return NgramTables(
        len(levels),
        vocab_size,
        eos_id,
        tuple(words),
        tuple(np.minimum(level.log_probabilities * _LN_10, 0).astype(np.float32) for level in levels),
        tuple((level.backoffs * _LN_10).astype(np.float32) for level in levels[:-1]),
        tuple(offsets),
    )


def _add_parts(shorter: _Level, level: _Level) -> None:
    """Add to ``shorter`` what the n-grams of ``level`` are made of and what is not there, without numbers."""
    needed = np.union1d(_without_last(level.keys), _without_first(level.keys))
    missing = needed[~np.isin(needed, shorter.keys)]
    if not missing.size:
        return
    keys = np.concatenate([shorter.keys, missing])
    order = np.argsort(keys, kind="stable")
    unknown, none = np.full(missing.size, np.nan), np.zeros(missing.size)
    shorter.keys = keys[order]
    shorter.log_probabilities = np.concatenate([shorter.log_probabilities, unknown])[order]
    shorter.backoffs = np.concatenate([shorter.backoffs, none])[order]


def _fill(lower: _Level, level: _Level) -> None:
    """Give the n-grams that were added to ``level`` the probability that the back-off rule gives them."""
    added = np.flatnonzero(np.isnan(level.log_probabilities))
    keys = level.keys[added]
    contexts = np.searchsorted(lower.keys, _without_last(keys))
    shorter = np.searchsorted(lower.keys, _without_first(keys))
    level.log_probabilities[added] = lower.backoffs[contexts] + lower.log_probabilities[shorter]


def _words(keys: Keys) -> NDArray[Any]:
    """The ids of n-grams, ``(n-grams, length)``."""
    return np.ascontiguousarray(keys).view(">u4").reshape(keys.size, keys.itemsize // 4)


def _without_last(keys: Keys) -> Keys:
    return _keys(_words(keys)[:, :-1])


def _without_first(keys: Keys) -> Keys:
    return _keys(_words(keys)[:, 1:])


def _keys(words: NDArray[Any]) -> Keys:
    """The n-grams of ids ``(n-grams, length)``."""
    return np.ascontiguousarray(words, dtype=">u4").view(f"S{4 * words.shape[1]}").ravel()
