"""The graph is what the design says, for every operator set; int8 really is int8; parity is proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import lm_runtime
from conftest import SMALL, TINY, Invoke, run_command
from lm_export import bundle_writer, parity
from lm_export import quantize as quantize_module
from lm_export.command import main
from lm_export.graph import NEWEST_OPSET, OLDEST_OPSET, ExportError, StepModule, make_step_graph
from lm_export.quantize import quantize_int8
from lm_runtime.bundle import BundleConfig, recurrent_states
from lm_runtime.generation import generate_samples
from lm_runtime.sampling import SamplingParams
from lm_trainer.checkpoint import load_checkpoint, restore_model
from lm_trainer.config import ModelConfig
from lm_trainer.model import RecurrentLM, TorchStepModel

SHAPES = [(1, 1), (3, 5), (2, 64)]


def make(layers: int = 2, tied: bool = False, opset: int = 17) -> tuple[RecurrentLM, BundleConfig]:
    config = ModelConfig(700, 40, 40 if tied else 28, layers, tied)
    model = RecurrentLM(config, torch.Generator().manual_seed(layers))
    bundle = BundleConfig(
        model_type="lstm",
        vocab_size=700,
        embedding_dim=40,
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
        tokenizer="word",
        eos_token_id=0,
        bos_token_id=0,
        unk_token_id=1,
        states=recurrent_states(("h", "c"), layers, config.hidden_size),
        opset=opset,
        vocabulary_sha256="0" * 64,
    )
    return model, bundle


def largest_difference(model: RecurrentLM, graph: onnx.ModelProto) -> float:
    session = ort.InferenceSession(graph.SerializeToString())
    worst = 0.0
    for batch, time in SHAPES:
        generator = torch.Generator().manual_seed(batch)
        token = torch.randint(0, 700, (batch, time), generator=generator)
        state = tuple(torch.randn(tensor.shape, generator=generator) for tensor in model.zero_state(batch))
        feeds = {"token": token.numpy(), "h": state[0].numpy(), "c": state[1].numpy()}
        found = session.run(["logits", "h_out", "c_out"], feeds)
        with torch.no_grad():
            logits, after = model(token, state)
        worst = max(
            worst, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, (logits, *after), strict=True))
        )
    return worst


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST_OPSET + 1))
def test_every_opset_gives_that_opset_and_the_same_numbers(opset: int) -> None:
    model, config = make(opset=opset)
    graph = make_step_graph(model, config)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    assert largest_difference(model, graph) < 1e-5


@pytest.mark.parametrize(("layers", "tied"), [(1, False), (1, True), (3, True)])
def test_the_graph_is_small_and_its_weights_are_initializers(layers: int, tied: bool) -> None:
    model, config = make(layers, tied)
    graph = make_step_graph(model, config)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("LSTM") == layers
    assert operators.count("MatMul") == operators.count("Gather") == 1
    assert len(operators) <= 8 + 6 * layers
    numbers = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if tensor.data_type == 1)
    assert numbers == sum(parameter.numel() for parameter in model.parameters())
    assert largest_difference(model, graph) < 1e-5
    assert {entry.key: entry.value for entry in graph.metadata_props} == config.metadata("fp32")
    shapes = {
        tensor.name: [size.dim_param or size.dim_value for size in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.graph.input, *graph.graph.output)
    }
    state = [layers, "batch", config.hidden_size]
    assert shapes == {
        "token": ["batch", "time"],
        "h": state,
        "c": state,
        "logits": ["batch", "time", 700],
        "h_out": state,
        "c_out": state,
    }


def test_the_traced_module_is_the_model() -> None:
    model, _ = make()
    token, state = torch.randint(0, 700, (2, 9)), model.zero_state(2)
    logits, (h, c) = model(token, state)
    for found, expected in zip(StepModule(model)(token, *state), (logits, h, c), strict=True):
        assert float((found - expected).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_int8_quantizes_embedding_layers_and_head(tied: bool) -> None:
    model, config = make(2, tied)
    graph = make_step_graph(model, config)
    quantized = quantize_int8(graph)
    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("DynamicQuantizeLSTM") == 2
    assert operators.count("MatMulInteger") == 1
    assert "LSTM" not in operators
    assert "MatMul" not in operators
    large_floats = [
        tensor.name
        for tensor in quantized.graph.initializer
        if tensor.data_type == 1 and np.prod(tensor.dims) > 1000
    ]
    assert large_floats == []
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


def test_the_bundle_carries_its_proof_and_its_facts(small_bundle: Path) -> None:
    config = json.loads((small_bundle / "config.json").read_text())
    proof = config["parity"]
    assert proof["steps"] >= 200
    assert proof["batches"] == [1, 8]
    assert 0 <= max(proof["logits"], proof["states"]) < proof["tolerance"] == 1e-4
    assert proof["greedy_equal"] is True
    assert config["opset"] == 17
    assert config["quantization"]["cost_percent"] <= 1
    card = (small_bundle / "README.md").read_text()
    assert "Validation perplexity" in card
    assert "parity" in card.lower()


def wrong_gates(model: RecurrentLM) -> RecurrentLM:
    with torch.no_grad():
        model.layers[0].weight_hh_l0[:1] += 0.01
    return model


def test_a_proof_that_fails_writes_no_bundle(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest wrong thing: one row of one gate is off by a hundredth."""
    trace = bundle_writer.make_step_graph
    monkeypatch.setattr(
        bundle_writer,
        "make_step_graph",
        lambda model, config: trace(
            wrong_gates(restore_model(small_run, load_checkpoint(small_run))[0]), config
        ),
    )
    code, out, err = invoke(main, small_run, "--out", "bundle")
    assert (code, out) == (1, "")
    assert "differs from the torch model, no bundle was written" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_carried_fails_the_proof(small_run: Path, small_bundle: Path) -> None:
    model, tokenizer = restore_model(small_run, load_checkpoint(small_run))
    exported = lm_runtime.load(small_bundle)
    held_out = load_checkpoint(small_run)["held_out"].numpy()
    assert parity.compare(TorchStepModel(model, tokenizer), exported, held_out).holds

    class Forgetful(TorchStepModel):
        def step(self, token: Any, state: Any) -> Any:
            return super().step(token, tuple(np.zeros_like(array) for array in state))

    assert not parity.compare(Forgetful(model, tokenizer), exported, held_out).holds


def test_nan_fails_the_proof(small_run: Path, small_bundle: Path) -> None:
    model, tokenizer = restore_model(small_run, load_checkpoint(small_run))
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    held_out = load_checkpoint(small_run)["held_out"].numpy()
    assert not parity.compare(TorchStepModel(model, tokenizer), lm_runtime.load(small_bundle), held_out).holds


def test_int8_that_costs_too_much_writes_no_bundle(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writer, "LARGEST_INT8_COST", -1.0)
    code, _, err = invoke(main, small_run, "--out", "bundle", "--quantize", "int8")
    assert code == 1
    assert "more than -100%; no bundle was written" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_torch_and_the_bundle_sample_the_same_ids_and_text(small_run: Path, small_bundle: Path) -> None:
    model, tokenizer = restore_model(small_run, load_checkpoint(small_run))
    params = SamplingParams(max_tokens=150, temperature=0.9, top_p=0.95)
    texts = [
        list(generate_samples(candidate, "Mara wrote", params, seed=9, indices=(0, 1, 2)))
        for candidate in (TorchStepModel(model, tokenizer), lm_runtime.load(small_bundle))
    ]
    assert texts[0] == texts[1]


def test_lm_score_equals_the_trainer_s_own_figure(small_run: Path, small_bundle: Path) -> None:
    summary = json.loads((small_run / "summary.json").read_text())
    for split in ("valid", "test"):
        result = run_command("lm-score", small_bundle, TINY / f"{split}.txt", "--json", cwd=small_run.parent)
        scored = json.loads(result.stdout)
        for name in ("perplexity", "bits_per_byte", "perplexity_per_word"):
            assert scored[name] == pytest.approx(summary[split][name], rel=1e-4)
        assert (scored["tokens"], scored["unknown"]) == (summary[split]["tokens"], summary[split]["unknown"])


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_other_tokenizers_go_the_whole_way(tmp_path: Path, tokenizer: str) -> None:
    recipe = [*SMALL, "--tokenizer", tokenizer, "--vocab-size", 300, "--hidden-size", 24, "--tied"]
    run_command("lm-train", TINY, "--out", "run", "--epochs", 2, *recipe, cwd=tmp_path)
    run_command("lm-export", "run", "--out", "bundle", cwd=tmp_path)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    result = run_command("lm-score", "bundle", TINY / "valid.txt", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["perplexity"] == pytest.approx(summary["valid"]["perplexity"], rel=1e-4)
    result = run_command("lm-generate", "bundle", "--prompt", "The ", "--seed", 1, cwd=tmp_path)
    assert len(result.stdout) > 20


def test_the_newest_checkpoint_of_an_unfinished_run_is_exported_too(small_run: Path, tmp_path: Path) -> None:
    """In the middle of an epoch there is no figure for its weights, and the card says so."""
    content = load_checkpoint(small_run / "last.pt")
    content["progress"]["window"] = 7
    torch.save(content, tmp_path / "early.pt")
    run_command("lm-export", "early.pt", "--out", "bundle", cwd=tmp_path)
    assert "between two validations" in (tmp_path / "bundle/README.md").read_text()


def test_config_metadata_names_what_other_runtimes_ask_for() -> None:
    _, config = make()
    names = {"num_layers", "hidden_size", "sos_id", "eos_id", "vocab_size", "embedding_dim", "model_type"}
    assert names <= config.metadata("fp32").keys()
