"""The form of a family: what is traced and what is written; a family without one is traced as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from lm_export.errors import ExportError
from lm_export.forms import registry
from lm_export.forms.form import Form
from lm_export.forms.recurrent import RecurrentForm
from lm_export.forms.registry import form_of, register_form
from lm_export.graph import make_step_graph
from lm_export.quantize import quantize_int8
from lm_runtime.bundle import BundleConfig, StateTensor
from lm_trainer.config import ModelConfig
from lm_trainer.families import FAMILIES
from lm_trainer.networks.base import LanguageModel, TorchState
from lm_trainer.networks.family import make_model
from lm_trainer.networks.recurrent import CELLS

CLOSE = 1e-5
"""fp32's rounding in another order of operations, for logits below 10."""


class RunningMean(LanguageModel):
    """A family from outside: the mean of the embeddings that were read, with the sum as its state."""

    def __init__(self) -> None:
        config = ModelConfig(50, 8, 8, 1)
        super().__init__(config, (StateTensor("sum", "sum_out", "float32", (None, 8)),))
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50)

    def read(self, token: Tensor, state: TorchState, *dropout: Any) -> tuple[Tensor, TorchState]:
        sums = state[0][:, None] + self.embedding(token).cumsum(1)
        return torch.tanh(sums), (sums[:, -1],)


def config_of(model: LanguageModel, family: str) -> BundleConfig:
    return BundleConfig(
        model_type=family,
        vocab_size=50,
        embedding_dim=8,
        hidden_size=8,
        num_hidden_layers=1,
        tie_word_embeddings=False,
        tokenizer="word",
        eos_token_id=0,
        bos_token_id=0,
        unk_token_id=1,
        states=model.states,
        opset=17,
        vocabulary_sha256="0" * 64,
    )


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_FORMS", dict(registry._FORMS))
    yield


def difference(model: LanguageModel, graph: onnx.ModelProto) -> float:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    token, state = torch.randint(0, 50, (3, 7)), torch.randn(3, 8)
    logits, (after,) = model(token, (state,))
    found = session.run(["logits", "sum_out"], {"token": token.numpy(), "sum": state.numpy()})
    return max(
        float(np.abs(a - b.detach().numpy()).max()) for a, b in zip(found, (logits, after), strict=True)
    )


def test_a_family_without_a_form_is_traced_as_it_is() -> None:
    model = RunningMean()
    graph = make_step_graph(model, config_of(model, "running-mean"))
    assert difference(model, graph) < CLOSE
    quantized = quantize_int8(graph)
    assert "MatMulInteger" in [node.op_type for node in quantized.graph.node]
    assert form_of("running-mean").layers(config_of(model, "running-mean"))["int8"] == ["all weight matrices"]


def test_a_registered_form_is_what_is_written(forms: None) -> None:
    class Doubled(nn.Module):
        def __init__(self, model: LanguageModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, token: Tensor, state: TorchState) -> tuple[Tensor, TorchState]:
            logits, after = self.model(token, state)
            return logits * 2, after

    class DoublingForm(Form):
        def module(self, model: LanguageModel) -> nn.Module:
            return Doubled(model)

        def check(self, graph: onnx.GraphProto, config: BundleConfig) -> None:
            if config.vocab_size != 50:
                raise ExportError("another vocabulary")

    register_form("running-mean", DoublingForm())
    model = RunningMean()
    graph = make_step_graph(model, config_of(model, "running-mean"))
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter *= 2
    assert difference(model, graph) < CLOSE


def test_every_family_of_the_project_has_a_form_of_its_own() -> None:
    assert registry._FORMS.keys() == FAMILIES.keys()
    assert {name for name in FAMILIES if isinstance(form_of(name), RecurrentForm)} == CELLS.keys()


def test_weights_that_one_file_cannot_hold_are_refused_with_the_bound() -> None:
    model = RunningMean()
    model.more = nn.Parameter(torch.empty(1 << 29, device="meta"))
    message = "the weights are 2,147,487,048 bytes; one ONNX file holds fewer than 2,147,483,648"
    with pytest.raises(ValueError, match=message):
        make_step_graph(model, config_of(model, "running-mean"))


def test_layers_and_weights_that_are_not_in_the_graph_are_an_error() -> None:
    """As torch's exporter would leave them, if it unrolled a layer or reordered its gates in the graph."""
    layers = ModelConfig(50, 8, 8, 2, tied=False)
    model = make_model(layers, torch.Generator())
    config = dataclasses.replace(config_of(model, "lstm"), num_hidden_layers=2)
    graph, form = make_step_graph(model, config).graph, form_of("lstm")
    form.check(graph, config)
    with pytest.raises(ExportError, match="2 LSTM operators for 3 layers"):
        form.check(graph, dataclasses.replace(config, num_hidden_layers=3))
    node = next(node for node in graph.node if node.op_type == "LSTM")
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == node.input[2]))
    with pytest.raises(ExportError, match=f"the weights of {node.name} are no initializers"):
        form.check(graph, config)
