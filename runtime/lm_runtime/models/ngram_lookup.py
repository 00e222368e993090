"""The probabilities of a text's tokens by n-gram tables: all places of a part at once, order by order.

Each order is one look-up of all n-grams that end in the part, a bisection in which every n-gram takes its
steps together with all others: no row of the vocabulary, and no loop over tokens. Knows nothing about models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.models.ngram_tables import NgramTables

_PART = 1 << 14
"""The tokens of a part: what is computed of them fits a core's cache."""
_MISSING = -1

Numbers = NDArray[np.int64]
"""Of n-grams in the order of :class:`NgramTables`, one for each place; -1 where there is none."""


def log_probabilities(
    tables: NgramTables, ids: NDArray[Any], before: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """The natural-log probability of each token of a text.

    It is that of the longest n-gram that ends at the token, and the back-off weights of the contexts longer
    than that one's.

    Args:
        tables: the model.
        ids: the text ``(tokens,)``; it may be memory-mapped.
        before: the tokens before it, one or more; by default ``<eos>``, before which nothing matters.

    Returns:
        ``(tokens,)``.

    Raises:
        ValueError: an id is not in the vocabulary.
    """
    recent = np.array([tables.eos_id]) if before is None else before
    result = np.empty(ids.size, dtype=np.float32)
    for start in range(0, ids.size, _PART):
        recent = recent[-max(1, tables.order - 1) :]
        part = np.concatenate([recent, ids[start : start + _PART]]).astype(np.int64)
        if part.min() < 0 or part.max() >= tables.vocab_size:
            wrong = part[(part < 0) | (part >= tables.vocab_size)][0]
            raise ValueError(f"a token must be from 0 to {tables.vocab_size - 1}, got {wrong}")
        result[start : start + _PART] = _probabilities(tables, part)[recent.size - 1 :]
        recent = part
    return result


def _probabilities(tables: NgramTables, ids: Numbers) -> NDArray[np.float64]:
    ngrams = [ids]  # that end at each place, by length
    for level in range(tables.order - 1):
        longer = np.full(ids.size, _MISSING)
        longer[1:] = _extended(tables, level, ngrams[level][:-1], ids[1:])
        ngrams.append(longer)
    weight = np.zeros(ids.size - 1)
    result = np.empty(ids.size - 1)
    left = np.arange(ids.size - 1)  # the places whose n-gram has not been found yet
    for level in range(tables.order - 1, 0, -1):
        numbers = ngrams[level][1:][left]
        found = numbers != _MISSING
        places = left[found]
        result[places] = weight[places] + tables.log_probabilities[level][numbers[found]]
        left = left[~found]
        contexts = ngrams[level - 1][:-1][left]
        seen = contexts != _MISSING
        weight[left[seen]] += tables.backoffs[level - 1][contexts[seen]]
    result[left] = weight[left] + tables.log_probabilities[0][ids[1:][left]]
    return result


def _extended(tables: NgramTables, level: int, contexts: Numbers, words: Numbers) -> Numbers:
    """The n-grams that are a context of length ``level + 1`` and a word after it."""
    column, offsets = tables.words[level], tables.offsets[level]
    result = np.full(words.size, _MISSING)
    places = np.flatnonzero(contexts != _MISSING)
    low, high = offsets[contexts[places]].astype(np.int64), offsets[contexts[places] + 1].astype(np.int64)
    words = words[places].astype(column.dtype)
    places, words, low, high = _where(low < high, places, words, low, high)
    while places.size:
        middle = (low + high) >> 1
        seen = column[middle]
        found = seen == words
        result[places[found]] = middle[found]
        below = seen < words
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        places, words, low, high = _where((low < high) & ~found, places, words, low, high)
    return result


def _where(mask: NDArray[np.bool_], *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Each of ``arrays`` where ``mask`` holds."""
    return tuple(array[mask] for array in arrays)
