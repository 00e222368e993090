"""A recurrent model in the form that is traced, and the operators that its layers become.

``torch.onnx.export`` turns a plain ``nn.LSTM`` into a graph with a frozen time axis whose weights are no
initializers. So the traced module calls operators of its own, with the weights already in ONNX's order, and
the exporter is told which operator of ONNX each of them is.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from torch import Tensor, nn

from lm_trainer.networks.base import TorchState
from lm_trainer.networks.recurrent import CELLS, Cell, RecurrentLM, read_layer

_WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
"""torch's names of what ONNX calls W, R and, joined, B."""


class RecurrentStep(nn.Module):
    """A recurrent model with its layers' weights in ONNX's order."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.embedding = model.embedding
        self.projection = model.projection
        self.head = model.head
        self.family = model.config.model_type
        self.spare_row = model.cell.onnx_spare_row
        self.num_layers = model.config.num_layers
        for number, layer in enumerate(model.layers):
            w, r, *biases = (_onnx_order(model.cell, layer.get_parameter(name)) for name in _WEIGHTS)
            self.register_buffer(f"W{number}", w[None].contiguous())
            self.register_buffer(f"R{number}", r[None].contiguous())
            self.register_buffer(f"B{number}", torch.cat(biases)[None].contiguous())

    def forward(self, token: Tensor, state: TorchState) -> tuple[Tensor, TorchState]:
        """token ``(batch, time)``, state ``(layers, batch, hidden)``; logits ``(batch, time, vocab)``."""
        operator = getattr(torch.ops.steplm, self.family)
        batch = token.shape[0]
        if self.spare_row:
            token = torch.cat([token, token[:1]])
            state = tuple(torch.cat([tensor, tensor[:, :1]], dim=1) for tensor in state)
        # Ids are transposed, not vectors: in int8, onnxruntime would wrap a Transpose of dequantized vectors
        # in a second QuantizeLinear and DequantizeLinear.
        x = self.embedding(token.t())  # (time, batch, embedding)
        after = []
        for n in range(self.num_layers):
            weights = (self.get_buffer(f"{name}{n}") for name in "WRB")
            # A single layer's state as it is: opset 15 cannot have the Identity that would be left of cat.
            single = self.num_layers == 1
            own = state if single else (tensor[n : n + 1] for tensor in state)
            x, *layer_state = operator(x, *weights, *own)
            after.append(layer_state)
        state = tuple(after[0]) if single else tuple(map(torch.cat, zip(*after, strict=True)))
        if self.spare_row:
            x, state = x[:, :batch], tuple(tensor[:, :batch] for tensor in state)
        return self.head(self.projection(x.transpose(0, 1))), state


def _onnx_order(cell: Cell, matrix: Tensor) -> Tensor:
    """Rows for torch's gates to rows for ONNX's."""
    gates = matrix.detach().cpu().chunk(len(cell.onnx_gates))
    return torch.cat([gates[gate] for gate in cell.onnx_gates])


def _torch_order(cell: Cell, matrix: Tensor) -> Tensor:
    gates = dict(zip(cell.onnx_gates, matrix.chunk(len(cell.onnx_gates)), strict=True))
    return torch.cat([gates[gate] for gate in sorted(gates)])


def _define_operator(family: str, cell: Cell) -> None:
    """Register ``steplm::<family>``: one layer, with the inputs that ONNX's operator has.

    It takes x ``(time, batch, input)``, W, R, B, and each state tensor ``(1, batch, hidden)``, and gives y
    ``(time, batch, hidden)`` and the state tensors.
    """
    inputs = ", ".join(f"Tensor {name}" for name in ("x", "w", "r", "b", *cell.states))
    outputs = ", ".join("Tensor" for _ in ("y", *cell.states))

    @torch.library.custom_op(f"steplm::{family}", mutates_args=(), schema=f"({inputs}) -> ({outputs})")
    def operator(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        layer = cell.module(x.shape[-1], r.shape[-1], device="meta")
        matrices = (_torch_order(cell, matrix) for matrix in (w[0], r[0], *b[0].chunk(2)))
        weights = dict(zip(_WEIGHTS, matrices, strict=True))

        def call(x: Tensor, state: Any) -> Any:
            return torch.func.functional_call(layer, weights, (x, state))

        y, after = read_layer(call, x, state)
        return y.clone(), *(tensor.clone() for tensor in after)

    @operator.register_fake
    def _(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return x.new_empty(x.shape[0], x.shape[1], r.shape[-1]), *map(torch.empty_like, state)


@typing.no_type_check
def _translate(cell, x, w, r, b, *state):
    """The exporter's translation of the operator of ``cell``."""
    op = onnxscript.opset18
    operator = getattr(op, cell.name)
    y, *after = operator(x, w, r, b, None, *state, hidden_size=int(r.shape[-1]), **cell.onnx_attributes)
    return op.Squeeze(y, op.Constant(value_ints=[1])), *after  # (time, 1, batch, hidden) loses its 1


for _family, _cell in CELLS.items():
    _define_operator(_family, _cell)

TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(torch.ops.steplm, family).default: functools.partial(_translate, cell)
    for family, cell in CELLS.items()
}
"""For the exporter: the operator of torch, and what writes that of ONNX."""
