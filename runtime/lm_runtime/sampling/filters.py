"""Filters: pure functions from the logits of one step to logits, as samplers are described by them.

All take logits ``(vocab,)`` and return new ones; a token that is ruled out has the logit minus infinity.
Order and meaning are those of Hugging Face ``transformers``, and of OpenAI's interface for the frequency and
presence penalties. Knows nothing about models or text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
_NEVER = np.float32(-np.inf)
_FIRST_GUESS = 128


def penalize_repetition(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Make the tokens ``seen`` less probable by the factor ``penalty`` (more probable below 1).

    Args:
        logits: ``(vocab,)``.
        seen: ids, each counted once however often it comes.
        penalty: positive logits are divided by it, negative ones multiplied (Keskar et al. 2019).
    """
    ids = np.unique(np.fromiter(seen, dtype=np.int64))
    chosen = logits[ids]
    result = logits.copy()
    result[ids] = np.where(chosen > 0, chosen / np.float32(penalty), chosen * np.float32(penalty))
    return result


def penalize_counts(logits: Logits, counts: Mapping[int, int], frequency: float, presence: float) -> Logits:
    """Lower each token that came before by ``presence``, and by ``frequency`` for every time it came."""
    result = logits.copy()
    if counts:
        ids = np.fromiter(counts.keys(), dtype=np.int64)
        times = np.fromiter(counts.values(), dtype=np.float32)
        result[ids] -= np.float32(frequency) * times + np.float32(presence)
    return result


def ban_repeated_ngrams(logits: Logits, tokens: Sequence[int], size: int) -> Logits:
    """Rule out every token that would complete an n-gram of ``size`` which is in ``tokens`` already."""
    history = np.array(tokens, dtype=np.int64)
    result = logits.copy()
    if history.size >= size:
        # Where the last size - 1 tokens have stood before, what followed them there is ruled out.
        windows = np.lib.stride_tricks.sliding_window_view(history, size)  # (places, size)
        same = (windows[:, :-1] == history[history.size - size + 1 :]).all(axis=1)
        result[windows[same, -1]] = _NEVER
    return result


def ban_sequences(logits: Logits, tokens: Sequence[int], sequences: Iterable[tuple[int, ...]]) -> Logits:
    """Rule out the last token of each of ``sequences`` where ``tokens`` end with all before it."""
    result = logits.copy()
    for *before, last in sequences:
        if not before or list(tokens[-len(before) :]) == before:
            result[last] = _NEVER
    return result


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Rule out all but the ``k`` largest logits ``(vocab,)``, and those equal to the k-th."""
    if k >= logits.size:
        return logits
    kth = np.partition(logits, -k)[-k]
    return np.where(logits < kth, _NEVER, logits)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """Rule out all but the most probable tokens ``(vocab,)`` whose probabilities reach ``p`` together.

    The token that crosses ``p`` stays, so at least one does (Holtzman et al. 2020). Among equals those of
    smaller id stay.
    """
    weights = np.exp(logits - logits.max())
    needed = p * float(weights.sum(dtype=np.float64))
    count = min(_FIRST_GUESS, logits.size)
    while True:
        # Few tokens reach p as a rule: sort those alone, and more only if they do not.
        largest = np.argpartition(-logits, count - 1)[:count] if count < logits.size else np.arange(count)
        reached = np.cumsum(np.sort(weights[largest])[::-1], dtype=np.float64)
        if count == logits.size or reached[-1] >= needed:
            break
        count = min(8 * count, logits.size)
    kept = min(int(np.searchsorted(reached, needed)) + 1, count)
    smallest = np.sort(logits[largest])[::-1][kept - 1]
    keep = logits > smallest
    ties = np.flatnonzero(logits == smallest)
    keep[ties[: kept - int(keep.sum())]] = True
    return np.where(keep, logits, _NEVER)


def keep_min_p(logits: Logits, p: float) -> Logits:
    """Rule out tokens ``(vocab,)`` less probable than ``p`` times the most probable (Nguyen et al. 2024)."""
    return np.where(logits < logits.max() + np.float32(math.log(p)), _NEVER, logits)


def keep_typical(logits: Logits, p: float) -> Logits:
    """Rule out all but the most typical tokens ``(vocab,)`` whose probabilities reach ``p`` together.

    Typical are those whose surprise is near its expectation, the entropy (Meister et al. 2022). The token
    that crosses ``p`` stays, so at least one does. Among equals those of smaller id stay.
    """
    possible = np.flatnonzero(logits > _NEVER)
    shifted = logits[possible].astype(np.float64) - float(logits.max())
    weights = np.exp(shifted)
    probabilities = weights / weights.sum()
    surprise = math.log(weights.sum()) - shifted
    distance = np.abs(surprise - float(probabilities @ surprise))
    order = np.argsort(distance, kind="stable")
    kept = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    result = np.full_like(logits, _NEVER)
    chosen = possible[order[:kept]]
    result[chosen] = logits[chosen]
    return result
