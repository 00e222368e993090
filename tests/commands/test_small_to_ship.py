"""A bundle with the int8 graph alone, and a second model beside the first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import lm_runtime
from conftest import COUNTED, TINY, Invoke, one_line
from lm_export.command import main as lm_export
from lm_runtime.commands.bench import main as lm_bench
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_trainer.command import main as lm_train


@pytest.fixture(scope="module")
def int8_bundle(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("int8") / "bundle"
    with pytest.raises(SystemExit) as exit_:
        lm_export.main([str(small_run), "--out", str(bundle), "--only", "int8"])
    assert exit_.value.code == 0
    return bundle


def test_int8_alone_is_what_runs(invoke: Invoke, int8_bundle: Path, small_bundle: Path) -> None:
    assert [path.name for path in (int8_bundle / "onnx").iterdir()] == ["model_quantized.onnx"]
    assert "onnx/model.onnx" not in json.loads((int8_bundle / "config.json").read_text())["files"]
    assert lm_runtime.load(int8_bundle).precision == "int8"
    assert lm_runtime.load(small_bundle).precision == "fp32"
    options = ["--seed", 1, "--max-tokens", 20]
    expected = invoke(lm_generate, small_bundle, *options, "--precision", "int8")[1]
    assert invoke(lm_generate, int8_bundle, *options)[:2] == (0, expected)
    scored = invoke(lm_score, int8_bundle, TINY / "valid.txt")
    assert scored[:2] == invoke(lm_score, small_bundle, TINY / "valid.txt", "--precision", "int8")[:2]
    assert invoke(lm_bench, int8_bundle, "--tokens", 2)[0] == 0


def test_a_graph_that_is_not_there_is_one_line(invoke: Invoke, int8_bundle: Path) -> None:
    code, out, err = invoke(lm_generate, int8_bundle, "--precision", "fp32")
    assert (code, out) == (2, "")
    assert one_line(err).endswith("has an int8 graph alone; export it without --only")


def test_the_card_lists_what_is_needed_with_its_size(int8_bundle: Path, small_bundle: Path) -> None:
    card = (int8_bundle / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)`.* \| (\w.*) \|$", card, re.MULTILINE))
    assert rows == dict.fromkeys(
        [
            "onnx/model_quantized.onnx",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "tokens.txt",
            "config.json",
        ],
        "needed",
    )
    size = (int8_bundle / "tokens.txt").stat().st_size / 1000
    assert f"| `tokens.txt` | {size:.1f} kB | needed |" in card
    assert (small_bundle / "README.md").read_text().count("| one of these |") == 2


def test_only_is_for_what_has_weights(invoke: Invoke) -> None:
    assert invoke(lm_train, TINY, "--model", "ngram", *COUNTED, "--out", "run")[0] == 0
    code, _, err = invoke(lm_export, "run", "--out", "bundle", "--only", "int8")
    assert code == 2
    assert "an n-gram model has no weights to quantize" in one_line(err)


def test_text_is_generated_by_two_models_together(
    invoke: Invoke, small_bundle: Path, small_run: Path
) -> None:
    vocabulary = ["--tokenizer", small_run / "tokenizer.json"]
    assert invoke(lm_train, TINY, "--model", "ngram", *vocabulary, "--out", "run")[0] == 0
    assert invoke(lm_export, "run", "--out", "ngrams")[0] == 0
    options = ["--seed", 1, "--max-tokens", 30, "--prompt", "the keeper"]
    pair = ["--with", "ngrams", "--weight", 0.4]
    code, out, _ = invoke(lm_generate, small_bundle, *pair, *options)
    first, second = lm_runtime.load(small_bundle), lm_runtime.load("ngrams")
    model = lm_runtime.InterpolatedModel(first, second, 0.4)
    params = lm_runtime.SamplingParams(
        **{name: getattr(first.defaults, name) for name in ("temperature", "top_p", "top_k")}, max_tokens=30
    )
    expected = "".join(lm_runtime.generate(model, "the keeper", params, seed=1))
    assert (code, out.rstrip("\n")) == (0, expected.rstrip("\n"))
    assert out != invoke(lm_generate, small_bundle, *options)[1]
    suggested = invoke(lm_generate, small_bundle, *pair, "--prompt", "the", "--suggest", 3, "--json")[1]
    best = lm_runtime.suggest(model, "the", 3)
    assert [json.loads(line)["probability"] for line in suggested.splitlines()] == pytest.approx(
        [probability for _, probability in best]
    )
    invoke(lm_generate, small_bundle, *pair, *options, "--save-state", "s.npz")
    assert invoke(lm_generate, small_bundle, *pair, "--load-state", "s.npz", "--max-tokens", 5)[0] == 0
    code, _, err = invoke(lm_generate, small_bundle, "--load-state", "s.npz", "--max-tokens", 5)
    assert (code, "saved with another model" in one_line(err)) == (1, True)


@pytest.mark.parametrize("options", [["--with", "x"], ["--weight", 0.5]], ids=str)
def test_a_second_model_needs_its_weight(invoke: Invoke, options: list[object]) -> None:
    code, _, err = invoke(lm_generate, "x", *options)
    assert (code, one_line(err)) == (
        2,
        "lm-generate: --with takes a second bundle and its --weight (see lm-generate --help)",
    )
