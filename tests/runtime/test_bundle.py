"""A bundle is checked before it is trusted, and what is wrong with it is named."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import lm_runtime
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.bundle import CONFIG_FILE, LOGITS, TOKENIZER, TOKENS_FILE
from lm_runtime.commands.score import main as lm_score
from lm_runtime.files import UnusableFileError
from lm_runtime.generation.generate import generate_batch
from lm_runtime.generation.session import Session
from lm_runtime.models.state import initial_state
from lm_runtime.sampling.params import SamplingParams

FIXTURES = FIXTURE.parent
EDITABLE = ("generation_config.json", "tokenizer_config.json")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))


def edit(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def drop(path: Path, name: str) -> None:
    data = json.loads(path.read_text())
    del data[name]
    path.write_text(json.dumps(data))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rehash(bundle: Path) -> None:
    """Make the hashes fit again, as someone would who edits a bundle by hand."""
    import hashlib

    files = json.loads((bundle / CONFIG_FILE).read_text())["files"]
    edit(
        bundle / CONFIG_FILE,
        files={name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in files},
    )


def swap(bundle: Path) -> None:
    (bundle / "onnx/model.onnx").rename(bundle / "x")
    (bundle / "onnx/model_quantized.onnx").rename(bundle / "onnx/model.onnx")
    (bundle / "x").rename(bundle / "onnx/model_quantized.onnx")


def other_tokenizer(bundle: Path) -> None:
    text = (bundle / TOKENIZER).read_text()
    (bundle / TOKENIZER).write_text(text.replace('"keeper"', '"beeper"'))
    rehash(bundle)


def other_shape(bundle: Path) -> None:
    states = json.loads((bundle / CONFIG_FILE).read_text())["states"]
    states[0]["shape"][2] += 1
    edit(bundle / CONFIG_FILE, states=states)


def change_state(bundle: Path, **changes: object) -> None:
    states = json.loads((bundle / CONFIG_FILE).read_text())["states"]
    edit(bundle / CONFIG_FILE, states=[{**states[0], **changes}, *states[1:]])


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda b: shutil.rmtree(b), "no such bundle"),
    (lambda b: (b / CONFIG_FILE).unlink(), "not a bundle: no config.json in it"),
    (lambda b: (b / CONFIG_FILE).write_text("{"), "not JSON"),
    (lambda b: (b / CONFIG_FILE).write_text("[]"), "not a JSON object"),
    (lambda b: (b / CONFIG_FILE).write_text("{}"), "bundle format None"),
    (lambda b: edit(b / CONFIG_FILE, format_version=99), "bundle format 99, where this version"),
    (lambda b: edit(b / CONFIG_FILE, states=3), "not a bundle's configuration"),
    (lambda b: drop(b / CONFIG_FILE, "opset"), "not a bundle's configuration .opset is missing"),
    (lambda b: drop(b / CONFIG_FILE, "states"), "not a bundle's configuration .states is missing"),
    (lambda b: edit(b / CONFIG_FILE, vocab_size="200"), "vocab_size is '200', not a number"),
    (lambda b: edit(b / CONFIG_FILE, hidden_size=25), "does not fit config.json: hidden_size is 24, not 25"),
    (lambda b: edit(b / CONFIG_FILE, format_version=True), "bundle format True, where this version"),
    (lambda b: edit(b / CONFIG_FILE, vocab_size=0), "vocab_size is 0"),
    (lambda b: edit(b / CONFIG_FILE, unk_token_id=200), "unk_token_id is 200, where ids are 0 to 199"),
    (lambda b: edit(b / CONFIG_FILE, bos_token_id=1), "does not fit the model: bos_token_id is 0, not 1"),
    (lambda b: change_state(b, name="../h"), "a state has the name '../h'"),
    (lambda b: change_state(b, name="logits", output="logits_out"), "a state has the name 'logits'"),
    (lambda b: change_state(b, name="c", output="c_out"), "two states have the name c"),
    (lambda b: change_state(b, shape=[1 << 20, None, 1 << 20]), "h has the shape"),
    (lambda b: change_state(b, shape=[2, None, -24]), "h has the shape"),
    (lambda b: edit(b / CONFIG_FILE, states=[{"name": "h"}]), "state 0: output is missing"),
    (lambda b: edit(b / CONFIG_FILE, states=[]), "not a bundle's configuration .no state"),
    (
        lambda b: edit(b / CONFIG_FILE, files=None),
        "not a bundle's configuration .files is None, not an object",
    ),
    (lambda b: change_state(b, output="c_out"), "h comes out as 'c_out'"),
    (lambda b: change_state(b, dtype="float64"), "h is 'float64', not float32 or int64"),
    (lambda b: change_state(b, shape=[None, None]), "h has the shape"),
    (lambda b: (b / CONFIG_FILE).write_text("[" * 100_000), "not JSON"),
    (
        lambda b: edit(b / CONFIG_FILE, states=json.loads((b / CONFIG_FILE).read_text())["states"][:1]),
        "has the tensor c, which config.json does not list",
    ),
    (other_shape, "h is tensor.float. .2, None, 24., where config.json says"),
    (lambda b: (b / "onnx/model.onnx").unlink(), "the bundle's file is missing"),
    (lambda b: flip(b / "onnx/model.onnx"), "changed since the export"),
    (lambda b: flip(b / TOKENIZER), "changed since the export"),
    (lambda b: (b / TOKENS_FILE).write_text(""), "changed since the export"),
    (swap, "changed since the export"),
    (lambda b: (swap(b), rehash(b)), "does not fit config.json: precision is int8, not fp32"),
    (
        lambda b: edit(b / CONFIG_FILE, tie_word_embeddings="x"),
        "tie_word_embeddings is 'x', not true or false",
    ),
    (lambda b: edit(b / "generation_config.json", stop=[5]), "stop must be a sequence of str"),
    (other_tokenizer, "does not fit the model: vocabulary_sha256"),
    (lambda b: ((b / "onnx/model.onnx").write_bytes(b"junk"), rehash(b)), "not an ONNX file, or damaged"),
    (
        lambda b: edit(b / "generation_config.json", top_p=7),
        "not usable as sampling parameters .top_p must be above 0 and at most 1, got 7",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(bundle: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(bundle)
    with pytest.raises(UnusableFileError, match=message) as error:
        lm_runtime.load(bundle)
    assert "\n" not in str(error.value)


def test_a_changed_or_missing_file_of_any_family_is_named(
    invoke: Invoke, tmp_path: Path, family_bundle: Path
) -> None:
    """Each that the runtime reads, but for the configuration, which is told from others by its content.

    What its owner may edit must be there, whatever is in it.
    """
    for place in sorted(path.relative_to(family_bundle) for path in family_bundle.rglob("*.*")):
        if place.name in ("README.md", CONFIG_FILE, "model_quantized.onnx"):
            continue
        harms = [(Path.unlink, "file is missing"), (flip, "changed since the export")]
        for harm, message in harms[: 1 if place.name in EDITABLE else 2]:
            bundle = Path(shutil.copytree(family_bundle, tmp_path / "bundle"))
            harm(bundle / place)
            code, out, err = invoke(lm_score, "bundle", TINY / "valid.txt")
            assert (code, out) == (1, "")
            assert f"bundle/{place}: " in one_line(err)
            assert message in one_line(err)
            shutil.rmtree(bundle)


def test_the_fixture_is_whole(bundle: Path) -> None:
    assert lm_runtime.load(bundle).config.vocab_size == 200


def test_what_its_owner_edits_and_a_graph_that_is_not_used_do_not_matter(bundle: Path) -> None:
    (bundle / "README.md").write_text("mine")
    edit(bundle / "tokenizer_config.json", model_max_length=512)
    edit(bundle / "generation_config.json", temperature=0.5)
    (bundle / "onnx/model_quantized.onnx").unlink()
    assert lm_runtime.load(bundle).defaults.temperature == 0.5


@pytest.mark.parametrize("name", ["tiny_bundle", "format1_bundle"])
def test_line_ends_that_version_control_converted_change_nothing(tmp_path: Path, name: str) -> None:
    bundle = Path(shutil.copytree(FIXTURES / name, tmp_path / "bundle"))
    (bundle / TOKENIZER).write_bytes((bundle / TOKENIZER).read_bytes() + b"\n")
    rehash(bundle)
    for path in bundle.glob("*.*"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    converted, as_written = lm_runtime.load(bundle), lm_runtime.load(FIXTURES / name)
    assert converted.tokenizer.tokens == as_written.tokenizer.tokens
    assert converted.defaults == as_written.defaults


def test_a_bundle_of_format_1_gives_what_it_gave(tmp_path: Path) -> None:
    """Its ids, its probabilities, and a session that was saved with it; the word <eos> was its line's end."""
    model = lm_runtime.load(FIXTURES / "format1_bundle")
    assert model.config.format_version == 1
    assert model.tokenizer.encode("the keeper\n<eos>") == [2, 21, 0, 0]
    expected = json.loads((FIXTURES / "tiny_bundle.expected.json").read_text())
    logits, _ = model.step(np.array([[0]]), initial_state(model, 1))
    assert logits[0, 0] == pytest.approx(expected["first_logits"], abs=1e-4)
    shutil.copy(FIXTURES / "format1_session.npz", tmp_path / "session.npz")
    session = Session.load(tmp_path / "session.npz", model)
    case = json.loads((FIXTURES / "cases.json").read_text())["session"]
    params = SamplingParams(**case["params"])
    assert [piece.token for piece in generate_batch(model, [session], params)] == case["ids"]


def test_the_output_hidden_may_come_last(bundle: Path) -> None:
    path = bundle / "onnx/model.onnx"
    graph = onnx.load(path)
    (read,) = [node.input[0] for node in graph.graph.node if LOGITS in node.output]
    for name, message in (
        ("hidden", None),
        ("other", "has the tensor other, which config.json does not list"),
    ):
        changed = copy.deepcopy(graph)
        changed.graph.node.append(onnx.helper.make_node("Identity", [read], [name]))
        shape = ["batch", "time", 24]
        changed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        onnx.save(changed, path)
        rehash(bundle)
        if message:
            with pytest.raises(UnusableFileError, match=message):
                lm_runtime.load(bundle)
        else:
            expected, found = lm_runtime.load(FIXTURE), lm_runtime.load(bundle)
            token, state = np.array([[0, 5]]), initial_state(expected, 1)
            assert np.array_equal(expected.step(token, state)[0], found.step(token, state)[0])


def test_a_precision_that_is_not_there_is_refused_with_the_way_to_get_it(bundle: Path) -> None:
    files = json.loads((bundle / CONFIG_FILE).read_text())["files"]
    del files["onnx/model_quantized.onnx"]
    edit(bundle / CONFIG_FILE, files=files)
    with pytest.raises(ValueError, match="has no int8 graph; export it with --quantize int8"):
        lm_runtime.load(bundle, precision="int8")


def test_tokens_txt_lists_token_and_id(bundle: Path) -> None:
    lines = (bundle / TOKENS_FILE).read_text().splitlines()
    assert lines[:2] == ["<eos> 0", "<unk> 1"]
    assert len(lines) == 200


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
def test_the_default_length_is_read_under_both_names(bundle: Path, name: str) -> None:
    """The second is what other readers of generation_config.json look for; they write other fields, too."""
    (bundle / "generation_config.json").write_text(json.dumps({name: 17, "do_sample": True, "top_k": 3}))
    defaults = lm_runtime.load(bundle).defaults
    assert (defaults.max_tokens, defaults.top_k) == (17, 3)
