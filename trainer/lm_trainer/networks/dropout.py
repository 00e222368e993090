"""Dropout (Srivastava et al. 2014) at each place where a network has it. Knows nothing about networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHANCES = 1 << 16
"""Probabilities are multiples of 1/65,536."""


@dataclass(frozen=True)
class Dropout:
    """What is dropped while a network trains, so that it does not overfit; nothing by default."""

    generator: torch.Generator | None = None
    """Draws the masks, on the model's device."""
    input: float = 0.0
    """Probability of dropping an activation that the first layer reads."""
    hidden: float = 0.0
    """The same between hidden layers."""
    output: float = 0.0
    """The same for what the output layer reads."""
    words: float = 0.0
    """Probability of dropping a word's embedding wherever it is read."""
    weights: float = 0.0
    """Probability of dropping a weight from a recurrent layer's state to itself."""
    locked: bool = False
    """Whether an activation's mask is the same at each step."""

    def on(self, x: Tensor, probability: float) -> Tensor:
        """Drop elements of ``x`` ``(time, ...)``, and scale the others so that the mean stays."""
        if probability == 0:
            return x
        keep, scale = self._mask([1, *x.shape[1:]] if self.locked else x.shape, probability, x)
        return x * keep * scale

    def on_words(self, x: Tensor, token: Tensor, vocab_size: int) -> Tensor:
        """Drop the embeddings ``x`` ``(..., embedding)`` of some of the words ``token`` ``(...)``."""
        if self.words == 0:
            return x
        keep, scale = self._mask([vocab_size], self.words, x)
        return x * keep[token][..., None] * scale

    def on_weights(self, weight: Tensor) -> Tensor:
        """Drop some of a recurrent layer's weights and scale the others; gradients reach the raw ones."""
        if self.weights == 0:
            return weight
        keep, scale = self._mask(weight.shape, self.weights, weight)
        return weight * keep.mul_(scale)

    def _mask(self, shape: Sequence[int], probability: float, like: Tensor) -> tuple[Tensor, float]:
        """A mask of zeros (with this probability) and ones, and the factor that keeps the mean.

        Each random number of 64 bits decides four elements: a layer has millions of weights, and a number for
        each would take a sixth of a step's time.
        """
        dropped = min(round(probability * _CHANCES), _CHANCES - 1)
        size = math.prod(shape)
        numbers = torch.empty(-(-size // 4), dtype=torch.int64, device=like.device)
        numbers.random_(-(1 << 63), None, generator=self.generator)
        keep = numbers.view(torch.int16)[:size] >= dropped - _CHANCES // 2
        return keep.to(like.dtype).view(*shape), _CHANCES / (_CHANCES - dropped)


NO_DROPOUT = Dropout()
"""For everything but training."""
