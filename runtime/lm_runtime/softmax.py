"""The softmax in logarithms: from logits to log-probabilities, for sampling, scoring and mixing alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CACHED_LOGITS = 1 << 17
"""How many logits are normalized at a time: with their exponentials, about what a core's cache holds."""


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The natural-log probability of every token, in float64: ``(..., vocab)`` -> ``(..., vocab)``."""
    result = logits.astype(np.float64)
    highest, sums = _log_sums(result)
    result -= highest
    result -= sums
    return result


def log_softmax_at(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
    """The log-probability of each target: logits ``(time, vocab)``, targets ``(time,)`` -> ``(time,)``."""
    result: NDArray[np.float32] = logits[np.arange(targets.size), targets] - log_normalizers(logits)
    return result


def log_normalizers(logits: NDArray[Any]) -> NDArray[Any]:
    """The logarithm of the sum of exponentials: ``(..., vocab)`` -> ``(...)``, in the logits' precision.

    Taken from the logits, it makes them log-probabilities.
    """
    table = logits.reshape(-1, logits.shape[-1])
    rows = max(1, _CACHED_LOGITS // table.shape[1])
    result = np.empty(len(table), dtype=logits.dtype)
    for start in range(0, len(table), rows):
        highest, sums = _log_sums(table[start : start + rows])
        result[start : start + rows] = (sums + highest)[:, 0]
    return result.reshape(logits.shape[:-1])


def _log_sums(logits: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The largest logit, and the logarithm of the sum of exponentials relative to it: ``(..., 1)`` each."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - highest
    np.exp(shifted, out=shifted)
    return highest, np.log(shifted.sum(axis=-1, keepdims=True))
