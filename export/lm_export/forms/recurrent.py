"""The form of the recurrent families: one ONNX operator a layer, its weights as initializers.

``torch.onnx.export`` turns a plain ``nn.LSTM`` into a graph with a frozen time axis whose weights are no
initializers. So the traced module calls operators of its own, with the weights already in ONNX's order, and
the exporter is told which ONNX operator each of them is.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnxscript
import torch
from torch import Tensor, nn

from lm_export.errors import ExportError
from lm_export.forms.form import Form, Layers
from lm_export.logits_from import add_logits_from, is_worthwhile
from lm_export.quantize import INT8_OPERATORS
from lm_runtime.bundle import BundleConfig
from lm_trainer.networks.base import TorchState
from lm_trainer.networks.recurrent import CELLS, RecurrentLM, read_layer

_WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
"""torch's names of what ONNX calls W, R and, joined, B."""


@dataclass(frozen=True)
class OnnxLayer:
    """What makes ONNX's operator compute what torch's layer does; both have the same name."""

    gates: tuple[int, ...]
    """ONNX's order of the gates, each by its place in torch's."""
    attributes: dict[str, int] = field(default_factory=dict)
    """Attributes of the operator."""
    spare_row: bool = False
    """Whether the graph reads one row more than the batch has."""

    def onnx_order(self, matrix: Tensor) -> Tensor:
        """Rows in torch's order of the gates to rows in ONNX's."""
        gates = matrix.detach().cpu().chunk(len(self.gates))
        return torch.cat([gates[gate] for gate in self.gates])

    def torch_order(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`onnx_order`."""
        gates = dict(zip(self.gates, matrix.chunk(len(self.gates)), strict=True))
        return torch.cat([gates[gate] for gate in sorted(gates)])


_LAYERS = {
    # torch has i, f, g, o; ONNX i, o, f, c.
    "lstm": OnnxLayer((0, 3, 1, 2)),
    # torch has r, z, n; ONNX z, r, h. torch multiplies by r after the product with the hidden weights.
    "gru": OnnxLayer((1, 0, 2), {"linear_before_reset": 1}),
    # onnxruntime's RNN multiplies a single row by another kernel than several, with other last bits: a text
    # alone would differ from the same text in a batch. With a spare row there is never a single one.
    "rnn": OnnxLayer((0,), spare_row=True),
}


class RecurrentStep(nn.Module):
    """A recurrent model with its layers' weights in ONNX's order."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.embedding = model.embedding
        self.projection = model.projection
        self.head = model.head
        self.family = model.config.model_type
        onnx_layer = _LAYERS[self.family]
        self.spare_row = onnx_layer.spare_row
        self.num_layers = model.config.num_layers
        for number, layer in enumerate(model.layers):
            w, r, *biases = (onnx_layer.onnx_order(layer.get_parameter(name)) for name in _WEIGHTS)
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


@functools.cache
def _define_operator(family: str) -> Callable[..., Any]:
    """Register ``steplm::<family>``, one layer with the inputs of ONNX's operator, and return it.

    It takes x ``(time, batch, input)``, W, R, B, and each state tensor ``(1, batch, hidden)``, and gives y
    ``(time, batch, hidden)`` and the state tensors.
    """
    cell, onnx_layer = CELLS[family], _LAYERS[family]
    inputs = ", ".join(f"Tensor {name}" for name in ("x", "w", "r", "b", *cell.states))
    outputs = ", ".join("Tensor" for _ in ("y", *cell.states))

    @torch.library.custom_op(f"steplm::{family}", mutates_args=(), schema=f"({inputs}) -> ({outputs})")
    def operator(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        layer = cell.module(x.shape[-1], r.shape[-1], device="meta")
        matrices = (onnx_layer.torch_order(matrix) for matrix in (w[0], r[0], *b[0].chunk(2)))
        weights = dict(zip(_WEIGHTS, matrices, strict=True))

        def call(x: Tensor, state: Any) -> Any:
            return torch.func.functional_call(layer, weights, (x, state))

        y, after = read_layer(call, x, state)
        return y.clone(), *(tensor.clone() for tensor in after)

    @operator.register_fake
    def _(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return x.new_empty(x.shape[0], x.shape[1], r.shape[-1]), *map(torch.empty_like, state)

    registered: Callable[..., Any] = getattr(torch.ops.steplm, family).default
    return registered


@typing.no_type_check
def _translate(name, attributes, x, w, r, b, *state):
    """Write a layer as the ONNX operator ``name``."""
    op = onnxscript.opset18
    operator = getattr(op, name)
    y, *after = operator(x, w, r, b, None, *state, hidden_size=int(r.shape[-1]), **attributes)
    return op.Squeeze(y, op.Constant(value_ints=[1])), *after  # (time, 1, batch, hidden) loses its 1


class RecurrentForm(Form):
    """Embedding, recurrent layers, perhaps a projection, output layer.

    Args:
        family: one of :data:`lm_trainer.networks.recurrent.CELLS`.
    """

    has_hidden = True

    def __init__(self, family: str) -> None:
        self._name = CELLS[family].name
        self._layer = _LAYERS[family]
        translate = functools.partial(_translate, self._name, self._layer.attributes)
        self.translations = {_define_operator(family): translate}

    def module(self, model: RecurrentLM) -> nn.Module:
        """As :meth:`Form.module`."""
        return RecurrentStep(model)

    def finish(self, graph: onnx.GraphProto, config: BundleConfig) -> None:
        """As :meth:`Form.finish`."""
        if is_worthwhile(config.vocab_size, config.hidden_size):
            add_logits_from(graph)

    def check(self, graph: onnx.GraphProto, config: BundleConfig) -> None:
        """As :meth:`Form.check`: an operator for each layer, with initializers as weights."""
        initializers = {tensor.name for tensor in graph.initializer}
        recurrent = [node for node in graph.node if node.op_type == self._name]
        if len(recurrent) != config.num_hidden_layers:
            raise ExportError(
                f"{len(recurrent)} {self._name} operators for {config.num_hidden_layers} layers"
            )
        for node in recurrent:
            if not initializers.issuperset(node.input[1:4]):
                raise ExportError(f"the weights of {node.name} are no initializers")

    def layers(self, config: BundleConfig) -> Layers:
        """As :meth:`Form.layers`."""
        own = [f"{self._name} layers"]
        int8, fp32 = (own, []) if self._name in INT8_OPERATORS else ([], own)
        projection = ["projection"] if config.projection else []
        return {"int8": ["embedding", *int8, *projection, "output layer"], "fp32": fp32}
