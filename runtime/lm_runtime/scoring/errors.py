"""Edit distances and error rates of texts against a reference. Knows nothing about scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["wer", "cer"]


def units_of(text: str, metric: Metric) -> Sequence[str]:
    """What is compared: words; or characters, a single space between words."""
    words = text.split()
    return words if metric == "wer" else " ".join(words)


def edit_distances(reference: Sequence[str], texts: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """The fewest substitutions, insertions and deletions between a reference and each text (Levenshtein).

    All texts are compared at once, a row of the table for each unit of the reference.

    Returns:
        ``(texts,)``.
    """
    number_of = {unit: number for number, unit in enumerate(dict.fromkeys(reference))}
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ids = np.full((lengths.size, lengths.max(initial=0)), -1)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = [number_of.get(unit, -1) for unit in text]
    column = np.arange(ids.shape[1] + 1)
    table = np.tile(column, (lengths.size, 1))  # (texts, longest + 1): distances of the beginnings
    for read, unit in enumerate(reference, start=1):
        changed = np.full_like(table, read)
        changed[:, 1:] = np.minimum(table[:, :-1] + (ids != number_of[unit]), table[:, 1:] + 1)
        # An insertion costs one more than the entry to the left.
        table = np.minimum.accumulate(changed - column, axis=1) + column
    result: NDArray[np.int64] = table[np.arange(lengths.size), lengths]
    return result
