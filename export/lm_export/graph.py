"""The step graph: the torch model traced to one ONNX graph, finished and checked.

``torch.onnx.export`` turns a plain ``nn.LSTM`` into a graph with a frozen time axis whose weights are no
initializers. So the traced module calls an operator of its own, with the weights already in ONNX's order,
and the exporter is told that this operator is ONNX's ``LSTM``.
"""

from __future__ import annotations

import logging
import tempfile
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxscript
import torch
from torch import Tensor, nn

from lm_runtime.bundle import LOGITS, TOKEN, BundleConfig
from lm_trainer.model import RecurrentLM

OLDEST_OPSET = 15
"""Older ones fail in the conversion from the exporter's own operator set."""
NEWEST_OPSET = onnx.defs.onnx_opset_version()
"""What the installed onnx knows."""

_LARGEST_FILE = 2**31
# Below, torch's version converter hands over to onnx's; both were tested.
_TRACED_OPSET = 18
# Tracing at 1 would freeze an axis.
_TRACED_BATCH, _TRACED_TIME = 2, 3


class ExportError(Exception):
    """An export that did not come out as it must; nothing was written."""


@torch.library.custom_op("steplm::lstm", mutates_args=())
def _lstm(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of ONNX's ``LSTM``: x ``(time, batch, input)``, h and c ``(1, batch, hidden)``."""
    bias_input, bias_hidden = b[0].chunk(2)
    weights = [_torch_order(matrix) for matrix in (w[0], r[0], bias_input, bias_hidden)]
    y, h_out, c_out = torch.lstm(x, (h, c), weights, True, 1, 0.0, False, False, False)
    return y.clone(), h_out.clone(), c_out.clone()


@_lstm.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], r.shape[-1]), torch.empty_like(h), torch.empty_like(c)


@typing.no_type_check
def _onnx_lstm(x, w, r, b, h, c):
    """The exporter's translation of ``steplm::lstm``."""
    op = onnxscript.opset18
    y, h_out, c_out = op.LSTM(x, w, r, b, None, h, c, hidden_size=int(r.shape[-1]))
    return op.Squeeze(y, op.Constant(value_ints=[1])), h_out, c_out  # (time, 1, batch, hidden) loses its 1


def _onnx_order(matrix: Tensor) -> Tensor:
    """Rows for the gates i, f, g, o (torch) to i, o, f, c (ONNX)."""
    i, f, g, o = matrix.detach().cpu().chunk(4)
    return torch.cat([i, o, f, g])


def _torch_order(matrix: Tensor) -> Tensor:
    i, o, f, g = matrix.chunk(4)
    return torch.cat([i, f, g, o])


class StepModule(nn.Module):
    """The model in the form that is traced: weights in ONNX's order, ``h`` and ``c`` apart."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.embedding = model.embedding
        self.head = model.head
        self.num_layers = len(model.layers)
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, nn.LSTM)
            w, r, *biases = (_onnx_order(weight) for weight in layer.all_weights[0])
            self.register_buffer(f"W{number}", w[None].contiguous())
            self.register_buffer(f"R{number}", r[None].contiguous())
            self.register_buffer(f"B{number}", torch.cat(biases)[None].contiguous())

    def forward(self, token: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """token ``(batch, time)``, h and c ``(layers, batch, hidden)``; logits ``(batch, time, vocab)``."""
        # Ids are transposed, not vectors: in int8, onnxruntime would wrap a Transpose of dequantized vectors
        # in a second QuantizeLinear and DequantizeLinear.
        x = self.embedding(token.t())  # (time, batch, embedding)
        hidden, cell = [], []
        for n in range(self.num_layers):
            weights = (self.get_buffer(f"{name}{n}") for name in "WRB")
            x, h_out, c_out = torch.ops.steplm.lstm(x, *weights, h[n : n + 1], c[n : n + 1])
            hidden.append(h_out)
            cell.append(c_out)
        return self.head(x.transpose(0, 1)), torch.cat(hidden), torch.cat(cell)


def check_opset(opset: int) -> None:
    """Refuse an operator set that cannot be written.

    Raises:
        ValueError: with the bounds.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"opset must be from {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}")


def make_step_graph(model: RecurrentLM, config: BundleConfig) -> onnx.ModelProto:
    """Trace ``model`` into the graph that ``config`` describes, and check it.

    Raises:
        ValueError: the operator set is out of its bounds.
        ExportError: the graph is not what it has to be.
    """
    check_opset(config.opset)
    names = [state.name for state in config.states]
    outputs = [state.output for state in config.states]
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    token = torch.zeros((_TRACED_BATCH, _TRACED_TIME), dtype=torch.int64)
    module = StepModule(model.cpu()).eval()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            module,
            (token, *model.zero_state(_TRACED_BATCH)),
            dynamo=True,
            opset_version=config.opset,
            input_names=[TOKEN, *names],
            output_names=[LOGITS, *outputs],
            dynamic_shapes=({0: batch, 1: time}, *({1: batch} for _ in names)),
            custom_translation_table={torch.ops.steplm.lstm.default: _onnx_lstm},
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise ExportError("torch's exporter returned no program")
        path = Path(folder) / "model.onnx"
        program.save(path)
        graph = onnx.load(path)
    onnx.helper.set_model_props(graph, config.metadata("fp32"))
    graph.producer_name = "steplm"
    for node in graph.graph.node:  # where in the program each node came from is of no use to a reader
        del node.metadata_props[:]
    _check(graph, config)
    return graph


def _check(graph: onnx.ModelProto, config: BundleConfig) -> None:
    found = {entry.domain: entry.version for entry in graph.opset_import}
    if found != {"": config.opset}:
        raise ExportError(f"the exporter wrote opset {found}, not {config.opset}")
    initializers = {tensor.name for tensor in graph.graph.initializer}
    recurrent = [node for node in graph.graph.node if node.op_type == "LSTM"]
    if len(recurrent) != config.num_hidden_layers:
        raise ExportError(f"{len(recurrent)} LSTM operators for {config.num_hidden_layers} layers")
    for node in recurrent:
        if not initializers.issuperset(node.input[1:4]):
            raise ExportError(f"the weights of {node.name} are no initializers")
    onnx.checker.check_model(graph, full_check=True)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)


def check_size(model: nn.Module) -> None:
    """Refuse a model whose weights do not fit one ONNX file.

    Raises:
        ValueError: with the size and the bound.
    """
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size >= _LARGEST_FILE:
        raise ValueError(f"the weights are {size:,} bytes; one ONNX file holds fewer than {_LARGEST_FILE:,}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of other packages, and of conversions that are checked here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
