"""The cache of what was read: for each of the last tokens, what the output layer read before it.

The neural cache (Grave et al. 2017); without that output the cache of counts (Kuhn and De Mori 1990). Knows
nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.softmax import log_normalizers

Array = NDArray[Any]
_LARGEST = 65504.0
"""Of float16."""


@dataclass
class Seen:
    """What a part of a text could look back at, place by place."""

    tokens: Array
    """The tokens of the cache and of the part, ``(places,)``, the oldest first."""
    weights: Array
    """How much each counts for each token of the part, ``(time, places)``; in each row they add up to 1."""
    first: Array
    """The oldest place that each token of the part sees, ``(time,)``."""
    end: Array
    """The place after the newest, ``(time,)``."""

    def of(self, time: int) -> slice:
        """The places that a token of the part sees."""
        return slice(self.first[time], self.end[time])

    def shares(self, targets: Array) -> Array:
        """The probability that the cache gives to each target, ``(time,)``; NaN where it is empty."""
        found = np.where(self.tokens == targets[:, None], self.weights, 0).sum(axis=1)
        return np.where(self.end > self.first, found, np.nan)


@dataclass
class Cache:
    """The cache of one sequence: rings of tokens and of keys, and what the next token's key is."""

    tokens: Array
    """Ids in a ring, ``(window,)``; -1 where there is none."""
    count: int
    """The tokens read."""
    keys: Array
    """float32 ``(window, width)``, each number one of float16's, so that saving changes none."""
    last: Array
    """float32 ``(width,)``, the same: the key of the next token."""

    @property
    def pairs(self) -> int:
        """How many tokens ever had a key: all but the first, before which nothing was read."""
        return max(0, self.count - 1)

    def push(self, token: int) -> int | None:
        """Let ``token`` follow what was read last; the slot that it takes."""
        slot = None
        if self.count:
            slot = self.pairs % self.tokens.size
            self.tokens[slot] = token
            self.keys[slot] = self.last
        self.count += 1
        return slot

    def extend(self, ids: Array, hidden: Array) -> None:
        """Read ``ids`` ``(time,)``; after each the output layer read ``hidden`` ``(time, width)``."""
        if not ids.size:
            return
        own = rounded(hidden)
        keys = np.concatenate([self.last[None], own[:-1]])
        first = 0 if self.count else 1  # nothing was read before the first token
        kept = slice(max(first, ids.size - self.tokens.size), None)
        slots = (self.pairs + np.arange(ids.size)[kept] - first) % self.tokens.size
        self.tokens[slots] = ids[kept]
        self.keys[slots] = keys[kept]
        self.last = own[-1].copy()
        self.count += ids.size

    def weights(self, hidden: Array, theta: float) -> Array:
        """How much each token of the ring counts where the output layer reads ``hidden`` ``(width,)``."""
        size = min(self.pairs, self.tokens.size)
        if not hidden.size:
            return np.full(size, 1 / max(1, size), dtype=np.float32)
        # Row by row, so that a sum does not depend on where in the ring it stands, as in a matrix product.
        return _softmax(np.einsum("nw,w->n", self.keys[:size], hidden) * np.float32(theta))

    def read(self, ids: Array, hidden: Array, theta: float) -> Seen:
        """As :meth:`extend`, with what each of ``ids`` could look back at once it was read."""
        window, before = self.tokens.size, min(self.pairs, self.tokens.size)
        order = (self.pairs - before + np.arange(before)) % window
        first = 0 if self.count else 1
        tokens = np.concatenate([self.tokens[order], ids[first:]])
        keys = np.concatenate(
            [self.keys[order], np.concatenate([self.last[None], rounded(hidden)[:-1]])[first:]]
        )
        end = before + 1 - first + np.arange(ids.size)
        start = np.maximum(0, end - window)
        self.extend(ids, hidden)
        places = np.arange(tokens.size)
        visible = (places >= start[:, None]) & (places < end[:, None])
        scores = (hidden @ keys.T) * np.float32(theta)  # (time, places)
        scores[~visible] = -np.inf
        return Seen(tokens, _softmax(scores), start, end)


def _softmax(scores: Array) -> Array:
    """Along the last axis, of which all may be ruled out, or none be there."""
    if not scores.shape[-1]:
        return scores
    highest = scores.max(axis=-1, keepdims=True)
    weights: Array = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    np.divide(weights, total, out=weights, where=total > 0)
    return weights


def rounded(hidden: Array) -> Array:
    """To the numbers that float16 has, within its range."""
    result: Array = np.clip(hidden, -_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)
    return result


def mix(logits: NDArray[np.float32], tokens: Array, weights: Array, share: float) -> None:
    """Give the tokens of a cache their share of the probability, in place.

    Args:
        logits: ``(vocab,)``; those of tokens that are not in the cache stay, and all are unnormalized.
        tokens: of the cache, ``(places,)``; one may be there several times.
        weights: of each place; they add up to 1.
        share: of the cache.
    """
    if not tokens.size:
        return
    normalizer = log_normalizers(logits[None])[0]
    found = np.bincount(tokens, weights, minlength=logits.size)[tokens]
    odds = share / (1 - share)
    logits[tokens] = np.log(np.exp(logits[tokens] - normalizer) + odds * found) + normalizer


def mixed(values: Array, shares: Array, weight: float) -> Array:
    """Log-probabilities of a model and shares of a cache, mixed; NaN of a share leaves the model's."""
    mixed = np.log((1 - weight) * np.exp(values.astype(np.float64)) + weight * shares)
    return np.where(np.isnan(shares), values, mixed).astype(np.float32)
