"""Fitting how much a model follows what it has read, on a text that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError
from lm_runtime.models.adaptation import Adaptation
from lm_runtime.models.adaptive import AdaptiveModel
from lm_runtime.models.interpolation import likeliest_weight
from lm_runtime.models.protocol import StepModel
from lm_runtime.models.state import initial_state
from lm_runtime.text_files import read_fragments

_THETAS = (0.1, 0.2, 0.4)
_MOST_ROUNDS = 8
_CLOSE = 1.5
"""The ratio of the values of theta on both sides of the best one at which the search ends."""

Tell = Callable[[str], None]


def fit_adaptation(
    model: StepModel, path: str | Path, *, window: int = 500, tell: Tell = lambda line: None
) -> Adaptation:
    """The share of the cache, and how much alike two places must be, at which a text is most probable.

    The share follows by expectation maximization; theta is searched, each value by a pass over the text.

    Args:
        model: from :func:`lm_runtime.load`.
        path: a held-out UTF-8 text.
        window: the tokens that the cache holds.
        tell: takes a line for each pass.

    Raises:
        UnusableFileError: the file cannot be used, or is empty.
    """
    tried: dict[float, tuple[float, float]] = {}  # mean log-probability and weight

    def attempt(theta: float) -> None:
        if theta not in tried:
            adaptive = AdaptiveModel(model, Adaptation(cache_theta=theta, cache_window=window))
            tried[theta] = _fitted(adaptive, Path(path))
            mean, weight = tried[theta]
            tell(f"theta {theta:g}: weight {weight:.3f}, perplexity {np.exp(-mean):.2f}")

    if not AdaptiveModel(model).width:
        attempt(0.0)
        return Adaptation(round(tried[0.0][1], 4), 0.0, window)
    for theta in _THETAS:
        attempt(theta)
    for _ in range(_MOST_ROUNDS):
        found = sorted(tried)
        best = found.index(max(tried, key=lambda theta: tried[theta][0]))
        if best in (0, len(found) - 1):  # it may be beyond
            attempt(found[best] * (2 if best else 0.5))
        elif found[best + 1] / found[best - 1] < _CLOSE:
            break
        else:
            for near in (best - 1, best + 1):
                attempt(round(float(np.sqrt(found[best] * found[near])), 4))
    theta = max(tried, key=lambda theta: tried[theta][0])
    return Adaptation(round(tried[theta][1], 4), theta, window)


def _fitted(model: AdaptiveModel, path: Path) -> tuple[float, float]:
    """The mean log-probability at the best weight of the cache, and that weight."""
    parts = list(_parts(model, path))
    if not parts:
        raise UnusableFileError(path, "empty: there is nothing to fit the cache on")
    own, shares = (np.concatenate(arrays).astype(np.float64) for arrays in zip(*parts, strict=True))
    empty = np.isnan(shares)
    seen = ~empty
    weight = likeliest_weight(shares[seen] / np.exp(own[seen])) if seen.any() else 0.0
    mixed = np.log((1 - weight) * np.exp(own[seen]) + weight * shares[seen])
    return float((mixed.sum() + own[empty].sum()) / own.size), weight


def _parts(model: AdaptiveModel, path: Path) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The log-probability by the model, and the probability by the cache, of each token of a text."""
    state = initial_state(model, 1)
    previous = model.tokenizer.eos_id
    for ids in model.tokenizer.encode_fragments(read_fragments(path)):
        read = np.append(previous, ids)
        previous = int(read[-1])
        for _, own, shares, after in model.parts(read[None], state):
            state = after
            yield own[0], shares[0]
