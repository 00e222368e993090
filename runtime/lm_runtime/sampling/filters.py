"""Filters: which tokens may be drawn, as pure functions of the logits of one step.

``keep_...`` takes logits ``(vocab,)`` and returns new ones, in which a token that is ruled out is minus
infinity. Where it can be told without that whether one drawn token stays, ``..._keeps`` tells it from the
weights of all, the exponentials of their logits. :data:`FILTERS` lists them in the order of Hugging Face
``transformers``. Knows nothing about models or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.sampling.params import SamplingParams

Logits = NDArray[np.float32]
Bools = NDArray[np.bool_]
_NEVER = np.float32(-np.inf)
_FIRST_GUESS = 128


@dataclass(frozen=True)
class Filter:
    """One filter; it applies where its parameter is not at the default."""

    parameter: str
    """The field of :class:`lm_runtime.sampling.params.SamplingParams` that it is called with."""
    keep: Callable[[Logits, Any], Logits]
    """From logits ``(vocab,)`` and the parameter to logits."""
    keeps: Callable[[Logits, float, int, Any], bool] | None = None
    """Whether a drawn token stays, from the weights ``(vocab,)``, their sum, its id and the parameter."""
    keeps_surely: Callable[[Logits, Logits, NDArray[np.floating[Any]], Any], Bools] | None = None
    """For which rows a drawn token stays for certain, from its weight ``(batch,)``, the weights of blocks of
    tokens ``(batch, blocks)``, the sum of all ``(batch,)`` and the parameter."""
    comes_first: bool = False
    """Whether ``keeps`` holds only where no filter comes before, because it looks at the sum."""


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Rule out all but the ``k`` largest logits ``(vocab,)``, and those equal to the k-th."""
    if k >= logits.size:
        return logits
    kth = np.partition(logits, -k)[-k]
    return np.where(logits < kth, _NEVER, logits)


def top_k_keeps(weights: Logits, total: float, token: int, k: int) -> bool:
    """Whether :func:`keep_top_k` keeps a token: fewer than ``k`` are more probable."""
    return int(np.count_nonzero(weights > weights[token])) < k


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


def top_p_keeps(weights: Logits, total: float, token: int, p: float) -> bool:
    """Whether :func:`keep_top_p` keeps a token: the more probable ones do not reach ``p`` together."""
    weight, most = weights.item(token), p * total
    if total - weight < most:  # even all the others together do not reach p
        return True
    before = float(weights.dot(weights > weight))
    if before < most:  # of equals, those of smaller id come first
        before += weight * np.count_nonzero(weights[:token] == weight)
    return before < most


def top_p_surely_keeps(weights: Logits, blocks: Logits, totals: NDArray[np.floating[Any]], p: float) -> Bools:
    """For which rows :func:`keep_top_p` keeps a token, as far as the sums of blocks tell it.

    Of the tokens that are not more probable than the drawn one, those of whole blocks are known that
    are together less probable.
    """
    others = np.where(blocks < weights[:, None], blocks, 0).sum(axis=1)
    result: Bools = totals - weights - others < p * totals
    return result


def keep_min_p(logits: Logits, p: float) -> Logits:
    """Rule out tokens ``(vocab,)`` less probable than ``p`` times the most probable (Nguyen et al. 2024)."""
    return np.where(logits < logits.max() + np.float32(math.log(p)), _NEVER, logits)


def min_p_keeps(weights: Logits, total: float, token: int, p: float) -> bool:
    """Whether :func:`keep_min_p` keeps a token."""
    return bool(weights.item(token) >= p * weights.max())


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


FILTERS = (
    Filter("top_k", keep_top_k, top_k_keeps),
    Filter("top_p", keep_top_p, top_p_keeps, top_p_surely_keeps, comes_first=True),
    Filter("min_p", keep_min_p, min_p_keeps),
    Filter("typical_p", keep_typical),
)
"""In the order in which they apply."""


def filters_of(params: SamplingParams) -> list[tuple[Filter, Any]]:
    """The filters that ``params`` ask for, each with its parameter's value."""
    values = [(filter_, getattr(params, filter_.parameter)) for filter_ in FILTERS]
    return [pair for pair in values if pair[1] != getattr(SamplingParams, pair[0].parameter)]
