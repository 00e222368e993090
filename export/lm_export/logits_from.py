"""The optional input ``logits_from`` of graphs with a large output layer."""

from __future__ import annotations

import numpy as np
import onnx

from lm_export.errors import ExportError
from lm_runtime.bundle import LOGITS, LOGITS_FROM

_LARGE_OUTPUT_LAYER = 1 << 20
"""Weights from which on skipping pays: the input makes a step 1 us slower."""


def is_worthwhile(vocab_size: int, width: int) -> bool:
    """Whether an output layer ``(vocab_size, width)`` is large enough for the input."""
    return vocab_size * width >= _LARGE_OUTPUT_LAYER


def add_logits_from(graph: onnx.GraphProto) -> None:
    """Let the output layer skip the places before :data:`LOGITS_FROM`, for reading a prompt.

    The input has a default value, so a reader that knows only token and state never sees it. The output
    layer, with or without a projection, must read a transposed ``(time, batch, hidden)``. On the tutorial's
    model a prompt is read in two thirds of the time.

    Raises:
        ExportError: the graph ends in other operators.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    add = made_by[LOGITS]
    product = next(made_by[name] for name in add.input if name in made_by)
    transpose = made_by[product.input[0]]
    between = {*product.output}
    while transpose.op_type == "MatMul":  # the projection
        between.update(transpose.output)
        transpose = made_by[transpose.input[0]]
    if (add.op_type, product.op_type, transpose.op_type) != ("Add", "MatMul", "Transpose"):
        raise ExportError("the graph does not end in Transpose, MatMul and Add, its output layer")
    hidden = transpose.input[0]  # (time, batch, hidden)
    last = onnx.numpy_helper.from_array(np.array([np.iinfo(np.int64).max]), "to_the_end")
    default = onnx.numpy_helper.from_array(np.zeros(1, dtype=np.int64), LOGITS_FROM)
    graph.initializer.extend([last, default])
    graph.input.append(onnx.helper.make_tensor_value_info(LOGITS_FROM, onnx.TensorProto.INT64, [1]))
    wanted = f"{hidden}_wanted"
    transpose.input[0] = wanted
    place = list(graph.node).index(transpose)
    graph.node.insert(place, onnx.helper.make_node("Slice", [hidden, LOGITS_FROM, "to_the_end"], [wanted]))
    # The time axis of these is no longer that of the tokens.
    stale = {*transpose.output, *between}
    kept = [value for value in graph.value_info if value.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(kept)
