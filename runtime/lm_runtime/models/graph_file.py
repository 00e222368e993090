"""What is in a graph's file, read as Protocol Buffers before onnxruntime makes a session of it.

A bundle's graph is a plain list of operators with their weights beside them. What could run for ever, open
other files or call code of its own (subgraphs, functions, other domains, external data) is refused. Knows
nothing about what the operators compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lm_runtime.files import UnusableFileError

Field = tuple[int, int | memoryview]
"""A field's number and its value: an integer, or the bytes of a text, a message or packed numbers."""

_MOST_NODES = 20_000
_LARGEST_SIZE = 1 << 20
"""Of a tensor's dimensions; one may also be as large as the file, which has a weight for each element."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; groups, 3 and 4, are in no ONNX file
_FIXED = {_FIXED64: 8, _FIXED32: 4}

# Numbers of fields, as onnx.proto has them.
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_MODEL_REFUSED = {20: "training information", 25: "functions"}
_OPSET_DOMAIN = 1
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_GRAPH_VALUES = (11, 12, 13)  # inputs, outputs, and what is between
_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIMENSION, _DIMENSION_VALUE = 2, 1, 2, 1, 1
_GRAPH_REFUSED = {15: "sparse tensors"}
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_NODE_REFUSED = {8: "overloads of functions"}
_ATTRIBUTE_TENSORS = (5, 10)
_ATTRIBUTE_REFUSED = {
    6: "subgraphs",
    11: "subgraphs",
    21: "functions",
    22: "sparse tensors",
    23: "sparse tensors",
}
_TENSOR_DIMENSIONS = 1
_TENSOR_REFUSED = {13: "external data", 14: "external data"}

_STANDARD = """
    Abs Add And ArgMax ArgMin BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
    ConvInteger Cos CumSum DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten
    Floor GRU Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization MatMul MatMulInteger Max Mean Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow
    QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round
    ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_MICROSOFT = """
    DynamicQuantizeLSTM DynamicQuantizeMatMul GatherBlockQuantized MatMulIntegerToFloat MatMulNBits
"""
OPERATORS = {
    "": frozenset(_STANDARD.split()),
    "ai.onnx": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}
"""The operators that a graph may have, by domain: each computes its outputs once, from its inputs alone."""


def check_graph_file(path: Path, content: bytes) -> None:
    """Check that the graph in the ``content`` of the file ``path`` has only what a bundle's graph has.

    Raises:
        UnusableFileError: it has something else, or is no ONNX file.
    """
    try:
        _check_model(memoryview(content))
    except _RefusedError as error:
        raise UnusableFileError(path, f"has {error}, which no graph of a bundle has") from None
    except (ValueError, IndexError):
        raise UnusableFileError(path, "not an ONNX file, or damaged") from None


class _RefusedError(Exception):
    """What is refused; no ValueError, as which a wrong encoding counts."""


def _check_model(model: memoryview) -> None:
    graphs = nodes = 0
    for number, value in _fields(model, _MODEL_REFUSED):
        if number == _MODEL_OPSET:
            for of_opset, domain in _fields(_message(value), {}):
                if of_opset == _OPSET_DOMAIN and _text(domain) not in OPERATORS:
                    raise _RefusedError(f"operators of {_text(domain)!r}")
        elif number == _MODEL_GRAPH:
            graphs += 1
            nodes += _check_graph(_message(value), max(_LARGEST_SIZE, len(model)))
    if not graphs:
        raise ValueError("no graph")
    if nodes > _MOST_NODES:
        raise _RefusedError(f"{nodes:,} operators")


def _check_graph(graph: memoryview, largest: int) -> int:
    """Check a graph whose dimensions may be up to ``largest``; the number of its nodes."""
    nodes = 0
    for number, value in _fields(graph, _GRAPH_REFUSED):
        if number == _GRAPH_NODE:
            nodes += 1
            _check_node(_message(value), largest)
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(_message(value), largest)
        elif number in _GRAPH_VALUES:
            _check_sizes(_sizes(_message(value)), largest)
    return nodes


def _sizes(value: memoryview) -> Iterator[int]:
    """The sizes that the type of a tensor fixes."""
    path = (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIMENSION)
    messages = [value]
    for step in path:
        messages = [
            _message(inner)
            for message in messages
            for number, inner in _fields(message, {})
            if number == step
        ]
    for dimension in messages:
        for number, size in _fields(dimension, {}):
            if number == _DIMENSION_VALUE and isinstance(size, int):
                yield size


def _check_node(node: memoryview, largest: int) -> None:
    operator = domain = ""
    for number, value in _fields(node, _NODE_REFUSED):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            for of_attribute, content in _fields(_message(value), _ATTRIBUTE_REFUSED):
                if of_attribute in _ATTRIBUTE_TENSORS:
                    _check_tensor(_message(content), largest)
    if operator not in OPERATORS.get(domain, ()):
        raise _RefusedError(f"the operator {f'{domain}:{operator}'.removeprefix(':')!r}")


def _check_tensor(tensor: memoryview, largest: int) -> None:
    for number, value in _fields(tensor, _TENSOR_REFUSED):
        if number == _TENSOR_DIMENSIONS:
            _check_sizes(_integers(value), largest)


def _check_sizes(sizes: Iterable[int], largest: int) -> None:
    for size in sizes:
        if size > largest:  # one below 0 is very large here
            raise _RefusedError(f"a dimension of {size}")


def _fields(message: memoryview, refused: dict[int, str]) -> Iterator[Field]:
    """The fields of a message in their order.

    Raises:
        ValueError, IndexError: it is no message.
        _RefusedError: one of the numbers ``refused`` is among them, but for an integer 0 or an empty text.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        if wire == _VARINT:
            value, position = _varint(message, position)
        elif wire == _BYTES:
            size, position = _varint(message, position)
            value = message[position : position + size]
            position += size
        else:
            value = message[position : position + _FIXED.get(wire, 0)]
            position += _FIXED.get(wire, end + 1)
        if position > end or not number:
            raise ValueError("a field is cut off")
        if number in refused and (value if isinstance(value, int) else len(value)):
            raise _RefusedError(refused[number])
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The integer at ``position``, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
        if shift >= 70:
            raise ValueError("an integer of more than 64 bits")


def _integers(value: int | memoryview) -> Iterator[int]:
    """A repeated field's integers: one, or several that are packed together."""
    if isinstance(value, int):
        yield value
        return
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        yield number


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer, where a message is needed")
    return value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")
