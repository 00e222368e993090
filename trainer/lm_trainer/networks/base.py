"""What the networks of all families share. Knows nothing about corpora, optimizers or files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lm_runtime.bundle import StateTensor
from lm_runtime.models.protocol import PlainStepper, State, Stepper
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig
from lm_trainer.networks.dropout import NO_DROPOUT, Dropout

TorchState = tuple[Tensor, ...]
"""One tensor for each of the model's :attr:`LanguageModel.states`."""


class LanguageModel(nn.Module, ABC):
    """What every network is: ``logits, state = model(token, state)``.

    Args:
        config: the network's sizes.
        states: the tensors of its state.
    """

    head: nn.Linear
    """The output layer."""

    def __init__(self, config: ModelConfig, states: tuple[StateTensor, ...]) -> None:
        super().__init__()
        self.config = config
        self.states = states

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config})"

    @abstractmethod
    def read(
        self, token: Tensor, state: TorchState, dropout: Dropout = NO_DROPOUT
    ) -> tuple[Tensor, TorchState]:
        """Read ``token``.

        Args:
            token: ids, int64, ``(batch, time)``.
            state: the state after what was read before.
            dropout: what is dropped, for training.

        Returns:
            what the output layer reads, ``(batch, time, hidden)``, and the state after the last token.
        """

    def forward(self, token: Tensor, state: TorchState) -> tuple[Tensor, TorchState]:
        """As :meth:`read`, with the logits ``(batch, time, vocab)``."""
        x, after = self.read(token, state)
        return self.head(x), after

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
        """Give a new network weights from which it learns sooner than from torch's own.

        Args:
            log_frequencies: natural logarithms ``(vocab,)`` of the tokens' frequencies, its first prediction.
            generator: draws weights (on the CPU).
        """
        self.head.bias.copy_(log_frequencies)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def weights(self) -> dict[str, Tensor]:
        """As :meth:`lm_trainer.families.Model.weights`."""
        return dict(self.state_dict())

    def parameter_count(self) -> int:
        """As :meth:`lm_trainer.families.Model.parameter_count`."""
        return sum(parameter.numel() for parameter in self.parameters())

    def text_loss(self, ids: NDArray[np.unsignedinteger], first: int) -> float:
        """As :meth:`lm_trainer.families.Model.text_loss`."""
        return negative_log_likelihood(self, ids, first)

    def step_model(self, tokenizer: Tokenizer) -> TorchStepModel:
        """As :meth:`lm_trainer.families.Model.step_model`."""
        return TorchStepModel(self, tokenizer)


class TorchStepModel:
    """The torch model in the form with which :mod:`lm_runtime` generates and scores."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.states = model.states
        self._model = model

    def __repr__(self) -> str:
        return f"TorchStepModel({self._model}, {self.tokenizer})"

    @torch.no_grad()
    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.StepModel.step`."""
        logits, after = self._model(*self._on_device(token, state))
        return logits.cpu().numpy(), tuple(tensor.cpu().numpy() for tensor in after)

    @torch.no_grad()
    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`lm_runtime.models.protocol.StepModel.advance`."""
        _, after = self._model.read(*self._on_device(token, state))
        return tuple(tensor.cpu().numpy() for tensor in after)

    def stepper(self, state: State) -> Stepper:
        """As :meth:`lm_runtime.models.protocol.StepModel.stepper`."""
        return PlainStepper(self.step, state)

    @property
    def identity(self) -> str:
        """The sha256 of the weights."""
        digest = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _on_device(self, token: NDArray[np.int64], state: State) -> tuple[Tensor, TorchState]:
        device = self._model.device
        return torch.from_numpy(token).to(device), tuple(
            torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in state
        )


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
