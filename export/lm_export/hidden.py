"""The output ``hidden`` of adaptive graphs: what the output layer reads at each place."""

from __future__ import annotations

import onnx

from lm_export.errors import ExportError
from lm_runtime.bundle import HIDDEN, LOGITS


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
