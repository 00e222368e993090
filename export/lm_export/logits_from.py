"""The optional input ``logits_from`` of graphs with a large output layer."""

from __future__ import annotations

import numpy as np
import onnx

from lm_export.errors import ExportError
from lm_export.hidden import output_product
from lm_runtime.bundle import HIDDEN, LOGITS_FROM

_LARGE_OUTPUT_LAYER = 1 << 20
"""Weights from which on skipping pays: the input makes a step 1 us slower."""


def is_worthwhile(vocab_size: int, width: int) -> bool:
    """Whether an output layer ``(vocab_size, width)`` is large enough for the input."""
    return vocab_size * width >= _LARGE_OUTPUT_LAYER


def add_logits_from(graph: onnx.GraphProto) -> None:
    """Let the output layer skip the places before :data:`LOGITS_FROM`, for reading a prompt.

    The input has a default value, so a reader that knows only token and state never sees it. The output
    layer, with or without a projection, must read a transposed ``(time, batch, hidden)``; or the output
    :data:`HIDDEN`, which stays whole. On the tutorial's model a prompt is read in two thirds of the time.

    Raises:
        ExportError: the graph ends in other operators.
    """
    product = output_product(graph)
    if product.input[0] == HIDDEN:
        _slice(graph, product, axis=1)
        return
    made_by = {name: node for node in graph.node for name in node.output}
    transpose = made_by[product.input[0]]
    between = {*product.output}
    while transpose.op_type == "MatMul":  # the projection
        between.update(transpose.output)
        transpose = made_by[transpose.input[0]]
    if transpose.op_type != "Transpose":
        raise ExportError("the graph does not end in Transpose, MatMul and Add, its output layer")
    _slice(graph, transpose, axis=0)  # of (time, batch, hidden)
    # The time axis of these is no longer that of the tokens.
    stale = {*transpose.output, *between}
    kept = [value for value in graph.value_info if value.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _slice(graph: onnx.GraphProto, reader: onnx.NodeProto, axis: int) -> None:
    """Let ``reader`` read its first input along ``axis`` from :data:`LOGITS_FROM` on."""
    whole = reader.input[0]
    constants = {"to_the_end": [np.iinfo(np.int64).max], LOGITS_FROM: [0]}
    if axis:
        constants["time_axis"] = [axis]
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    graph.input.append(onnx.helper.make_tensor_value_info(LOGITS_FROM, onnx.TensorProto.INT64, [1]))
    wanted = f"{whole}_wanted"
    reader.input[0] = wanted
    inputs = [whole, LOGITS_FROM, "to_the_end", *(["time_axis"] if axis else [])]
    slice_ = onnx.helper.make_node("Slice", inputs, [wanted])
    graph.node.insert(list(graph.node).index(reader), slice_)
