"""What the networks of all families share. Knows nothing about corpora, optimizers or files."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lm_runtime.bundle import StateTensor
from lm_runtime.models.protocol import PlainStepper, State, Stepper
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig

TorchState = tuple[Tensor, ...]
"""One tensor for each of the model's :attr:`LanguageModel.states`."""


@dataclass(frozen=True)
class Noise:
    """What training does to a network so that it does not learn its text by heart; nothing by default."""

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
        """0 with this probability, in steps of 1/65,536, else 1; and by what the mean stays what it was.

        Four elements are decided by one random number of 64 bits: of a layer's weights there are millions,
        and a number for each of them would take a sixth of a step's time.
        """
        dropped = min(round(probability * _CHANCES), _CHANCES - 1)
        size = math.prod(shape)
        numbers = torch.empty(-(-size // 4), dtype=torch.int64, device=like.device)
        numbers.random_(-(1 << 63), None, generator=self.generator)
        keep = numbers.view(torch.int16)[:size] >= dropped - _CHANCES // 2
        return keep.to(like.dtype).view(*shape), _CHANCES / (_CHANCES - dropped)


_CHANCES = 1 << 16

QUIET = Noise()


class LanguageModel(nn.Module, ABC):
    """What every network is: ``logits, state = model(token, state)``.

    Args:
        config: the network's measures.
        states: its state's tensors.
    """

    head: nn.Linear
    """The output layer."""

    def __init__(self, config: ModelConfig, states: tuple[StateTensor, ...]) -> None:
        super().__init__()
        self.config = config
        self.states = states

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def zero_state(self, batch: int) -> TorchState:
        """The state of sequences that have read nothing yet."""
        return tuple(
            torch.zeros(
                [batch if size is None else size for size in tensor.shape],
                dtype={"float32": torch.float32, "int64": torch.int64}[tensor.dtype],
                device=self.device,
            )
            for tensor in self.states
        )

    @torch.no_grad()
    def scale_weights(self, log_frequencies: Tensor, generator: torch.Generator) -> None:
        """Give a new network other weights than torch's own, from which it learns sooner.

        Args:
            log_frequencies: of the tokens, natural logarithms, ``(vocab,)``, which it begins to predict.
            generator: draws weights (on the CPU).
        """
        self.head.bias.copy_(log_frequencies)

    @abstractmethod
    def read(self, token: Tensor, state: TorchState, noise: Noise = QUIET) -> tuple[Tensor, TorchState]:
        """Read ``token``.

        Args:
            token: ids, int64, ``(batch, time)``.
            state: the state behind what was read before.
            noise: what is dropped, for training.

        Returns:
            what the output layer reads, ``(batch, time, hidden)``, and the state behind the last token.
        """

    def forward(self, token: Tensor, state: TorchState) -> tuple[Tensor, TorchState]:
        """As :meth:`read`, with the logits ``(batch, time, vocab)``."""
        x, after = self.read(token, state)
        return self.head(x), after


class TorchStepModel:
    """The torch model in the form that :mod:`lm_runtime` generates and scores with."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.states = model.states
        self._model = model

    @torch.no_grad()
    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.onnx.StepModel.step`."""
        logits, after = self._model(*self._on_device(token, state))
        return logits.cpu().numpy(), tuple(tensor.cpu().numpy() for tensor in after)

    @torch.no_grad()
    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`lm_runtime.models.onnx.StepModel.advance`."""
        _, after = self._model.read(*self._on_device(token, state))
        return tuple(tensor.cpu().numpy() for tensor in after)

    def _on_device(self, token: NDArray[np.int64], state: State) -> tuple[Tensor, TorchState]:
        device = self._model.device
        return torch.from_numpy(token).to(device), tuple(
            torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in state
        )

    def stepper(self, state: State) -> Stepper:
        """As :meth:`lm_runtime.models.onnx.StepModel.stepper`."""
        return PlainStepper(self.step, state)

    @property
    def identity(self) -> str:
        """The sha256 of the weights."""
        digest = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


@torch.no_grad()
def negative_log_likelihood(
    model: LanguageModel, ids: NDArray[np.unsignedinteger], first: int, window: int = 512
) -> float:
    """The loss of a text in nats, summed over its tokens; the state is carried from zero.

    Args:
        model: the model.
        ids: the text ``(tokens,)``.
        first: the id read before the first token.
        window: tokens in one call.
    """
    device = model.device
    state = model.zero_state(1)
    total = 0.0
    previous = first
    for start in range(0, ids.size, window):
        targets = ids[start : start + window].astype(np.int64)
        token = np.concatenate([[previous], targets[:-1]])
        logits, state = model(torch.from_numpy(token)[None].to(device), state)
        losses = F.cross_entropy(logits[0], torch.from_numpy(targets).to(device), reduction="none")
        total += float(losses.double().sum())
        previous = int(targets[-1])
    return total
