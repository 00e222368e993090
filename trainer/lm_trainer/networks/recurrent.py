"""The recurrent families: embedding, LSTM, GRU or simple recurrent layers, output layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lm_runtime.bundle import recurrent_states
from lm_trainer.config import ModelConfig
from lm_trainer.families import Implementation
from lm_trainer.networks.base import LanguageModel, TorchState
from lm_trainer.networks.dropout import NO_DROPOUT, Dropout
from lm_trainer.networks.family import NetworkFamily
from lm_trainer.networks.scan import scan_layer


@dataclass(frozen=True)
class Cell:
    """What a recurrent layer computes at each step, in torch and in ONNX."""

    name: str
    """Of torch's module and of ONNX's operator: they are the same."""
    module: Callable[..., nn.RNNBase]
    """torch's layer."""
    states: tuple[str, ...]
    """Its state's tensors."""


CELLS = {
    "lstm": Cell("LSTM", nn.LSTM, ("h", "c")),
    "gru": Cell("GRU", nn.GRU, ("h",)),
    "rnn": Cell("RNN", nn.RNN, ("h",)),
}
"""The cell of each recurrent family."""

_TIED_BOUND = 0.1
"""Of a scaled tied embedding, as that of Merity et al. 2018."""


class RecurrentLM(LanguageModel):
    """Embedding, recurrent layers, perhaps a projection, output layer.

    Each state tensor is ``(layers, batch, hidden)``.

    Args:
        config: the network's sizes.
        generator: draws the initial weights (on the CPU).
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        cell = CELLS[config.model_type]
        super().__init__(config, recurrent_states(cell.states, config.num_layers, config.hidden_size))
        self.cell = cell
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        sizes = [config.embedding_dim] + [config.hidden_size] * config.num_layers
        # One module for each layer: dropout between them is ours, and repeats with its generator.
        self.layers = nn.ModuleList(
            cell.module(sizes[layer], sizes[layer + 1]) for layer in range(config.num_layers)
        )
        self.projection: nn.Module = nn.Identity()
        if config.projection:
            self.projection = nn.Linear(config.hidden_size, config.projection, bias=False)
        self.head = nn.Linear(config.head_size, config.vocab_size)
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

    @torch.no_grad()
    def scale_weights(self, log_frequencies: Tensor, generator: torch.Generator) -> None:
        """As :meth:`LanguageModel.scale_weights`.

        torch's tied embedding is as small as the output layer and hardly moves the gates of a wide layer:
        here it is drawn from -0.1 to 0.1.
        """
        super().scale_weights(log_frequencies, generator)
        if self.config.tied:
            weight = self.embedding.weight
            weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * _TIED_BOUND)

    def read(
        self, token: Tensor, state: TorchState, dropout: Dropout = NO_DROPOUT
    ) -> tuple[Tensor, TorchState]:
        """As :meth:`LanguageModel.read`."""
        token = token.t()
        x = dropout.on_words(self.embedding(token), token, self.config.vocab_size)  # (time, batch, embedding)
        after = []
        # In mixed precision torch's own layers are slow in the backward pass on the CPU. On CUDA they would
        # use float16, which loses gradients below 6e-8: there they stay in float32, with TF32 products.
        scans = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        for number, layer in enumerate(self.layers):
            x = dropout.on(x, dropout.hidden if number else dropout.input)
            begin = tuple(tensor[number : number + 1] for tensor in state)
            w_hidden = dropout.on_weights(layer.get_parameter("weight_hh_l0"))
            if scans:
                x, layer_state = scan_layer(cast(nn.RNNBase, layer), x, begin, w_hidden)
            else:
                call = _with_weight(layer, w_hidden) if dropout.weights else layer
                with torch.autocast(x.device.type, enabled=False):
                    x, layer_state = read_layer(call, x, begin)
            after.append(layer_state)  # x is now (time, batch, hidden)
        x = dropout.on(self.projection(x), dropout.output)
        return x.transpose(0, 1), tuple(map(torch.cat, zip(*after, strict=True)))


def _with_weight(layer: nn.Module, w_hidden: Tensor) -> Callable[[Tensor, Any], Any]:
    def call(x: Tensor, state: Any) -> Any:
        return torch.func.functional_call(layer, {"weight_hh_l0": w_hidden}, (x, state))

    return call


def read_layer(
    layer: Callable[[Tensor, Any], tuple[Tensor, Any]], x: Tensor, state: TorchState
) -> tuple[Tensor, TorchState]:
    """Run one layer over x ``(time, batch, input)``; each state tensor is ``(1, batch, hidden)``.

    torch's LSTM takes and returns its state as a tuple, its other layers as a tensor.
    """
    y, after = layer(x, state if len(state) > 1 else state[0])
    return y, after if isinstance(after, tuple) else (after,)


IMPLEMENTATION: Implementation = NetworkFamily(RecurrentLM)
