"""The fixed-window family: a feed-forward network that sees the last few tokens and nothing before them.

Bengio, Ducharme, Vincent and Jauvin, "A Neural Probabilistic Language Model", 2003, without the direct
connections from the embeddings to the output layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lm_runtime.bundle import window_states
from lm_trainer.config import ModelConfig
from lm_trainer.families import Implementation
from lm_trainer.networks.base import LanguageModel, TorchState
from lm_trainer.networks.dropout import NO_DROPOUT, Dropout
from lm_trainer.networks.family import NetworkFamily

_EMBEDDING_STD = 0.05


class WindowLM(LanguageModel):
    """The embeddings of the last tokens side by side, a tanh layer, output layer.

    The state is :func:`lm_runtime.bundle.window_states`: the tokens before the one that is read, numbered
    from 1. Row 0 of the embedding stands for no token yet.

    Args:
        config: the network's sizes.
        generator: draws the initial weights (on the CPU).
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__(config, window_states(config.window))
        self.embedding = nn.Embedding(1 + config.vocab_size, config.embedding_dim)
        self.hidden = nn.Linear(config.window * config.embedding_dim, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator) -> None:
        """torch's own initial distributions; embeddings small, so that a rare word's has little effect."""
        self.embedding.weight.normal_(std=_EMBEDDING_STD, generator=generator)
        for layer in (self.hidden, self.head):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)

    def read(
        self, token: Tensor, state: TorchState, dropout: Dropout = NO_DROPOUT
    ) -> tuple[Tensor, TorchState]:
        """As :meth:`LanguageModel.read`."""
        read = torch.cat([state[0], token + 1], dim=1)  # (batch, window - 1 + time)
        windows = read.unfold(1, self.config.window, 1)  # (batch, time, window)
        x = dropout.on_words(self.embedding(windows), windows, self.embedding.num_embeddings).flatten(2)
        # now (batch, time, window * embedding)
        x = torch.tanh(self.hidden(dropout.on(x, dropout.input)))  # (batch, time, hidden)
        return dropout.on(x, dropout.output), (read[:, 1 - self.config.window :],)


IMPLEMENTATION: Implementation = NetworkFamily(WindowLM)
