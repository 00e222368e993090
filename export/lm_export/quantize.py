"""int8: the step graph with quantized weights, and the proof that they are."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from lm_export.errors import ExportError
from lm_export.saturation import check_saturation, int8_weights, quantize_without_saturation

INT8_OPERATORS = {"LSTM": "DynamicQuantizeLSTM", "MatMul": "MatMulInteger"}
"""The operators that onnxruntime has in int8, and those that they become; Gather reads int8 as it is."""
_FP32_ONLY = {"GRU", "RNN"}
"""Those that it has in fp32 alone."""


def quantize_int8(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every layer in int8 that onnxruntime has in int8: all but those of GRU and RNN.

    Activations are quantized at run time, with one scale a call; weights have one scale a matrix, at which no
    processor saturates.

    Raises:
        ExportError: another layer stayed in fp32, or products could saturate.
    """
    folded = _with_folded_transposes(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it advises a preparation that this graph does not need
        try:
            quantize_dynamic(
                folded,
                path,
                op_types_to_quantize=[*INT8_OPERATORS, "Gather"],
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(before)
        quantized = onnx.load(path)
    onnx.helper.set_model_props(quantized, {**_properties(graph), "precision": "int8"})
    quantized.producer_name = graph.producer_name
    _check(graph, quantized)
    _scale_anew(folded, quantized)
    if tied := _tied_weight(graph):
        _store_once(quantized, *tied)
    _check_count(graph, quantized)
    check_saturation(quantized)
    return quantized


def _properties(graph: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in graph.metadata_props}


def _with_folded_transposes(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which transposed weights are weights of their own.

    A tied output layer is a view of the embedding: one array in fp32, which onnxruntime transposes as it
    loads, but to the quantizer a MatMul without weights.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(graph)
    initializers = {tensor.name: tensor for tensor in folded.graph.initializer}
    for node in [node for node in folded.graph.node if node.op_type == "Transpose"]:
        if node.input[0] in initializers:
            axes = next(attribute.ints for attribute in node.attribute if attribute.name == "perm")
            weight = onnx.numpy_helper.to_array(initializers[node.input[0]]).transpose(tuple(axes))
            folded.graph.initializer.append(
                onnx.numpy_helper.from_array(np.ascontiguousarray(weight), node.output[0])
            )
            folded.graph.node.remove(node)
    return folded


def _scale_anew(graph: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """Replace the quantizer's integers and scales by those that saturate nowhere."""
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for name in int8_weights(quantized):
        source = name.removesuffix("_quantized")  # the quantizer's names
        matrix = onnx.numpy_helper.to_array(weights[source])
        if matrix.ndim == 3:  # (directions, gates, inputs), which the quantizer transposes
            matrix = matrix.swapaxes(1, 2)
        integers, scale = quantize_without_saturation(matrix)
        for old, new in ((name, integers), (f"{source}_scale", np.float32(scale))):
            shape = tuple(stored[old].dims)
            stored[old].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(new).reshape(shape), old))


def _tied_weight(graph: onnx.ModelProto) -> tuple[str, str] | None:
    """The embedding's name and that of its transposed view, if the output layer is one."""
    tables = {node.input[0] for node in graph.graph.node if node.op_type == "Gather"}
    for node in graph.graph.node:
        if node.op_type == "Transpose" and node.input[0] in tables:
            return node.input[0], node.output[0]
    return None


def _store_once(quantized: onnx.ModelProto, table: str, view: str) -> None:
    """Let the embedding read the output layer's int8 matrix, of which the quantizer made it a copy.

    The file holds the matrix as ``(vocab, hidden)``, and onnxruntime transposes it for the output layer as
    it loads, as it does in fp32. Held as ``(hidden, vocab)`` it would need no Transpose, but each number of
    an embedding would come from another line of memory: at batch 64 a step took 1.4 to 1.6 times as long.
    """
    suffixes = ("_quantized", "_scale", "_zero_point")  # the quantizer's names
    rows, *copy_range = (f"{table}{suffix}" for suffix in suffixes)
    columns, *head_range = (f"{view}{suffix}" for suffix in suffixes)
    initializers = {tensor.name: tensor for tensor in quantized.graph.initializer}
    if missing := {rows, *copy_range, columns, *head_range} - initializers.keys():
        raise ExportError(f"the quantizer wrote no {', '.join(sorted(missing))}")
    matrix = onnx.numpy_helper.to_array(initializers[columns]).T
    for name in (rows, *copy_range, columns):
        quantized.graph.initializer.remove(initializers[name])
    quantized.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(matrix), rows))
    quantized.graph.node.insert(0, onnx.helper.make_node("Transpose", [rows], [columns], perm=[1, 0]))
    of_the_head = dict(zip(copy_range, head_range, strict=True))
    for node in quantized.graph.node:
        node.input[:] = [of_the_head.get(name, name) for name in node.input]
    # The types noted there are those of the copy.
    del quantized.graph.value_info[:]


def _check(graph: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """onnxruntime's quantizer passes over what it cannot quantize, without a word."""
    before = [node.op_type for node in graph.graph.node]
    after = [node.op_type for node in quantized.graph.node]
    for old, new in INT8_OPERATORS.items():
        if after.count(new) != before.count(old) or old in after:
            raise ExportError(f"{after.count(new)} of {before.count(old)} {old} operators were quantized")
    # Biases stay: a vector, or (1, gates) with a recurrent layer.
    allowed: set[str] = set()
    for node in quantized.graph.node:
        if node.op_type in _FP32_ONLY:
            allowed.update(node.input[1:4])
        elif node.op_type == INT8_OPERATORS["LSTM"]:
            allowed.add(node.input[3])
    matrices = [
        tensor.name
        for tensor in quantized.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and tensor.name not in allowed
    ]
    if matrices:
        raise ExportError(f"stayed in fp32: {', '.join(matrices)}")
    opsets = [
        {entry.domain: entry.version for entry in model.opset_import}.get("") for model in (graph, quantized)
    ]
    if opsets[0] != opsets[1]:
        raise ExportError(f"the quantizer wrote opset {opsets[1]}, not {opsets[0]}")


def _check_count(graph: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """Each weight is stored once: a shared one, too."""
    # Scales, zero points and indices, which only one of the two has, are no matrices.
    stored, wanted = (
        sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) > 1)
        for model in (quantized, graph)
    )
    if stored != wanted:
        raise ExportError(f"int8 stores {stored:,} weights, where fp32 has {wanted:,}")
