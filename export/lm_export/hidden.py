"""The output ``hidden`` of adaptive graphs: what the output layer reads at each place."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lm_export.errors import ExportError
from lm_export.parity import TOLERANCE, difference
from lm_runtime.bundle import HIDDEN, LOGITS
from lm_runtime.models.protocol import BundleModel, HiddenModel
from lm_runtime.models.state import initial_state
from lm_trainer.networks.base import LanguageModel

_PROVEN_TOKENS = 256


def output_product(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The matrix product of the output layer.

    Raises:
        ExportError: the graph does not end in a product and a bias.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    add = made_by[LOGITS]
    product: onnx.NodeProto = next((made_by[name] for name in add.input if name in made_by), add)
    if (add.op_type, product.op_type) != ("Add", "MatMul"):
        raise ExportError("the graph does not end in MatMul and Add, its output layer")
    return product


def add_hidden(graph: onnx.GraphProto, width: int) -> None:
    """Make what the output layer reads, ``(batch, time, width)``, the last output of the graph.

    Raises:
        ExportError: the graph ends in other operators.
    """
    old = output_product(graph).input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [HIDDEN if name == old else name for name in names]
    kept = [value for value in graph.value_info if value.name != old]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    shape: list[str | int | None] = ["batch", "time", width]
    graph.output.append(onnx.helper.make_tensor_value_info(HIDDEN, onnx.TensorProto.FLOAT, shape))


@torch.no_grad()
def prove_hidden(network: LanguageModel, model: BundleModel, held_out: NDArray[np.int64]) -> float:
    """The largest difference of ``hidden`` from what torch's output layer reads, on held-out text.

    Raises:
        ExportError: it is above :data:`lm_export.parity.TOLERANCE`, or there is no such output.
    """
    if not isinstance(model, HiddenModel) or model.hidden_width != network.head.in_features:
        raise ExportError("the graph does not show what its output layer reads; no bundle was written")
    token = np.resize(held_out, (1, _PROVEN_TOKENS))
    expected, _ = network.read(torch.from_numpy(token), network.zero_state(1))
    _, found, _ = model.step_hidden(token, initial_state(model, 1))
    largest = difference(expected.numpy(), found)
    if not largest < TOLERANCE:
        raise ExportError(f"hidden differs from the checkpoint's by {largest:.1e}; no bundle was written")
    return largest
