"""Scales for int8 weights at which every processor computes the same product, and the proof of it.

An x86 processor without VNNI multiplies unsigned activations by signed weights with an instruction
(``vpmaddubsw``) that adds two neighbouring products in 16 bits, and saturates. onnxruntime's kernels for
SSE 4.1, AVX2 and AVX-512 alike pair a weight matrix's rows 0 and 1, 2 and 3, and so on. This module knows
nothing about how a graph is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lm_export.errors import ExportError

LARGEST_PAIR = 32_767 // 255
"""What two neighbouring weights may sum to: activations are at most 255, a sum of products 32,767."""
_LARGEST_WEIGHT = 127
_BEFORE_ROUNDING = LARGEST_PAIR - 0.5
"""Two numbers that sum to at most this sum to at most ``LARGEST_PAIR`` when each is rounded."""
_WEIGHTS = {"MatMulInteger": (1,), "DynamicQuantizeLSTM": (1, 2)}
"""The inputs of each operator that are such weights, ``(..., inputs, outputs)``."""


def int8_weights(graph: onnx.ModelProto) -> Iterator[str]:
    """The names of the weights that activations are multiplied by in int8."""
    for node in graph.graph.node:
        for position in _WEIGHTS.get(node.op_type, ()):
            yield node.input[position]


def largest_pair(matrix: NDArray[Any]) -> float:
    """The largest magnitude that two weights sum to whose products are added in 16 bits.

    Activations are not negative: where two weights differ in sign, the larger of them alone is the bound, and
    a single int8 weight never saturates.

    Args:
        matrix: of a type that holds the sums, ``(..., inputs, outputs)``.
    """
    return float(np.abs(matrix[..., :-1:2, :] + matrix[..., 1::2, :]).max(initial=0))


def quantize_without_saturation(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """The matrix in int8, and its scale: the smallest at which no pair of products saturates.

    Args:
        matrix: ``(..., inputs, outputs)``.
    """
    largest = float(np.abs(matrix).max(initial=0))
    scale = max(largest / _LARGEST_WEIGHT, largest_pair(matrix) / _BEFORE_ROUNDING) or 1.0
    return np.rint(matrix / np.float32(scale)).astype(np.int8), scale


def check_saturation(graph: onnx.ModelProto) -> None:
    """Bound every pair of products by the weights that the graph holds.

    Raises:
        ExportError: a pair could saturate, or weights are no constants.
    """
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "Transpose"}
    for name in int8_weights(graph):
        tensor = stored.get(sources.get(name, name))
        if tensor is None:
            raise ExportError(f"{name}: no constant, so its products have no bound")
        matrix = onnx.numpy_helper.to_array(tensor).astype(np.int16)
        pair = largest_pair(matrix.T if name in sources else matrix)
        if pair > LARGEST_PAIR:
            raise ExportError(
                f"{name}: two neighbouring int8 weights sum to {pair:.0f}, above {LARGEST_PAIR}: their "
                "products could saturate on a processor without VNNI"
            )
