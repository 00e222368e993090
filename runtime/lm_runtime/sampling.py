"""Sampling: pure functions from logits and parameters to logits, and one draw.

The order and meaning are those of Hugging Face ``transformers``: the repetition penalty, then
temperature, top-k, top-p, min-p. A token that is ruled out has the logit minus infinity. Randomness
is a generator that is passed in. Knows nothing about models or text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
_FIRST_GUESS = 128


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when a text ends.

    Raises:
        ValueError: a value is out of its range; the message names it, the value and the bounds.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token (greedy)."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Keep tokens at least this probable relative to the most probable one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen before (Keskar et al. 2019)."""
    max_tokens: int = 200
    """The most tokens to generate."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    allow_unk: bool = False
    """Whether ``<unk>`` may be generated."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise ValueError(f"stop must be a sequence of strings, got the string {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))
        for name in ("top_k", "max_tokens"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        _within("temperature", self.temperature, 0, 1000)
        _within("top_k", self.top_k, 0, math.inf)
        _within("top_p", self.top_p, 0, 1, open_low=True)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _within("max_tokens", self.max_tokens, 0, math.inf)
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    # Written so that NaN is out of every range, and infinity too.
    if (low < value if open_low else low <= value) and value <= high and value != math.inf:
        return
    bound = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" * (high != math.inf))
    raise ValueError(f"{name} must be {bound}, got {value}")


def penalize_repetition(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Make the tokens ``seen`` less probable by the factor ``penalty`` (more probable below 1).

    Args:
        logits: ``(vocab,)``.
        seen: ids, each counted once however often it comes.
        penalty: positive logits are divided by it, negative ones multiplied.
    """
    ids = np.unique(np.fromiter(seen, dtype=np.int64))
    chosen = logits[ids]
    result = logits.copy()
    result[ids] = np.where(chosen > 0, chosen / np.float32(penalty), chosen * np.float32(penalty))
    return result


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Rule out all but the ``k`` largest logits ``(vocab,)``, and those equal to the k-th."""
    if k >= logits.size:
        return logits
    kth = np.partition(logits, -k)[-k]
    return np.where(logits < kth, np.float32(-np.inf), logits)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """Rule out all but the most probable tokens ``(vocab,)`` whose probabilities reach ``p`` together.

    The token that crosses ``p`` stays, so at least one does. Among equals those of smaller id stay.
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
    return np.where(keep, logits, np.float32(-np.inf))


def keep_min_p(logits: Logits, p: float) -> Logits:
    """Rule out tokens ``(vocab,)`` less probable than ``p`` times the most probable one."""
    return np.where(logits < logits.max() + np.float32(math.log(p)), np.float32(-np.inf), logits)


def choose(
    logits: Logits,
    params: SamplingParams,
    generator: np.random.Generator,
    *,
    seen: Collection[int] = (),
    banned: int | None = None,
) -> int:
    """Choose the next token.

    Args:
        logits: the model's ``(vocab,)``.
        params: how to choose.
        generator: what the one uniform number of a draw comes from; greedy takes none.
        seen: the ids of prompt and text so far, for the repetition penalty.
        banned: an id that is never chosen.
    """
    if banned is not None:
        logits = logits.copy()
        logits[banned] = -np.inf
    if params.repetition_penalty != 1 and seen:
        logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.temperature == 0:
        return int(logits.argmax())
    if params.temperature != 1:
        # From the maximum down, so that a very small temperature cannot overflow to infinity.
        logits = (logits - logits.max()) / np.float32(max(params.temperature, 1e-6))
    if params.top_k:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p < 1:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p:
        logits = keep_min_p(logits, params.min_p)
    return draw(logits, generator.random())


def draw(logits: Logits, uniform: float) -> int:
    """The token at ``uniform`` (from 0 to below 1) of the cumulative distribution of ``logits``."""
    possible = np.flatnonzero(logits > -np.inf)
    cumulative = np.cumsum(np.exp(logits[possible] - logits.max()), dtype=np.float64)
    return int(possible[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])
