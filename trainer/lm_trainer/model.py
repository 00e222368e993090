"""The recurrent language model in torch. Knows nothing about corpora, optimizers or files."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lm_runtime.bundle import recurrent_states
from lm_runtime.stepper import PlainStepper, State, Stepper
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig

TorchState = tuple[Tensor, ...]
"""``h`` and ``c``, each ``(layers, batch, hidden)``."""


class RecurrentLM(nn.Module):
    """Embedding, LSTM layers, output layer: ``logits, state = model(token, state)``.

    Args:
        config: the network's measures.
        generator: draws the initial weights (on the CPU).
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        sizes = [config.embedding_dim] + [config.hidden_size] * config.num_layers
        # One module a layer: dropout between them is ours, and repeats with its generator.
        self.layers = nn.ModuleList(
            nn.LSTM(sizes[layer], sizes[layer + 1]) for layer in range(config.num_layers)
        )
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        if config.tied:
            self.head.weight = self.embedding.weight
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator) -> None:
        """torch's own initial distributions; a tied embedding has the output layer's."""
        bound = 1 / math.sqrt(self.config.hidden_size)
        for parameter in self.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
        if not self.config.tied:
            self.embedding.weight.normal_(generator=generator)

    def zero_state(self, batch: int) -> TorchState:
        """The state of sequences that have read nothing yet."""
        shape = (self.config.num_layers, batch, self.config.hidden_size)
        device = self.embedding.weight.device
        return torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def forward(
        self,
        token: Tensor,
        state: TorchState,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TorchState]:
        """Read ``token``.

        Args:
            token: ids, int64, ``(batch, time)``.
            state: ``h`` and ``c``, ``(layers, batch, hidden)``.
            dropout: probability of dropping an activation, for training.
            generator: draws the dropout masks, on the model's device.

        Returns:
            logits ``(batch, time, vocab)`` and the state behind the last token.
        """
        x = _drop(self.embedding(token.t()), dropout, generator)  # (time, batch, embedding)
        hidden, cell = [], []
        for number, layer in enumerate(self.layers):
            x, (h, c) = layer(x, (state[0][number : number + 1], state[1][number : number + 1]))
            x = _drop(x, dropout, generator)  # (time, batch, hidden)
            hidden.append(h)
            cell.append(c)
        return self.head(x).transpose(0, 1), (torch.cat(hidden), torch.cat(cell))


def _drop(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    if probability == 0:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - probability, generator=generator)
    return x * keep / (1 - probability)


def parameter_count(model: nn.Module) -> int:
    """How many numbers are learned; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


class TorchStepModel:
    """The torch model in the form that :mod:`lm_runtime` generates and scores with."""

    def __init__(self, model: RecurrentLM, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.states = recurrent_states(("h", "c"), model.config.num_layers, model.config.hidden_size)
        self._model = model

    @torch.no_grad()
    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.model.OnnxModel.step`."""
        device = self._model.embedding.weight.device
        logits, after = self._model(
            torch.from_numpy(token).to(device),
            tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in state),
        )
        return logits.cpu().numpy(), tuple(tensor.cpu().numpy() for tensor in after)

    def stepper(self, state: State) -> Stepper:
        """As :meth:`lm_runtime.model.OnnxModel.stepper`."""
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
    model: RecurrentLM, ids: NDArray[np.unsignedinteger], first: int, window: int = 512
) -> float:
    """The loss of a text in nats, summed over its tokens; the state is carried from zero.

    Args:
        model: the model.
        ids: the text ``(tokens,)``.
        first: the id read before the first token.
        window: tokens in one call.
    """
    device = model.embedding.weight.device
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
