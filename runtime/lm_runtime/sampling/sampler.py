"""The sampler: the next token of each row of a batch, drawn from the logits of a step.

Temperature and filters apply here; what looks back at the text comes before
(:mod:`lm_runtime.sampling.processors`). Randomness is a generator that is passed in. Knows nothing about
models or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_runtime.sampling.filters import Logits, filters_of
from lm_runtime.sampling.params import SamplingParams

_BLOCK = 128
_MOST_DRAWS = 16
_COLDEST = 1e-6  # below, the scale would overflow; the best token has all the weight long before
# Between these the sum of a row's exponentials keeps float32's precision without a shift by the maximum.
_SMALLEST_SUM, _LARGEST_SUM = 1e-10, 1e30
_LARGEST_EXPONENT = 80  # above, a sum is larger than that; it is below float32's largest


class NotFiniteError(ArithmeticError):
    """Logits are NaN or infinite: the model's weights are damaged, or its state has overflowed.

    Args:
        row: which row of the batch; from an engine, which text.
        message: what to say.
    """

    def __init__(self, row: int, message: str = "the model's logits are NaN or infinite") -> None:
        super().__init__(message)
        self.row = row


class Sampler:
    """Chooses the next token of each row of a batch, without sorting the vocabulary.

    Where every filter has a test of one token, a token is drawn from the whole distribution, and drawn again
    while a test fails. That gives the very distribution that the filters leave (rejection sampling), at a
    top-p of 0.95 after 1.05 draws on average. Where many draws would be needed, or a filter has no test, the
    filters themselves are applied.

    Between two steps the graph's weights have emptied the caches, so each operation costs several
    microseconds whatever it does: few operations matter more than small ones. Exponentials are taken without
    a shift by the maximum, and again with it where their sum is too large or too small; the cumulative sum
    goes over blocks first. Measured at vocabulary 10,000, top-p 0.95, between steps of the int8 graph: 40 us
    a token, where a shift, a filter and a sum of their own each took 85. For 64 rows a second thread made it
    slower (0.60 ms for 0.47), since it shares its core with onnxruntime's.

    A row's numbers and their order do not depend on the other rows, so neither do its tokens.

    Args:
        params: how to choose; temperature and filters are used here.
        vocab_size: the number of tokens.
        batch: the number of rows.
        banned: an id that is never chosen.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, batch: int, banned: int | None = None
    ) -> None:
        self._params = params
        self._vocab_size = vocab_size
        self._banned = banned
        self._filters = filters_of(params)
        self._tests = [
            (filter_.keeps, value)
            for place, (filter_, value) in enumerate(self._filters)
            if filter_.keeps and not (filter_.comes_first and place)
        ]
        self._filters_first = len(self._tests) < len(self._filters)
        if self._filters_first:
            self._tests.clear()
        self._block = _BLOCK if vocab_size > 2 * _BLOCK else vocab_size
        self._has_blocks = self._block < vocab_size
        self._scale = np.float32(1 / max(params.temperature, _COLDEST))
        padded = -(-vocab_size // self._block) * self._block
        self._padded = np.zeros((batch, padded), dtype=np.float32)
        self._weights = self._padded[:, :vocab_size]  # (batch, vocab)
        self._blocks = self._padded.reshape(batch, -1, self._block)
        self._rows = list(self._weights)  # each (vocab,)
        self._sums = np.empty((batch, 0), dtype=np.float32)  # (batch, blocks)
        # (batch, blocks), or (batch, vocab)
        self._cumulative: NDArray[np.floating] = np.empty((batch, vocab_size), dtype=np.float32)
        self._totals = [0.0] * batch
        self._best: list[int] = []

    def weigh(self, logits: Logits) -> None:
        """Take the logits of a step, ``(batch, vocab)``; they are not changed.

        Raises:
            NotFiniteError: those of a row are NaN or infinite.
        """
        if self._params.temperature == 0:
            self._best = self._greedy(logits)
        elif self._filters_first:
            for row, values in enumerate(logits):
                self._rows[row][:] = np.exp(self._filter(self._shifted(row, values)))
            self._sum()
        elif len(logits) == 1:
            self._weigh_one(logits[0])
        else:
            with np.errstate(over="ignore"):  # seen by the sum
                self._exponentiate(logits, self._weights)
            if self._banned is not None:
                self._weights[:, self._banned] = 0
            self._sum()
            self._weigh_again(logits)

    def choose(self, generators: Sequence[np.random.Generator]) -> list[int]:
        """The next token of each row, drawn from the row's generator; greedy takes nothing from it."""
        if self._params.temperature == 0:
            return self._best
        if len(generators) == 1:
            return [self._choose_one(generators[0])]
        tokens = self._draw_rows(np.array([generator.random() for generator in generators]))
        kept = self._surely_kept(tokens).tolist()
        return [
            token if sure or self._keeps(row, token) else self._draw_again(row, generator)
            for row, (generator, token, sure) in enumerate(
                zip(generators, tokens.tolist(), kept, strict=True)
            )
        ]

    def _weigh_one(self, logits: Logits) -> None:
        """:meth:`weigh` for a batch of one, with the same numbers in fewer operations.

        To look for an overflow first takes less time than to ignore one.
        """
        weights = self._rows[0]
        if logits.item(logits.argmax()) * self._scale > _LARGEST_EXPONENT:
            weights[:] = np.inf
        else:
            self._exponentiate(logits, weights)
        if self._banned is not None:
            weights[self._banned] = 0
        if self._has_blocks:
            self._sum()
        else:
            np.add.accumulate(weights, 0, None, self._cumulative[0])
            self._totals[0] = self._cumulative.item(-1)
        self._weigh_again(logits[None])

    def _choose_one(self, generator: np.random.Generator) -> int:
        """:meth:`choose` for a batch of one, with the same result in fewer operations."""
        if self._has_blocks:
            token = self._draw(0, generator.random())
        else:
            found = int(self._cumulative[0].searchsorted(generator.random() * self._totals[0], "right"))
            token = min(found, self._vocab_size - 1)
        return token if self._keeps(0, token) else self._draw_again(0, generator)

    def _weigh_again(self, logits: Logits) -> None:
        """Shift the rows whose sum is too large or too small."""
        for row, total in enumerate(self._totals):
            if not _SMALLEST_SUM < total < _LARGEST_SUM:
                self._rows[row][:] = np.exp(self._shifted(row, logits[row]))
                self._sum()

    def _exponentiate(self, logits: Logits, out: Logits) -> None:
        if self._scale != 1:
            np.multiply(logits, self._scale, out=out)
            logits = out
        np.exp(logits, out=out)

    def _greedy(self, logits: Logits) -> list[int]:
        best: list[int] = logits.argmax(axis=1).tolist()
        for row, token in enumerate(best):
            values = logits[row]
            if token == self._banned:
                values = values.copy()
                values[token] = -np.inf
                best[row] = token = int(values.argmax())
            if not math.isfinite(values.item(token)):
                raise NotFiniteError(row)
        return best

    def _sum(self) -> None:
        if self._has_blocks:
            # einsum adds the same numbers in the same order whatever the batch, at a third of sum's time.
            self._sums = np.einsum("rbi->rb", self._blocks)
            self._cumulative = self._sums.cumsum(axis=1, dtype=np.float64)
        else:
            self._cumulative = np.add.accumulate(self._weights, axis=1)
        self._totals = self._cumulative[:, -1].tolist()

    def _shifted(self, row: int, logits: Logits) -> Logits:
        """A row's logits by the temperature, the largest 0."""
        values = logits.copy()
        if self._banned is not None:
            values[self._banned] = -np.inf
        highest = values.max()
        if not math.isfinite(highest):
            raise NotFiniteError(row)
        values -= highest
        values *= self._scale
        return values

    def _filter(self, values: Logits) -> Logits:
        """A row's logits by the temperature, without what the filters rule out."""
        for filter_, parameter in self._filters:
            values = filter_.keep(values, parameter)
        return values

    def _draw_again(self, row: int, generator: np.random.Generator) -> int:
        """The first token that the filters keep of those drawn after one that they do not."""
        for _ in range(_MOST_DRAWS):
            token = self._draw(row, generator.random())
            if self._keeps(row, token):
                return token
        with np.errstate(divide="ignore"):
            logits = np.log(self._rows[row])
        return draw(logits if self._filters_first else self._filter(logits), generator.random())

    def _keeps(self, row: int, token: int) -> bool:
        """Whether the filters keep a token; those applied to the weights have done their work."""
        weights = self._rows[row]
        if weights.item(token) <= 0:
            return False
        for keeps, parameter in self._tests:  # noqa: SIM110 - all() takes half a microsecond more
            if not keeps(weights, self._totals[row], token, parameter):
                return False
        return True

    def _surely_kept(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For which rows the filters keep a token, as far as it is told for all rows at once."""
        if len(self._filters) == 1 and self._has_blocks and (test := self._filters[0][0].keeps_surely):
            weights = self._weights[np.arange(tokens.size), tokens]
            kept = test(weights, self._sums, self._cumulative[:, -1], self._filters[0][1])
            return kept & (weights > 0)
        return np.zeros(tokens.size, dtype=np.bool_)

    def _draw(self, row: int, uniform: float) -> int:
        """The token at ``uniform`` of the cumulative weights, found in the blocks, then within one."""
        cumulative = self._cumulative[row]
        target = uniform * self._totals[row]
        found = int(cumulative.searchsorted(target, "right"))
        if self._has_blocks:
            found = min(found, len(cumulative) - 1)
            if found:
                target -= cumulative.item(found - 1)
            within = self._blocks[row, found].cumsum(dtype=np.float64)
            found = found * self._block + int(within.searchsorted(target, "right"))
        return min(found, self._vocab_size - 1)

    def _draw_rows(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """:meth:`_draw` for every row at once, with the same results."""
        cumulative = self._cumulative
        targets = uniforms * cumulative[:, -1]
        found = _first_above(cumulative, targets)
        if self._has_blocks:
            rows = np.arange(len(uniforms))
            targets = np.where(found > 0, targets - cumulative[rows, found - 1], targets)
            within = self._blocks[rows, found].cumsum(axis=1, dtype=np.float64)  # (batch, block)
            found = found * self._block + _first_above(within, targets)
        tokens: NDArray[np.int64] = np.minimum(found, self._vocab_size - 1)
        return tokens


def _first_above(cumulative: NDArray[np.floating], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first place of each row ``(batch, sums)`` whose sum is above the row's target, or the last."""
    above = cumulative > targets[:, None]
    above[:, -1] = True
    result: NDArray[np.int64] = above.argmax(axis=1)
    return result


def draw(logits: Logits, uniform: float) -> int:
    """The token at ``uniform`` (from 0 to below 1) of the cumulative distribution of ``logits``."""
    possible = np.flatnonzero(logits > -np.inf)
    cumulative = np.cumsum(np.exp(logits[possible] - logits.max()), dtype=np.float64)
    return int(possible[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])
