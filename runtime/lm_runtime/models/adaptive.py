"""A model that learns from what it reads: a cache of what followed, mixed with the model's own prediction.

The neural cache (Grave et al. 2017) keeps, for the last tokens, what the output layer read before each of them.
Where it reads something alike again, the token that followed then becomes more probable. Without that output it
is a cache of counts (Kuhn and De Mori 1990): every token of the window weighs the same.

The cache is a part of the state, so that a session is saved, forked and rewound with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import StateTensor
from lm_runtime.models.protocol import HiddenModel, State, StepModel, Stepper
from lm_runtime.models.state import READ_TOKENS, check_input
from lm_runtime.settings import check, setting
from lm_runtime.softmax import log_normalizers
from lm_runtime.tokenizer import Tokenizer

ADAPTATION = "Adaptation"
"""The heading of the options."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Adaptation:
    """How much a model follows what it has read."""

    weight: float = setting(
        0.1,
        help="The share of the cache in each probability.",
        option="adapt-weight",
        above=0,
        below=1,
        group=ADAPTATION,
    )
    """``lambda`` in Grave et al. 2017."""
    theta: float = setting(
        0.3,
        help="How much alike two places must be: 0 counts all places of the window alike.",
        option="adapt-theta",
        low=0,
        high=1000,
        group=ADAPTATION,
    )
    window: int = setting(
        500,
        help="The tokens that the cache holds.",
        option="adapt-window",
        low=1,
        high=1 << 16,
        group=ADAPTATION,
    )

    def __post_init__(self) -> None:
        check(self)


class AdaptiveModel:
    """``(1 - weight) * p(model) + weight * p(cache)``, a model like any other.

    The cache holds for each of the last ``window`` tokens that were read what the output layer read before it,
    in float16; its probability of a token is the sum over its places of ``softmax(theta * h . h_i)``. An empty
    cache changes nothing. The state is the model's, and these, of each sequence:

    - ``cache_tokens`` int64 ``(batch, window)``: each id plus 1, in a ring; 0 is none;
    - ``cache_read`` int64 ``(batch, 1)``: the number of tokens read;
    - ``cache_keys`` float16 ``(batch, window, width)`` and ``cache_last`` float16 ``(batch, width)``: what the
      output layer read before each token of the ring, and what it read last; not in a cache of counts.

    Args:
        model: from :func:`lm_runtime.load`.
        adaptation: the shares and sizes.
    """

    def __init__(self, model: StepModel, adaptation: Adaptation | None = None) -> None:
        self.adaptation = adaptation or Adaptation()
        self.tokenizer: Tokenizer = model.tokenizer
        self.restarts_at_eos = False
        window = self.adaptation.window
        width = hidden_width(model) or 0
        self.states = (
            *model.states,
            StateTensor("cache_tokens", "cache_tokens_out", "int64", (None, window)),
            StateTensor("cache_read", "cache_read_out", "int64", (None, 1)),
        )
        if width:
            self.states += (
                StateTensor("cache_keys", "cache_keys_out", "float16", (None, window, width)),
                StateTensor("cache_last", "cache_last_out", "float16", (None, width)),
            )
        self._model = model
        self._cut = len(model.states)
        self.width = width
        """Of what is kept of each place; 0 in a cache of counts."""

    @property
    def identity(self) -> str:
        """What tells the model and the cache's form from all others."""
        parts = [self._model.identity, f"cache of {self.adaptation.window} x {self.width}"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.StepModel.step`."""
        self._check(token, state)
        logits, hidden, after = self._read(token, state[: self._cut])
        caches = self._caches(state)
        for cache, rows, ids, keys in zip(caches, logits, token, hidden, strict=True):
            seen = cache.read(ids, keys, self.adaptation.theta)
            for place, row in enumerate(rows):
                part = seen.of(place)
                mix(row, seen.tokens[part], seen.weights[place, part], self.adaptation.weight)
        return logits, (*after, *self.tensors(caches))

    def score(self, ids: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.DirectModel.score`."""
        values = np.empty((ids.shape[0], ids.shape[1] - 1), dtype=np.float32)
        for start in range(0, values.shape[1], READ_TOKENS):
            part = ids[:, start : start + READ_TOKENS + 1]
            token, targets = np.ascontiguousarray(part[:, :-1]), part[:, 1:]
            self._check(token, state)
            logits, hidden, after = self._read(token, state[: self._cut])
            own = np.take_along_axis(logits, targets[..., None], axis=2)[..., 0] - log_normalizers(logits)
            caches = self._caches(state)
            for row, cache, read, keys, wanted in zip(own, caches, token, hidden, targets, strict=True):
                shares = cache.read(read, keys, self.adaptation.theta).shares(wanted)
                row[:] = _mixed(row, shares, self.adaptation.weight)
            values[:, start : start + own.shape[1]] = own
            state = (*after, *self.tensors(caches))
        return values, state

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`lm_runtime.models.protocol.StepModel.advance`."""
        self._check(token, state)
        hidden, after = self._advance(token, state[: self._cut])
        caches = self._caches(state)
        for cache, ids, keys in zip(caches, token, hidden, strict=True):
            cache.extend(ids, keys)
        return (*after, *self.tensors(caches))

    def stepper(self, state: State) -> Stepper:
        """As :meth:`lm_runtime.models.protocol.StepModel.stepper`."""
        batch = state[self._cut].shape[0] if len(state) > self._cut else 1
        self._check(np.zeros((batch, 0), dtype=np.int64), state)
        own = state[: self._cut]
        if isinstance(self._model, HiddenModel) and self.width:
            inner = self._model.hidden_stepper(own)
            return _AdaptiveStepper(inner, inner.hidden, self._caches(state), self)
        nothing = np.empty((batch, 0), dtype=np.float32)
        return _AdaptiveStepper(self._model.stepper(own), lambda: nothing, self._caches(state), self)

    def __reduce__(self) -> tuple[type[AdaptiveModel], tuple[StepModel, Adaptation]]:
        return AdaptiveModel, (self._model, self.adaptation)

    def __repr__(self) -> str:
        return f"AdaptiveModel({self._model}, {self.adaptation})"

    def _read(self, token: Array, state: State) -> tuple[NDArray[np.float32], Array, State]:
        if isinstance(self._model, HiddenModel) and self.width:
            return self._model.step_hidden(token, state)
        logits, after = self._model.step(token, state)
        return logits, np.empty((*token.shape, 0), dtype=np.float32), after

    def _advance(self, token: Array, state: State) -> tuple[Array, State]:
        if isinstance(self._model, HiddenModel) and self.width:
            return self._model.advance_hidden(token, state)
        return np.empty((*token.shape, 0), dtype=np.float32), self._model.advance(token, state)

    def _check(self, token: Array, state: State) -> None:
        check_input(self, token, state)
        tokens, read = state[self._cut : self._cut + 2]
        if tokens.view(np.uint64).max() > self.tokenizer.vocab_size:
            raise ValueError(f"a number of the cache is not from 0 to {self.tokenizer.vocab_size}")
        pairs = np.clip(read - 1, 0, self.adaptation.window)
        if (read < 0).any() or ((tokens > 0).sum(axis=1, keepdims=True) != pairs).any():
            raise ValueError("the cache does not hold the tokens that it says")

    def _caches(self, state: State) -> list[_Cache]:
        """Working copies of the caches of a state."""
        tokens, read, *keys = state[self._cut :]
        all_keys, last = keys or (np.empty((*tokens.shape, 0)), np.empty((len(tokens), 0)))
        return [
            _Cache(ids - 1, int(count[0]), own.astype(np.float32), newest.astype(np.float32))
            for ids, count, own, newest in zip(tokens, read, all_keys, last, strict=True)
        ]

    def tensors(self, caches: Sequence[_Cache]) -> State:
        """The part of the state that the caches are."""
        tokens = np.stack([cache.tokens + 1 for cache in caches])
        read = np.array([[cache.count] for cache in caches], dtype=np.int64)
        if not self.width:
            return tokens, read
        keys = np.stack([cache.keys.astype(np.float16) for cache in caches])
        return tokens, read, keys, np.stack([cache.last.astype(np.float16) for cache in caches])


def hidden_width(model: StepModel) -> int | None:
    """The width of what the model's output layer reads, where the model shows it."""
    return model.hidden_width if isinstance(model, HiddenModel) else None


@dataclass
class _Seen:
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
class _Cache:
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
        """Read ``ids`` ``(time,)``, after each of which the output layer read ``hidden`` ``(time, width)``."""
        if not ids.size:
            return
        rounded = _rounded(hidden)
        keys = np.concatenate([self.last[None], rounded[:-1]])
        first = 0 if self.count else 1  # nothing was read before the first token
        kept = slice(max(first, ids.size - self.tokens.size), None)
        slots = (self.pairs + np.arange(ids.size)[kept] - first) % self.tokens.size
        self.tokens[slots] = ids[kept]
        self.keys[slots] = keys[kept]
        self.last = rounded[-1].copy()
        self.count += ids.size

    def weights(self, hidden: Array, theta: float) -> Array:
        """How much each token of the ring counts where the output layer reads ``hidden`` ``(width,)``."""
        size = min(self.pairs, self.tokens.size)
        if not hidden.size:
            return np.full(size, 1 / max(1, size), dtype=np.float32)
        # Row by row, so that a sum does not depend on where in the ring it stands, as in a matrix product.
        return _softmax(np.einsum("nw,w->n", self.keys[:size], hidden) * np.float32(theta))

    def read(self, ids: Array, hidden: Array, theta: float) -> _Seen:
        """As :meth:`extend`, with what each of ``ids`` could look back at once it was read."""
        window, before = self.tokens.size, min(self.pairs, self.tokens.size)
        order = (self.pairs - before + np.arange(before)) % window
        first = 0 if self.count else 1
        tokens = np.concatenate([self.tokens[order], ids[first:]])
        keys = np.concatenate(
            [self.keys[order], np.concatenate([self.last[None], _rounded(hidden)[:-1]])[first:]]
        )
        end = before + 1 - first + np.arange(ids.size)
        start = np.maximum(0, end - window)
        self.extend(ids, hidden)
        places = np.arange(tokens.size)
        visible = (places >= start[:, None]) & (places < end[:, None])
        scores = (hidden @ keys.T) * np.float32(theta)  # (time, places)
        scores[~visible] = -np.inf
        return _Seen(tokens, _softmax(scores), start, end)


def _softmax(scores: Array) -> Array:
    """Along the last axis, of which all may be ruled out, or none be there."""
    if not scores.shape[-1]:
        return scores
    highest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(weights, total, out=weights, where=total > 0)


def _rounded(hidden: Array) -> Array:
    """To the numbers that float16 has, within its range."""
    return np.clip(hidden, -65504, 65504).astype(np.float16).astype(np.float32)


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


def _mixed(values: Array, shares: Array, weight: float) -> Array:
    """Log-probabilities of a model and shares of a cache, mixed; NaN of a share leaves the model's."""
    mixed = np.log((1 - weight) * np.exp(values.astype(np.float64)) + weight * shares)
    return np.where(np.isnan(shares), values, mixed).astype(np.float32)


class _AdaptiveStepper:
    """Steps one batch; each row has its own cache."""

    def __init__(
        self, inner: Stepper, hidden: Callable[[], Array], caches: list[_Cache], model: AdaptiveModel
    ) -> None:
        self._inner = inner
        self._hidden = hidden
        self._caches = caches
        self._model = model
        self._before: list[tuple[int | None, int, Array, Array]] = []

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As :meth:`lm_runtime.models.protocol.Stepper.step`."""
        logits, hidden = self._inner.step(tokens), self._hidden()
        adaptation = self._model.adaptation
        self._before = []
        for cache, token, row, own in zip(self._caches, tokens, logits, hidden, strict=True):
            slot = cache.pairs % cache.tokens.size
            self._before.append((int(cache.tokens[slot]), cache.count, cache.keys[slot].copy(), cache.last))
            cache.push(token)
            cache.last = _rounded(own)
            size = min(cache.pairs, cache.tokens.size)
            mix(row, cache.tokens[:size], cache.weights(own, adaptation.theta), adaptation.weight)
        return logits

    def state(self) -> State:
        """As :meth:`lm_runtime.models.protocol.Stepper.state`."""
        return (*self._inner.state(), *self._model.tensors(self._caches))

    def undo(self) -> None:
        """As :meth:`lm_runtime.models.protocol.Stepper.undo`."""
        self._inner.undo()
        for cache, (token, count, key, last) in zip(self._caches, self._before, strict=True):
            cache.count, cache.last = count, last
            slot = cache.pairs % cache.tokens.size
            cache.tokens[slot], cache.keys[slot] = token, key
