"""The step graph is what the design says, for every family and operator set, and equals the torch model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from conftest import Invoke
from lm_export.command import main
from lm_export.errors import ExportError
from lm_export.forms.recurrent import RecurrentStep
from lm_export.graph import NEWEST_OPSET, OLDEST_OPSET, make_step_graph
from lm_export.quantize import quantize_int8
from lm_runtime.bundle import LOGITS_FROM
from lm_trainer.config import ModelConfig
from lm_trainer.networks.family import make_model
from lm_trainer.networks.recurrent import CELLS, RecurrentLM
from step_graphs import largest_difference, make, random_state, shapes


@pytest.mark.parametrize(
    ("family", "opset"),
    [("lstm", opset) for opset in range(OLDEST_OPSET, NEWEST_OPSET + 1)]
    # The others only where the conversion changes: below 18, at 18, and at the newest.
    + [(family, opset) for family in ("gru", "rnn", "window") for opset in (OLDEST_OPSET, 18, NEWEST_OPSET)],
)
@pytest.mark.parametrize("layers", [1, 2])
def test_every_opset_gives_that_opset_and_the_same_numbers(family: str, opset: int, layers: int) -> None:
    model, config = make(layers, opset=opset, family=family)
    graph = make_step_graph(model, config)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    assert largest_difference(model, graph) < 1e-5


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize(("layers", "tied"), [(1, False), (1, True), (3, True)])
def test_the_graph_is_small_and_its_weights_are_initializers(family: str, layers: int, tied: bool) -> None:
    model, config = make(layers, tied, family=family)
    graph = make_step_graph(model, config)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count(family.upper()) == layers
    assert operators.count("MatMul") == operators.count("Gather") == 1
    assert len(operators) <= 15 + 6 * layers
    numbers = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if tensor.data_type == 1)
    assert numbers == sum(parameter.numel() for parameter in model.parameters())
    assert largest_difference(model, graph) < 1e-5
    assert {entry.key: entry.value for entry in graph.metadata_props} == config.metadata("fp32")
    state = [layers, "batch", config.hidden_size]
    assert shapes(graph) == {
        "token": ["batch", "time"],
        "logits": ["batch", "time", 700],
        **dict.fromkeys(("h", "c", "h_out", "c_out") if family == "lstm" else ("h", "h_out"), state),
    }


def test_the_window_graph_is_plain_operators_and_an_integer_state() -> None:
    model, config = make(family="window")
    graph = make_step_graph(model, config)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("MatMul") == 2
    assert {"Loop", "Scan", "If"}.isdisjoint(operators)
    numbers = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if tensor.data_type == 1)
    assert numbers == sum(parameter.numel() for parameter in model.parameters())
    assert shapes(graph) == {
        "token": ["batch", "time"],
        "logits": ["batch", "time", 700],
        "context": ["batch", 4],
        "context_out": ["batch", 4],
    }
    assert {entry.key: entry.value for entry in graph.metadata_props} == config.metadata("fp32")
    assert config.metadata("fp32")["window"] == "5"


@pytest.mark.parametrize("family", CELLS)
def test_the_traced_module_is_the_model(family: str) -> None:
    model, _ = make(family=family)
    assert isinstance(model, RecurrentLM)
    generator = torch.Generator().manual_seed(0)
    token, state = torch.randint(0, 700, (2, 9), generator=generator), random_state(model, 2, generator)
    logits, after = model(token, state)
    traced_logits, traced_after = RecurrentStep(model)(token, state)
    for found, expected in zip((traced_logits, *traced_after), (logits, *after), strict=True):
        assert float((found - expected).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("opset", [OLDEST_OPSET - 1, NEWEST_OPSET + 1, -3])
def test_an_impossible_opset_is_refused(invoke: Invoke, small_run: Path, opset: int) -> None:
    code, _, err = invoke(main, small_run, "--opset", opset, "--out", "b")
    assert (code, err) == (
        2,
        f"lm-export: opset must be from {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}\n",
    )


def test_an_opset_that_the_converter_silently_left_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = make(opset=13)
    monkeypatch.setattr("lm_export.graph.OLDEST_OPSET", 13)
    with pytest.raises(ExportError, match=r"the exporter wrote opset .*18.*, not 13"):
        make_step_graph(model, config)


def test_config_metadata_names_what_other_runtimes_ask_for() -> None:
    _, config = make()
    names = {"num_layers", "hidden_size", "sos_id", "eos_id", "vocab_size", "embedding_dim", "model_type"}
    assert names <= config.metadata("fp32").keys()


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize(
    ("opset", "adaptive"), [(OLDEST_OPSET, False), (OLDEST_OPSET, True), (17, False), (17, True), (23, False)]
)
def test_a_large_output_layer_can_be_skipped_and_the_state_is_the_same(
    opset: int, adaptive: bool, int8: bool
) -> None:
    """A prompt's reader wants no logits; who does not know of that sees the graph of every model.

    What an adaptive graph shows of its output layer stays whole.
    """
    sizes = {"vocab_size": 16_500, "embedding_dim": 16, "hidden_size": 64}
    model, config = make(opset=opset)
    model = make_model(ModelConfig(**sizes, tied=False), torch.Generator().manual_seed(1))
    config = dataclasses.replace(config, **sizes, num_hidden_layers=1)
    graph = make_step_graph(model, config, adaptive=adaptive)
    graph = quantize_int8(graph) if int8 else graph
    onnx.checker.check_model(graph, full_check=True)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [tensor.name for tensor in session.get_inputs()] == ["token", "h", "c"]
    assert [tensor.name for tensor in session.get_overridable_initializers()] == [LOGITS_FROM]
    token = np.random.default_rng(0).integers(0, 16_500, (2, 7))
    feeds = {"token": token, **{name: np.zeros((1, 2, 64), np.float32) for name in ("h", "c")}}
    logits, *states = session.run(None, feeds)
    if not int8:
        expected, _ = model(torch.from_numpy(token), model.zero_state(2))
        assert np.abs(logits - expected.detach().numpy()).max() < 1e-5
    for start in (0, 6, 7):
        some, *also = session.run(None, {**feeds, LOGITS_FROM: np.array([start])})
        assert some.shape == (2, 7 - start, 16_500)
        if not int8:  # there one scale of the activations spans the call
            assert np.abs(some - logits[:, start:]).max(initial=0) < 1e-5
        assert all(map(np.array_equal, also, states))


def test_a_small_output_layer_is_not_worth_it() -> None:
    graph = make_step_graph(*make())
    assert LOGITS_FROM not in [value.name for value in graph.graph.input]
