"""An int8 graph computes the same on every processor; one that would not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

import lm_runtime
from conftest import FIXTURE, ROOT
from lm_export.errors import ExportError
from lm_export.saturation import (
    LARGEST_PAIR,
    check_saturation,
    int8_weights,
    largest_pair,
    quantize_without_saturation,
)
from lm_runtime.bundle import MODELS
from without_vnni import OtherMachine, product

SAME = 0.02
"""Between two processors: an activation that is rounded to the other side moves a logit by about 0.005."""
WRONG = 0.5
"""By how much saturation moves a logit of the plain form, at the least: it was seen to be 0.8."""


def logits(machine: OtherMachine | ort.InferenceSession, bundle: Path = FIXTURE) -> NDArray[np.float32]:
    """Of a bundle's graph for the held-out text, token by token, the state carried."""
    model = lm_runtime.load(bundle, provider="cpu")
    state, rows = lm_runtime.initial_state(model, 1), []
    outputs = ["logits", *(tensor.output for tensor in model.config.states)]
    for token in model.tokenizer.encode((ROOT / "data/tiny/valid.txt").read_text(encoding="utf-8")):
        feeds = {tensor.name: array for tensor, array in zip(model.config.states, state, strict=True)}
        row, *state = machine.run(outputs, {"token": np.array([[token]]), **feeds})
        rows.append(row[0, 0])
    assert len(rows) > 100
    return np.stack(rows)


@pytest.fixture(scope="module")
def plain_form(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The fixture's model as onnxruntime's quantizer writes it by itself."""
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    quantize_dynamic(
        onnx.load(FIXTURE / MODELS["fp32"]),
        path,
        op_types_to_quantize=["LSTM", "MatMul", "Gather"],
        weight_type=QuantType.QInt8,
    )
    return onnx.load(path)


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max())


def test_a_processor_without_vnni_computes_the_same_logits() -> None:
    here = ort.InferenceSession(FIXTURE / MODELS["int8"], providers=["CPUExecutionProvider"])
    there = OtherMachine(onnx.load(FIXTURE / MODELS["int8"]))
    assert difference(logits(there), logits(here)) < SAME


def test_it_computes_the_same_in_every_family(family_bundle: Path) -> None:
    path = family_bundle / MODELS["int8"]
    if lm_runtime.load(family_bundle).config.model_type == "ngram":
        assert not path.exists()
        return
    here = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert (
        difference(logits(OtherMachine(onnx.load(path)), family_bundle), logits(here, family_bundle)) < SAME
    )


def test_the_plain_form_computes_something_else_there(plain_form: onnx.ModelProto) -> None:
    """So the emulation saturates, and the test above can fail."""
    saturated, exact = (logits(OtherMachine(plain_form, saturate=saturate)) for saturate in (True, False))
    assert difference(saturated, exact) > WRONG


def test_the_plain_form_is_refused(plain_form: onnx.ModelProto) -> None:
    with pytest.raises(
        ExportError, match=r"W0_quantized: two neighbouring int8 weights sum to \d+, above 128"
    ):
        check_saturation(plain_form)


def test_the_fixture_has_no_pair_that_saturates() -> None:
    graph = onnx.load(FIXTURE / MODELS["int8"])
    assert len(list(int8_weights(graph))) == 5
    check_saturation(graph)


def test_a_single_pair_is_found_in_a_transposed_matrix_too() -> None:
    graph = onnx.load(FIXTURE / MODELS["int8"])
    name = next(node.input[1] for node in graph.graph.node if node.op_type == "MatMulInteger")
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    matrix = onnx.numpy_helper.to_array(stored[name]).copy()
    matrix[:2, 7] = 64, 64
    stored[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(matrix.T), "table"))
    graph.graph.node.insert(0, onnx.helper.make_node("Transpose", ["table"], [name], perm=[1, 0]))
    check_saturation(graph)
    matrix[1, 7] = 65
    stored[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(matrix.T), "table"))
    with pytest.raises(ExportError, match=f"{name}: two neighbouring int8 weights sum to 129"):
        check_saturation(graph)


def test_weights_that_are_no_constants_have_no_bound() -> None:
    graph = onnx.load(FIXTURE / MODELS["int8"])
    for tensor in list(graph.graph.initializer):
        if tensor.name == "W0_quantized":
            graph.graph.initializer.remove(tensor)
    with pytest.raises(ExportError, match="W0_quantized: no constant"):
        check_saturation(graph)


@pytest.mark.parametrize(
    ("weights", "pair"),
    [
        ([64, 64], 128),
        ([-100, -50], 150),
        ([100, -50], 50),
        ([1, 60, 70, 2], 72),  # 60 and 70 are neighbours, but no pair
        ([10, 20, 90], 30),  # the last is alone
        ([127], 0),
    ],
)
def test_rows_are_paired_as_the_kernels_do(weights: list[int], pair: int) -> None:
    assert largest_pair(np.array(weights, np.int16)[:, None]) == pair


@pytest.mark.parametrize(
    ("weights", "saturates"),
    [([64, 64], False), ([64, 65], True), ([-64, -64], False), ([-65, -64], True), ([127, -128], False)],
)
def test_the_bound_is_that_of_the_instruction(weights: list[int], saturates: bool) -> None:
    b = np.array(weights, np.int8)[:, None]
    activations = np.array([[255, 255], [255, 0], [0, 255]], np.uint8)
    there, here = (product(activations, b, 0, saturate=saturate) for saturate in (True, False))
    assert (largest_pair(b.astype(np.int16)) > LARGEST_PAIR) == saturates == (not np.array_equal(there, here))


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 5)),
        elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
    )
)
@settings(max_examples=200, deadline=None)
def test_the_scale_is_the_smallest_without_saturation(matrix: NDArray[np.float32]) -> None:
    integers, scale = quantize_without_saturation(matrix)
    wide = integers.astype(np.int16)
    assert largest_pair(wide) <= LARGEST_PAIR
    assert np.abs(wide).max() <= 127
    # Each weight is rounded to the nearest step, by float32's rounding more.
    assert np.abs(integers * np.float64(scale) - matrix).max() <= scale * (0.5 + 1e-4)
    if matrix.any():
        assert np.abs(wide).max() == 127 or largest_pair(wide) >= LARGEST_PAIR - 1
