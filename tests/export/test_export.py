"""The graph is what the design says, for every operator set; int8 really is int8; parity is proven."""

from __future__ import annotations

import dataclasses
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
from lm_export.errors import ExportError
from lm_export.forms.recurrent import RecurrentStep
from lm_export.forms.registry import form_of
from lm_export.graph import NEWEST_OPSET, OLDEST_OPSET, make_step_graph
from lm_export.quantize import quantize_int8
from lm_runtime.bundle import LOGITS_FROM, BundleConfig
from lm_runtime.generation.generate import generate_samples
from lm_runtime.sampling.params import SamplingParams
from lm_trainer.config import ModelConfig
from lm_trainer.families import FAMILIES
from lm_trainer.networks.base import LanguageModel, TorchStepModel
from lm_trainer.networks.recurrent import CELLS, RecurrentLM
from lm_trainer.networks.registry import NETWORKS, make_model, step_model
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

SHAPES = [(1, 1), (3, 5), (2, 64)]


def make(
    layers: int = 2, tied: bool = False, opset: int = 17, family: str = "lstm"
) -> tuple[LanguageModel, BundleConfig]:
    layers, window = (1, 5) if family == "window" else (layers, 0)
    config = ModelConfig(700, 40, 40 if tied else 28, layers, tied, family, window)
    model = make_model(config, torch.Generator().manual_seed(layers))
    bundle = BundleConfig(
        model_type=family,
        vocab_size=700,
        embedding_dim=40,
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
        tokenizer="word",
        eos_token_id=0,
        bos_token_id=0,
        unk_token_id=1,
        states=model.states,
        window=window,
        opset=opset,
        vocabulary_sha256="0" * 64,
    )
    return model, bundle


def random_state(model: LanguageModel, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.randint(0, 1 + model.config.vocab_size, tensor.shape, generator=generator)
        for tensor in model.zero_state(batch)
    )


def largest_difference(model: LanguageModel, graph: onnx.ModelProto) -> float:
    session = ort.InferenceSession(graph.SerializeToString())
    worst = 0.0
    for batch, time in SHAPES:
        generator = torch.Generator().manual_seed(batch)
        token = torch.randint(0, 700, (batch, time), generator=generator)
        state = random_state(model, batch, generator)
        feeds = {tensor.name: array.numpy() for tensor, array in zip(model.states, state, strict=True)}
        outputs = ["logits", *(tensor.output for tensor in model.states)]
        found = session.run(outputs, {"token": token.numpy(), **feeds})
        with torch.no_grad():
            logits, after = model(token, state)
        worst = max(
            worst, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, (logits, *after), strict=True))
        )
    return worst


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


def shapes(graph: onnx.ModelProto) -> dict[str, list[str | int]]:
    """The shape of each input and output, its free axes by name."""
    return {
        tensor.name: [size.dim_param or size.dim_value for size in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.graph.input, *graph.graph.output)
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


def wrong_gates(model: LanguageModel) -> LanguageModel:
    with torch.no_grad():
        model.get_parameter("layers.0.weight_hh_l0")[:1] += 0.01
    return model


def test_a_proof_that_fails_writes_no_bundle(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest wrong thing: one row of one gate is off by a hundredth."""
    trace = bundle_writer.make_step_graph
    monkeypatch.setattr(
        bundle_writer,
        "make_step_graph",
        lambda model, config: trace(wrong_gates(restore_model(load_checkpoint(small_run))[0]), config),
    )
    code, out, err = invoke(main, small_run, "--out", "bundle")
    assert (code, out) == (1, "")
    assert "the bundle differs from the checkpoint, none was written" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_carried_fails_the_proof(family_run: Path, family_bundle: Path) -> None:
    model, tokenizer = restore_model(load_checkpoint(family_run))
    exported = lm_runtime.load(family_bundle)
    held_out = load_checkpoint(family_run).facts.held_out.numpy()
    reference = step_model(model, tokenizer)
    assert parity.compare(reference, exported, held_out).holds

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return getattr(reference, name)

        def step(self, token: Any, state: Any) -> Any:
            return reference.step(token, tuple(np.zeros_like(array) for array in state))

    assert not parity.compare(Forgetful(), exported, held_out).holds


def test_one_other_integer_in_a_state_fails_the_proof() -> None:
    """However large the integers are."""
    assert parity.difference(np.array([[70_000]]), np.array([[70_000]])) == 0
    assert parity.difference(np.array([[70_000]]), np.array([[70_001]])) == np.inf
    assert parity.relative_difference(np.array([[70_000]]), np.array([[70_001]])) == np.inf


def test_nan_fails_the_proof(small_run: Path, small_bundle: Path) -> None:
    model, tokenizer = restore_model(load_checkpoint(small_run))
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    held_out = load_checkpoint(small_run).facts.held_out.numpy()
    assert not parity.compare(TorchStepModel(model, tokenizer), lm_runtime.load(small_bundle), held_out).holds


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


def test_torch_and_the_bundle_sample_the_same_ids_and_text(family_run: Path, family_bundle: Path) -> None:
    model, tokenizer = restore_model(load_checkpoint(family_run))
    params = SamplingParams(max_tokens=150, temperature=0.9, top_p=0.95)
    texts = [
        list(generate_samples(candidate, "Mara wrote", params, seed=9, indices=(0, 1, 2)))
        for candidate in (step_model(model, tokenizer), lm_runtime.load(family_bundle))
    ]
    assert texts[0] == texts[1]


def test_lm_score_equals_the_trainer_s_own_figure(family_run: Path, family_bundle: Path) -> None:
    summary = json.loads((family_run / "summary.json").read_text())
    for split in ("valid", "test"):
        result = run_command(
            "lm-score", family_bundle, TINY / f"{split}.txt", "--json", cwd=family_run.parent
        )
        scored = json.loads(result.stdout)
        for name in ("perplexity", "bits_per_byte", "perplexity_per_word"):
            assert scored[name] == pytest.approx(summary[split][name], rel=1e-4)
        assert (scored["tokens"], scored["unknown"]) == (summary[split]["tokens"], summary[split]["unknown"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lm_generate_runs_every_family(family_bundle: Path, precision: str) -> None:
    options = ["--prompt", "the keeper of", "--max-tokens", 30, "--seed", 1, "--precision", precision]
    if precision == "int8" and family_bundle.parent.name.startswith("ngram"):
        result = run_command("lm-generate", family_bundle, *options, cwd=family_bundle, code=2)
        assert result.stderr.splitlines()[-1].endswith("is an n-gram model, which has no int8 graph")
        return
    result = run_command("lm-generate", family_bundle, *options, cwd=family_bundle)
    assert len(result.stdout.split()) > 20


def test_a_bundle_and_its_card_name_the_family(family_bundle: Path) -> None:
    config = lm_runtime.load(family_bundle).config
    names = ", ".join(state.name for state in config.states)
    card = (family_bundle / "README.md").read_text()
    assert f"`(token, {names}) -> (logits, {names})`" in card
    assert FAMILIES[config.model_type].description in card
    if config.model_type != "ngram":
        assert f"In int8: {', '.join(config.quantization['layers']['int8'])}" in card
        assert "processors with VNNI and without compute the same" in card
    assert (config.model_type == "window") == (config.window == 5)
    assert (config.model_type == "ngram") == (config.order == 5) == (config.opset == 0)
    assert (names == "context") == (config.model_type in ("window", "ngram"))
    assert config.num_hidden_layers == {"window": 1, "ngram": 0}.get(config.model_type, 2)
    assert config.parity["greedy_equal"] is True


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
    content = torch.load(small_run / "last.pt", weights_only=True)
    content["progress"]["window"] = 7
    torch.save(content, tmp_path / "early.pt")
    run_command("lm-export", "early.pt", "--out", "bundle", cwd=tmp_path)
    assert "between two validations" in (tmp_path / "bundle/README.md").read_text()


def test_config_metadata_names_what_other_runtimes_ask_for() -> None:
    _, config = make()
    names = {"num_layers", "hidden_size", "sos_id", "eos_id", "vocab_size", "embedding_dim", "model_type"}
    assert names <= config.metadata("fp32").keys()


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize("opset", [OLDEST_OPSET, 17, 23])
def test_a_large_output_layer_can_be_skipped_and_the_state_is_the_same(opset: int, int8: bool) -> None:
    """A prompt's reader wants no logits; who does not know of that sees the graph of every model."""
    sizes = {"vocab_size": 16_500, "embedding_dim": 16, "hidden_size": 64}
    model, config = make(opset=opset)
    model = make_model(ModelConfig(**sizes, tied=False), torch.Generator().manual_seed(1))
    graph = make_step_graph(model, dataclasses.replace(config, **sizes, num_hidden_layers=1))
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


@pytest.mark.parametrize(("vocabulary", "skips"), [(700, False), (27_000, True)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", CELLS)
def test_a_projection_is_in_the_graph_and_in_int8(
    family: str, tied: bool, vocabulary: int, skips: bool
) -> None:
    _, config = make(2, tied, family=family)
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "embedding_dim": 40, "hidden_size": 56}
    measures = ModelConfig(**sizes, num_layers=2, tied=tied, model_type=family, projection=40)
    model = make_model(measures, torch.Generator().manual_seed(2))
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


def test_a_small_output_layer_is_not_worth_it() -> None:
    graph = make_step_graph(*make())
    assert LOGITS_FROM not in [value.name for value in graph.graph.input]
