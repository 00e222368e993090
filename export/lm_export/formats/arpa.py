"""ARPA: an n-gram model as text, which KenLM, SRILM and others read.

Logarithms are to base 10. ``<eos>`` is called ``<s>`` where it begins an n-gram of two words or more or has a
back-off weight, ``</s>`` where it ends one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_export.arpa_reader import END, START, arpa_counts, arpa_entries
from lm_export.errors import ExportError
from lm_runtime.bundle import ARPA, TABLES, BundleConfig
from lm_runtime.files import UnusableFileError, write_whole
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.models.protocol import BundleModel

TOLERANCE = 1e-4
"""The largest difference allowed for a token's log-probability, to base 10. Seven decimals and float32 gave
1e-6; a wrong back-off weight gives differences of 0.01 and more."""

_PROVEN_TOKENS = 4096
_PART = 1 << 18
"""The n-grams written at a time."""
_LN_10 = math.log(10)
_RESERVED = (START, END, "<UNK>")


def refusal(config: BundleConfig) -> str:
    """As :meth:`lm_export.formats.registry.FormatWriter.refusal`."""
    return "" if config.order else "ARPA is a format of n-gram models, and this is a network"


def write(model: BundleModel) -> None:
    """As :meth:`lm_export.formats.registry.FormatWriter.write`."""
    write_arpa(NgramTables.read(model.folder / TABLES), model.tokenizer.tokens, model.folder / ARPA)


def prove(model: BundleModel, held_out: NDArray[np.int64]) -> str:
    """As :meth:`lm_export.formats.registry.FormatWriter.prove`."""
    tables = NgramTables.read(model.folder / TABLES)
    ids = held_out[:_PROVEN_TOKENS]
    difference = prove_arpa(model.folder / ARPA, tables, _names(tables, model.tokenizer.tokens), ids)
    return (
        f"{ids.size:,} held-out tokens: largest difference {difference:.1e} in a log-probability to base 10"
    )


def prove_arpa(path: Path, tables: NgramTables, names: Sequence[str], ids: NDArray[np.int64]) -> float:
    """The largest difference of a token's log-probability, to base 10, between an ARPA file and tables.

    Args:
        path: the file.
        tables: the model.
        names: the file's words in the order of their ids.
        ids: a text ``(tokens,)``.

    Raises:
        ExportError: it is above :data:`TOLERANCE`, or the file is damaged.
    """
    try:
        found = score_arpa(path, [names[token] for token in ids.tolist()])
    except UnusableFileError as error:
        raise ExportError(f"{error}; no bundle was written") from None
    expected = log_probabilities(tables, ids).astype(np.float64) / _LN_10
    difference = float(np.abs(expected - found).max())
    if not difference < TOLERANCE:
        raise ExportError(
            f"ARPA differs from the tables by {difference:.1e} in a log-probability to base 10; "
            "no bundle was written"
        )
    return difference


def write_arpa(tables: NgramTables, tokens: Sequence[str], path: Path) -> None:
    """Write ``tables`` to ``path``, atomically.

    White space within a token, and the ``<`` of a token ``<s>``, ``</s>`` or ``<UNK>``, is written like
    ``<0x20>``, its code in hexadecimal.

    Args:
        tables: the model.
        tokens: the tokens in the order of their ids.
        path: the file.

    Raises:
        ValueError: the tokens are not those of the model, or two would be spelled alike.
    """
    names = _names(tables, tokens)
    first = [*names]
    first[tables.eos_id] = START
    with write_whole(path) as file:
        sizes = [tables.counts[0] + 1, *tables.counts[1:]]
        counts = "".join(f"ngram {length}={size}\n" for length, size in enumerate(sizes, 1))
        file.write(f"\\data\\\n{counts}".encode())
        for length in range(1, tables.order + 1):
            file.write(f"\n\\{length}-grams:\n".encode())
            if length == 1:
                weight = tables.backoffs[0][tables.eos_id] / _LN_10 if tables.backoffs else 0
                file.write(f"-99\t{START}\t{weight:.7f}\n".encode())
            count = tables.counts[length - 1]
            for start in range(0, count, _PART):
                file.writelines(_lines(tables, length, start, min(start + _PART, count), names, first))
        file.write(b"\n\\end\\\n")


def _lines(
    tables: NgramTables, length: int, start: int, end: int, names: list[str], first: list[str]
) -> Iterator[bytes]:
    """The lines of the n-grams ``start`` to ``end`` of one length."""
    numbers = np.arange(start, end, dtype=np.uint32)
    columns = []
    for level in range(length - 2, -1, -1):
        columns.append([names[word] for word in tables.words[level][numbers].tolist()])
        numbers = (np.searchsorted(tables.offsets[level], numbers, side="right") - 1).astype(np.uint32)
    columns.append([(first if length > 1 else names)[word] for word in numbers.tolist()])
    values = (tables.log_probabilities[length - 1][start:end].astype(np.float64) / _LN_10).tolist()
    spelled = map(" ".join, zip(*reversed(columns), strict=True))
    if length == tables.order:
        yield from (f"{value:.7f}\t{words}\n".encode() for value, words in zip(values, spelled, strict=True))
        return
    weights = (tables.backoffs[length - 1][start:end].astype(np.float64) / _LN_10).tolist()
    for value, words, weight in zip(values, spelled, weights, strict=True):
        ends = words.endswith(END)
        yield (f"{value:.7f}\t{words}\n" if ends else f"{value:.7f}\t{words}\t{weight:.7f}\n").encode()


def _names(tables: NgramTables, tokens: Sequence[str]) -> list[str]:
    """As :func:`arpa_names`, checked."""
    if len(tokens) != tables.vocab_size:
        raise ValueError(f"the model has {tables.vocab_size} tokens, got {len(tokens)}")
    return arpa_names(tokens, tables.eos_id)


def arpa_names(tokens: Sequence[str], eos_id: int) -> list[str]:
    """The tokens as ARPA spells them; ``<eos>`` as it ends an n-gram.

    Raises:
        ValueError: two would be spelled alike.
    """
    names = [_spelled(token) for token in tokens]
    names[eos_id] = END
    if len(set(names)) < len(names) or "" in names:
        raise ValueError("two tokens would be spelled alike in ARPA, or one is empty")
    return names


def _spelled(token: str) -> str:
    if token in _RESERVED:
        return f"<0x3c>{token[1:]}"
    return "".join(f"<0x{ord(char):02x}>" if char.isspace() or char == "\0" else char for char in token)


def score_arpa(path: Path, words: Sequence[str]) -> NDArray[np.float64]:
    """The log-probability, to base 10, of each of ``words`` by the back-off rule: ``(words,)``.

    A line begins before the first word and after each ``</s>``. Only the text's own n-grams are kept in
    memory.

    Raises:
        UnusableFileError: the file is not laid out as its header says.
        ExportError: it lacks one of the words.
    """
    contexts = list(_contexts(words, len(arpa_counts(path))))
    wanted = {
        _key(ngram[start:])
        for context, word in zip(contexts, words, strict=True)
        for ngram in (context, (*context, word))
        for start in range(len(ngram))
    }
    ngrams = {
        key: (value, weight)
        for value, names, weight in arpa_entries(path)
        if (key := b" ".join(names)) in wanted
    }
    return np.array([_back_off(ngrams, *place) for place in zip(contexts, words, strict=True)])


Entries = dict[bytes, tuple[float, float]]
"""Log-probability and back-off weight of n-grams, each spelled as in the file."""


def _key(words: Sequence[str]) -> bytes:
    return " ".join(words).encode()


def _contexts(words: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    """The words of the line before each word, at most ``order - 1``."""
    line: tuple[str, ...] = (START,)
    for word in words:
        yield line[max(0, len(line) - order + 1) :]
        line = (START,) if word == END else (*line, word)[-order:]


def _back_off(ngrams: Entries, context: tuple[str, ...], word: str) -> float:
    weight = 0.0
    for start in range(len(context) + 1):
        if entry := ngrams.get(_key((*context[start:], word))):
            return weight + entry[0]
        weight += ngrams.get(_key(context[start:]), (0.0, 0.0))[1]
    raise ExportError(f"the ARPA file has no 1-gram {word}; no bundle was written")
