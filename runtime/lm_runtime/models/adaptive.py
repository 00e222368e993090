"""A model that learns from what it reads: a cache of what followed, mixed with the model's own prediction.

Where the output layer reads what it read once before, the token that followed then becomes more probable. The
cache is a part of the state, so that a session is saved, forked and rewound with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import StateTensor
from lm_runtime.models.adaptation import Adaptation
from lm_runtime.models.cache import Array, Cache, mix, mixed, rounded
from lm_runtime.models.protocol import HiddenModel, State, StepModel, Stepper
from lm_runtime.models.state import READ_TOKENS, check_input
from lm_runtime.softmax import log_normalizers
from lm_runtime.tokenizer import Tokenizer


class AdaptiveModel:
    """``(1 - weight) * p(model) + weight * p(cache)``, a model like any other.

    The cache holds for each of the last ``window`` tokens what the output layer read before it, ``h_i`` in
    float16; its probability of a token is the sum over its places of ``softmax(theta * h . h_i)``. An empty
    cache changes nothing. Of a model that does not show what its output layer reads, all places weigh the
    same. The state is the model's, and of each sequence:

    - ``cache_tokens`` int64 ``(batch, window)``: each id plus 1, in a ring; 0 is none;
    - ``cache_read`` int64 ``(batch, 1)``: the number of tokens read;
    - ``cache_keys`` float16 ``(batch, window, width)`` and ``cache_last`` float16 ``(batch, width)``: what
      the output layer read before each token of the ring, and what it read last.

    Args:
        model: from :func:`lm_runtime.load`.
        adaptation: the shares and sizes.
    """

    def __init__(self, model: StepModel, adaptation: Adaptation | None = None) -> None:
        self.adaptation = adaptation or Adaptation()
        self.tokenizer: Tokenizer = model.tokenizer
        self.restarts_at_eos = False
        window = self.adaptation.cache_window
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
        parts = [self._model.identity, f"cache of {self.adaptation.cache_window} x {self.width}"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.StepModel.step`."""
        self._check(token, state)
        logits, hidden, after = self._read(token, state[: self._cut])
        caches = self._caches(state)
        for cache, rows, ids, keys in zip(caches, logits, token, hidden, strict=True):
            seen = cache.read(ids, keys, self.adaptation.cache_theta)
            for place, row in enumerate(rows):
                part = seen.of(place)
                mix(row, seen.tokens[part], seen.weights[place, part], self.adaptation.cache_weight)
        return logits, (*after, *self.tensors(caches))

    def score(self, ids: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.DirectModel.score`."""
        values = np.empty((ids.shape[0], ids.shape[1] - 1), dtype=np.float32)
        for start, own, shares, after in self.parts(ids, state):
            values[:, start : start + own.shape[1]] = mixed(own, shares, self.adaptation.cache_weight)
            state = after
        return values, state

    def parts(
        self, ids: NDArray[np.int64], state: State
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32], State]]:
        """What :meth:`score` mixes, a part of the text at a time.

        Yields:
            where the part begins, the log-probability that the model gives to each token and the probability
            that the cache gives, ``(batch, time)`` each, NaN of an empty cache; and the state after the part.
        """
        for start in range(0, ids.shape[1] - 1, READ_TOKENS):
            part = ids[:, start : start + READ_TOKENS + 1]
            token, targets = np.ascontiguousarray(part[:, :-1]), part[:, 1:]
            self._check(token, state)
            logits, hidden, after = self._read(token, state[: self._cut])
            own = np.take_along_axis(logits, targets[..., None], axis=2)[..., 0] - log_normalizers(logits)
            shares = np.empty_like(own)
            caches = self._caches(state)
            for row, cache, read, keys, wanted in zip(shares, caches, token, hidden, targets, strict=True):
                row[:] = cache.read(read, keys, self.adaptation.cache_theta).shares(wanted)
            state = (*after, *self.tensors(caches))
            yield start, own, shares, state

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
        pairs = np.clip(read - 1, 0, self.adaptation.cache_window)
        if (read < 0).any() or ((tokens > 0).sum(axis=1, keepdims=True) != pairs).any():
            raise ValueError("the cache does not hold the tokens that it says")

    def _caches(self, state: State) -> list[Cache]:
        """Working copies of the caches of a state."""
        tokens, read, *keys = state[self._cut :]
        all_keys, last = keys or (np.empty((*tokens.shape, 0)), np.empty((len(tokens), 0)))
        return [
            Cache(ids - 1, int(count[0]), own.astype(np.float32), newest.astype(np.float32))
            for ids, count, own, newest in zip(tokens, read, all_keys, last, strict=True)
        ]

    def tensors(self, caches: Sequence[Cache]) -> State:
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


class _AdaptiveStepper:
    """Steps one batch; each row has its own cache."""

    def __init__(
        self, inner: Stepper, hidden: Callable[[], Array], caches: list[Cache], model: AdaptiveModel
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
            cache.last = rounded(own)
            size = min(cache.pairs, cache.tokens.size)
            mix(row, cache.tokens[:size], cache.weights(own, adaptation.cache_theta), adaptation.cache_weight)
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
