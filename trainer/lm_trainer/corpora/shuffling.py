"""A training text in another order in each epoch: lines or documents, in bounded memory.

Units are dealt into piles at random, and each pile is shuffled by itself, which gives every order the same
probability (Rao 1961; Sanders 1998). Knows nothing about networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import write_whole
from lm_runtime.folders import temporary_folder
from lm_trainer.corpora.token_file import Ids

_PILE_TOKENS = 1 << 22
_MOST_PILES = 256
_BLOCK_TOKENS = 1 << 20

Ends = NDArray[np.int64]
"""The ends of some units, as numbers of tokens from the beginning, ``(units,)``."""


def line_ends(ids: Ids, eos_id: int) -> Iterator[Ends]:
    """The ends of the text's lines, a part of them at a time."""
    end = 0
    for start in range(0, ids.size, _BLOCK_TOKENS):
        found = start + 1 + np.flatnonzero(ids[start : start + _BLOCK_TOKENS] == eos_id)
        if found.size:
            end = int(found[-1])
            yield found
    if end < ids.size:
        yield np.array([ids.size])


def document_ends(path: Path) -> Iterator[Ends]:
    """The ends of documents from their file, a part of them at a time; those without a token are left out."""
    ends = np.memmap(path, dtype="<i8", mode="r")
    before = 0
    for start in range(0, ends.size, _BLOCK_TOKENS):
        found = np.unique(ends[start : start + _BLOCK_TOKENS].astype(np.int64))
        found = found[found > before]
        if found.size:
            before = int(found[-1])
            yield found


def write_shuffled(
    path: Path,
    ids: Ids,
    ends: Iterator[Ends],
    generator: np.random.Generator,
    pile_tokens: int = _PILE_TOKENS,
) -> None:
    """Write ``ids`` with its units in a random order, atomically.

    Args:
        path: the new file of ids, of the same type.
        ids: the text ``(tokens,)``.
        ends: where its units end, ascending; the last one is the text's end.
        generator: what the order follows from.
        pile_tokens: about the number of tokens held at a time; a longer unit is copied in parts.
    """
    piles = min(_MOST_PILES, math.ceil(ids.size / pile_tokens))
    with temporary_folder(".shuffle-", path.parent) as folder, write_whole(path) as out:
        names = [(folder / f"{pile}.ids", folder / f"{pile}.sizes") for pile in range(piles)]
        with ExitStack() as stack:
            files = [[stack.enter_context(name.open("wb")) for name in pair] for pair in names]
            for starts, sizes in _units(ends):
                pile = generator.integers(0, piles, sizes.size)
                for number in np.unique(pile):
                    own = pile == number
                    _copy(ids, starts[own], sizes[own], files[number][0])
                    files[number][1].write(sizes[own].tobytes())
        for ids_name, sizes_name in names:
            sizes = np.fromfile(sizes_name, dtype=np.int64)
            if sizes.size:
                order = generator.permutation(sizes.size)
                own_ids = np.memmap(ids_name, dtype=ids.dtype, mode="r")
                _copy(own_ids, (np.cumsum(sizes) - sizes)[order], sizes[order], out)
                del own_ids
            ids_name.unlink()


def _units(ends: Iterator[Ends]) -> Iterator[tuple[Ends, Ends]]:
    """The beginnings and the sizes of units."""
    before = 0
    for part in ends:
        starts = np.append(before, part[:-1])
        yield starts, part - starts
        before = int(part[-1])


def _copy(ids: Ids, starts: Ends, sizes: Ends, out: IO[bytes]) -> None:
    """Write units, about a million tokens at a time."""
    group = np.cumsum(sizes) // _BLOCK_TOKENS
    for part in np.split(np.arange(sizes.size), np.flatnonzero(np.diff(group)) + 1):
        if part.size == 1:
            first, last = int(starts[part[0]]), int(starts[part[0]] + sizes[part[0]])
            for start in range(first, last, _BLOCK_TOKENS):
                out.write(ids[start : min(start + _BLOCK_TOKENS, last)].tobytes())
        elif part.size:
            offsets = np.cumsum(sizes[part]) - sizes[part]
            at = np.repeat(starts[part] - offsets, sizes[part]) + np.arange(sizes[part].sum())
            out.write(ids[at].tobytes())
