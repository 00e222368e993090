"""An int8 graph as onnxruntime computes it on an x86 processor without VNNI, in numpy.

There two products of u8 activations and s8 weights, neighbours along the sum, are added in 16 bits, with
saturation. onnxruntime picks its kernels by the processor and cannot be told otherwise, so this is the other
machine. It was seen to equal onnxruntime's AVX2 kernels to 2e-6 in the fixture's logits, where those saturate
too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

INT16 = np.iinfo(np.int16)


def product(a: NDArray[np.uint8], b: NDArray[np.int8], zero_point: int, *, saturate: bool) -> NDArray[Any]:
    """``(a - zero_point) @ b`` for ``a`` of ``(..., inputs)`` and ``b`` of ``(inputs, outputs)``."""
    if b.shape[0] % 2:
        a, b = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 1)]), np.pad(b, [(0, 1), (0, 0)])
    a, b = a.astype(np.int32), b.astype(np.int32)
    total = np.zeros((*a.shape[:-1], b.shape[1]), np.int32)
    for row in range(0, b.shape[0], 2):
        pair = a[..., row, None] * b[row] + a[..., row + 1, None] * b[row + 1]
        total += pair.clip(INT16.min, INT16.max) if saturate else pair
    return total - np.int32(zero_point) * b.sum(0, dtype=np.int32)


def quantize(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], np.float32, int]:
    """Activations in 8 bits, their scale and zero point, as ONNX's DynamicQuantizeLinear defines them."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(values / scale) + zero_point, 0, 255).astype(np.uint8), scale, zero_point


def operators(saturate: bool) -> list[type[OpRun]]:
    """The operators that onnx's own evaluator has not, or not in this form."""

    def matrix_product(x: NDArray[np.float32], weight: NDArray[np.int8], scale: Any) -> NDArray[np.float32]:
        integers, step, zero_point = quantize(x)
        return product(integers, weight, zero_point, saturate=saturate).astype(np.float32) * (step * scale)

    class MatMulInteger(OpRun):
        def _run(self, a: Any, b: Any, a_zero_point: Any, b_zero_point: Any) -> tuple[NDArray[Any]]:
            assert not np.any(b_zero_point)
            return (product(a, b, int(a_zero_point), saturate=saturate),)

    class DequantizeLinear(OpRun):
        def _run(self, x: Any, scale: Any, zero_point: Any, **_: Any) -> tuple[NDArray[np.float32]]:
            return ((x.astype(np.float32) - np.float32(zero_point)) * scale,)

    class DynamicQuantizeLSTM(OpRun):
        op_domain = "com.microsoft"

        def _run(self, x: Any, w: Any, r: Any, bias: Any, *others: Any, **_: Any) -> tuple[NDArray[Any], ...]:
            _, h, c, _, w_scale, _, r_scale, _ = others
            time, batch, _ = x.shape
            gates = matrix_product(x.reshape(time * batch, -1), w[0], w_scale).reshape(time, batch, -1)
            h, c, outputs = h[0], c[0], []
            for given in gates + sum(np.split(bias[0], 2)):
                i, o, f, g = np.split(given + matrix_product(h, r[0], r_scale), 4, axis=-1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                outputs.append(h)
            return np.stack(outputs)[:, None], h[None], c[None]

    return [MatMulInteger, DequantizeLinear, DynamicQuantizeLSTM]


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


class OtherMachine:
    """A graph there; without saturation, what a processor with VNNI computes."""

    def __init__(self, graph: onnx.ModelProto, *, saturate: bool = True) -> None:
        self._evaluator = ReferenceEvaluator(graph, new_ops=operators(saturate))

    def run(self, outputs: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of these names, as onnxruntime's session gives them."""
        return list(self._evaluator.run(outputs, feeds))
