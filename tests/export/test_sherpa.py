"""What sherpa-onnx's recognizers read of a bundle is what lm-score says: the package itself runs here.

Its transducers are scripted: the "acoustics" are a table, a row of scores for each frame.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import sherpa_onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import lm_runtime
from conftest import Invoke, one_line, tree
from lm_export.command import main as lm_export
from lm_export.formats import sherpa
from lm_runtime.bundle import BundleConfig, Precision
from lm_runtime.commands.score import main as lm_score

TOLERANCE = 1e-4
"""Of a log-probability in fp32: two builds of onnxruntime sum in different orders, which gave 3e-6."""
RATE = 16_000
TEXT = "the keeper of the lamp"
FRAMES = 24

RECURRENT = pytest.mark.parametrize("family_run", ["lstm", "gru", "rnn"], indirect=True)


@pytest.fixture(scope="module")
def bundle(family_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurrent model with its graphs for sherpa-onnx."""
    out = tmp_path_factory.mktemp("sherpa") / "bundle"
    with pytest.raises(SystemExit) as exit_:
        lm_export.main([str(family_run), "--out", str(out), "--quantize", "int8", "--format", "sherpa"])
    assert exit_.value.code == 0
    return out


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)  # type: ignore[arg-type]


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
    constants: dict[str, NDArray[np.generic]],
    **metadata: object,
) -> None:
    graph = helper.make_graph(
        nodes,
        "scripted",
        [helper.make_tensor_value_info(name, *facts) for name, facts in inputs.items()],
        [helper.make_tensor_value_info(name, *facts) for name, facts in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_transducer(folder: Path, table: NDArray[np.float32]) -> dict[str, str]:
    """Encoders that give the rows of ``table`` ``(frames, vocab)`` one by one, whatever they hear."""
    frames, vocab = table.shape
    number, count = TensorProto.FLOAT, TensorProto.INT64
    silent = np.full((FRAMES, vocab), -50, dtype=np.float32)
    silent[:, 0] = 0
    silent[:frames] = table
    # The state counts the chunks: each gives the next row.
    save(
        folder / "online.onnx",
        [
            node("Add", "h one", "h_next"),
            node("Identity", "c", "c_next"),
            node("Cast", "h", "place", to=count),
            node("Clip", "place low high", "row"),
            node("Squeeze", "row zero_axis", "rows"),
            node("Gather", "table rows", "encoder_out"),
        ],
        {"x": (number, ["N", 4, 80]), "h": (number, [1, "N", 1]), "c": (number, [1, "N", 1])},
        {
            "encoder_out": (number, ["N", 1, vocab]),
            "h_next": (number, [1, "N", 1]),
            "c_next": (number, [1, "N", 1]),
        },
        {
            "table": silent,
            "one": np.array(1, dtype=np.float32),
            "zero_axis": np.array([0]),
            "low": np.array(0),
            "high": np.array(FRAMES - 1),
        },
        model_type="lstm",
        num_encoder_layers=1,
        T=4,
        decode_chunk_len=4,
        rnn_hidden_size=1,
        d_model=1,
    )
    save(
        folder / "offline.onnx",
        [
            node("Shape", "x", "texts", start=0, end=1),
            node("Concat", "texts shape", "all", axis=0),
            node("Expand", "table all", "encoder_out"),
            node("Expand", "length texts", "lengths"),
            node("Identity", "x_lens", "heard"),
        ],
        {"x": (number, ["N", "T", 80]), "x_lens": (count, ["N"])},
        {"encoder_out": (number, ["N", frames, vocab]), "lengths": (count, ["N"]), "heard": (count, ["N"])},
        {
            "table": silent[:frames],
            "shape": np.array([frames, vocab]),
            "length": np.array([frames]),
        },
        model_type="zipformer",
    )
    save(
        folder / "decoder.onnx",
        [
            node("Shape", "y", "texts", start=0, end=1),
            node("Concat", "texts width", "shape", axis=0),
            node("ConstantOfShape", "shape", "decoder_out"),
        ],
        {"y": (count, ["N", 2])},
        {"decoder_out": (number, ["N", vocab])},
        {"width": np.array([vocab])},
        vocab_size=vocab,
        context_size=2,
    )
    save(
        folder / "joiner.onnx",
        [node("Add", "encoder_out decoder_out", "logit")],
        {"encoder_out": (number, ["N", vocab]), "decoder_out": (number, ["N", vocab])},
        {"logit": (number, ["N", vocab])},
        {},
        joiner_dim=vocab,
    )
    return {name: str(folder / f"{name}.onnx") for name in ("decoder", "joiner")}


def script(ids: list[int], vocab: int) -> NDArray[np.float32]:
    """Scores that leave no doubt about ``ids``, a frame for each."""
    table = np.full((len(ids), vocab), -50, dtype=np.float32)
    table[np.arange(len(ids)), ids] = 0
    return table


def recognize_online(
    folder: Path, bundle: Path, table: NDArray[np.float32], lm: str
) -> tuple[str, list[float]]:
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(bundle / "tokens.txt"),
        encoder=str(folder / "online.onnx"),
        **write_transducer(folder, table),
        model_type="lstm",
        decoding_method="modified_beam_search",
        num_threads=1,
        lm=str(bundle / lm),
        lm_scale=0.1,
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(RATE, np.zeros(RATE // 2, dtype=np.float32))
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    return recognizer.get_result(stream), recognizer.lm_probs(stream)


def token_scores(invoke: Invoke, tmp_path: Path, bundle: Path, *options: object) -> list[float]:
    (tmp_path / "text.txt").write_text(f"{TEXT}\n")
    code, out, err = invoke(lm_score, bundle, "text.txt", "--tokens", *options)
    assert code == 0, err
    return [float(line.partition("\t")[0]) for line in out.splitlines()]


@RECURRENT
def test_shallow_fusion_sees_the_log_probabilities_of_lm_score(
    invoke: Invoke, tmp_path: Path, bundle: Path
) -> None:
    model = lm_runtime.load(bundle)
    ids = model.tokenizer.encode(TEXT)
    expected = token_scores(invoke, tmp_path, bundle)[:-1]  # <eos> is not scored in a stream
    table = script(ids, model.config.vocab_size)
    text, found = recognize_online(tmp_path, bundle, table, sherpa.ONLINE["fp32"])
    assert text == TEXT.replace(" ", "")
    assert np.abs(np.array(found) - expected).max() < TOLERANCE


@RECURRENT
def test_int8_is_near(invoke: Invoke, tmp_path: Path, bundle: Path) -> None:
    """sherpa-onnx reads several hypotheses in one call, which share a scale of the activations."""
    model = lm_runtime.load(bundle)
    expected = token_scores(invoke, tmp_path, bundle, "--precision", "int8")[:-1]
    table = script(model.tokenizer.encode(TEXT), model.config.vocab_size)
    _, found = recognize_online(tmp_path, bundle, table, sherpa.ONLINE["int8"])
    assert np.abs(np.array(found) - expected).max() < 0.1


def decides(folder: Path, bundle: Path, precision: Precision, margin: float) -> bool:
    """Whether rescoring follows acoustics that favour the less probable of two texts by ``margin`` too much.

    And does not follow those that favour it by ``margin`` too little.
    """
    model = lm_runtime.load(bundle, precision=precision)
    vocab, scale = model.config.vocab_size, 0.5
    good, bad = TEXT.split(), TEXT.split()
    bad[2] = "clock"
    scores = list(lm_runtime.score_texts(model, [" ".join(good), " ".join(bad)]))
    gain = scale * (scores[0].log_probability - scores[1].log_probability)
    (place,) = [at for at, pair in enumerate(zip(good, bad, strict=True)) if pair[0] != pair[1]]
    ids = [model.tokenizer.encode(" ".join(words)) for words in (good, bad)]
    found = []
    for more in (-margin, margin):
        table = script(ids[0], vocab)
        table[place, ids[1][place]] = gain + more
        recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
            tokens=str(bundle / "tokens.txt"),
            encoder=str(folder / "offline.onnx"),
            **write_transducer(folder, table),
            decoding_method="modified_beam_search",
            lm=str(bundle / sherpa.OFFLINE[precision]),
            lm_scale=scale,
        )
        stream = recognizer.create_stream()
        stream.accept_waveform(RATE, np.zeros(RATE // 2, dtype=np.float32))
        recognizer.decode_stream(stream)
        found.append(stream.result.text.replace(" ", ""))
    return found == ["".join(good), "".join(bad)]


@RECURRENT
@pytest.mark.parametrize(("precision", "margin"), [("fp32", TOLERANCE), ("int8", 0.1)])
def test_rescoring_decides_where_lm_score_says(
    tmp_path: Path, bundle: Path, precision: Precision, margin: float
) -> None:
    """In int8 a call has one scale of the activations, and sherpa-onnx rescores hypotheses together."""
    assert decides(tmp_path, bundle, precision, margin)


@pytest.mark.parametrize("family_run", ["window", "ngram"], indirect=True)
def test_models_without_a_recurrent_state_are_refused(
    invoke: Invoke, tmp_path: Path, family_run: Path
) -> None:
    code, out, err = invoke(lm_export, family_run, "--out", "bundle", "--format", "sherpa")
    assert (code, out) == (2, "")
    assert "sherpa-onnx reads recurrent models, whose state is (layers, batch, hidden)" in one_line(err)
    assert tree(tmp_path) == set()


def test_graphs_that_differ_are_not_written(
    invoke: Invoke, tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest wrong thing: texts whose end is not predicted."""
    make = sherpa.offline_graph

    def without_the_end(step: onnx.ModelProto, config: BundleConfig) -> onnx.ModelProto:
        graph = make(step, config)
        for node in graph.graph.node:
            if node.op_type == "LessOrEqual":
                node.op_type = "Less"
        return graph

    monkeypatch.setattr(sherpa, "offline_graph", without_the_end)
    code, out, err = invoke(lm_export, small_run, "--out", "bundle", "--format", "sherpa")
    assert (code, out) == (1, "")
    assert "the fp32 graphs for sherpa-onnx differ from the step graph" in one_line(err)
    assert tree(tmp_path) == set()
