"""int8 really is int8, each weight is stored once, and what fails a check is not written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from conftest import Invoke
from lm_export import quantize as quantize_module
from lm_export.command import main
from lm_export.errors import ExportError
from lm_export.forms.registry import form_of
from lm_export.graph import make_step_graph
from lm_export.quantize import quantize_int8
from lm_runtime.bundle import LOGITS_FROM
from lm_trainer.config import ModelConfig
from lm_trainer.networks.family import make_model
from lm_trainer.networks.recurrent import CELLS
from small_runs import NETWORKS
from step_graphs import largest_difference, make, shapes

INT8 = {
    "lstm": {"DynamicQuantizeLSTM": 2, "MatMulInteger": 1},
    "gru": {"GRU": 2, "MatMulInteger": 1},
    "rnn": {"RNN": 2, "MatMulInteger": 1},
    "window": {"MatMulInteger": 2},
}


@pytest.mark.parametrize(
    ("family", "tied"),
    [(family, tied) for family in NETWORKS for tied in (False, True) if not (family == "window" and tied)],
)
def test_int8_quantizes_all_that_onnxruntime_has_in_int8(family: str, tied: bool) -> None:
    model, config = make(2, tied, family=family)
    quantized = quantize_int8(make_step_graph(model, config))
    operators = [node.op_type for node in quantized.graph.node]
    layers = ("LSTM", "GRU", "RNN", "MatMul", "DynamicQuantizeLSTM", "MatMulInteger")
    assert {name: operators.count(name) for name in layers if name in operators} == INT8[family]
    large_floats = {
        tensor.name
        for tensor in quantized.graph.initializer
        if tensor.data_type == 1 and np.prod(tensor.dims) > 700  # longer than a bias of the output layer
    }
    kept = [node.input[1:3] for node in quantized.graph.node if node.op_type in ("GRU", "RNN")]
    assert large_floats == {name for names in kept for name in names}
    assert largest_difference(model, quantized) < 0.1


def matrices(graph: onnx.ModelProto) -> int:
    """How many numbers its weight matrices hold."""
    return sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if len(tensor.dims) > 1)


def test_int8_holds_a_tied_matrix_once() -> None:
    model, config = make(2, tied=True)
    graph = make_step_graph(model, config)
    quantized = quantize_int8(graph)
    onnx.checker.check_model(quantized, full_check=True)
    assert matrices(quantized) == matrices(graph)
    tables = [tensor for tensor in quantized.graph.initializer if list(tensor.dims) == [700, 40]]
    assert [tensor.data_type for tensor in tables] == [onnx.TensorProto.INT8]
    uses = [node.op_type for node in quantized.graph.node if tables[0].name in node.input]
    assert sorted(uses) == ["Gather", "Transpose"]


def test_the_transpose_of_a_tied_int8_matrix_is_done_as_onnxruntime_loads(tmp_path: Path) -> None:
    """A step pays nothing for it: what runs is the graph of an untied model."""
    operators = []
    for tied in (False, True):
        model, config = make(1, tied)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that the file is of use on this machine only
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        quantized = quantize_int8(make_step_graph(model, config))
        ort.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
        operators.append([node.op_type for node in optimized.graph.node])
    assert operators[0] == operators[1]


def test_a_tied_matrix_that_int8_holds_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = make(1, tied=True)
    monkeypatch.setattr(quantize_module, "_tied_weight", lambda graph: None)
    with pytest.raises(ExportError, match="int8 stores 69,120 weights, where fp32 has 41,120"):
        quantize_int8(make_step_graph(model, config))


def test_a_layer_that_stays_fp32_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = make(1, tied=True)
    graph = make_step_graph(model, config)
    monkeypatch.setattr("lm_export.quantize._with_folded_transposes", lambda graph: graph)
    with pytest.raises(ExportError, match="0 of 1 MatMul operators were quantized"):
        quantize_int8(graph)


def test_an_embedding_that_stays_fp32_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = make(1)
    quantize = quantize_module.quantize_dynamic

    def without_gather(graph: object, path: object, **options: object) -> None:
        quantize(graph, path, **{**options, "op_types_to_quantize": ["LSTM", "MatMul"]})

    monkeypatch.setattr(quantize_module, "quantize_dynamic", without_gather)
    with pytest.raises(ExportError, match=r"stayed in fp32: embedding\.weight"):
        quantize_int8(make_step_graph(model, config))


@pytest.mark.parametrize(("vocabulary", "skips"), [(700, False), (27_000, True)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", CELLS)
def test_a_projection_is_in_the_graph_and_in_int8(
    family: str, tied: bool, vocabulary: int, skips: bool
) -> None:
    _, config = make(2, tied, family=family)
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "embedding_dim": 40, "hidden_size": 56}
    model_config = ModelConfig(**sizes, num_layers=2, tied=tied, model_type=family, projection=40)
    model = make_model(model_config, torch.Generator().manual_seed(2))
    config = dataclasses.replace(config, **sizes, projection=40, states=model.states)
    graph = make_step_graph(model, config)
    assert [node.op_type for node in graph.graph.node].count("MatMul") == 2
    assert (LOGITS_FROM in [value.name for value in graph.graph.input]) == skips
    assert largest_difference(model, graph) < 1e-5
    quantized = quantize_int8(graph)
    assert [node.op_type for node in quantized.graph.node].count("MatMulInteger") == 2
    assert "projection" in form_of(family).layers(config)["int8"]
    session = ort.InferenceSession(quantized.SerializeToString())
    feeds = {name: np.zeros((2, 1, 56), np.float32) for name in ("h", "c") if name in shapes(graph)}
    token = np.array([[5, 7]])
    expected = model(torch.from_numpy(token), model.zero_state(1))[0].detach().numpy()
    assert np.abs(session.run(["logits"], {"token": token, **feeds})[0] - expected).max() < 0.05


def test_int8_that_costs_too_much_writes_no_bundle(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_export.int8_cost.LARGEST_COST", -1.0)
    code, _, err = invoke(main, small_run, "--out", "bundle", "--quantize", "int8")
    assert code == 1
    assert "more than -100%; no bundle was written" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_int8_that_could_saturate_writes_no_bundle(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantizer's own scales: what a processor with VNNI measures says nothing about one without."""
    monkeypatch.setattr(quantize_module, "_scale_anew", lambda graph, quantized: None)
    code, _, err = invoke(main, small_run, "--out", "bundle", "--quantize", "int8")
    assert code == 1
    assert "their products could saturate on a processor without VNNI" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
