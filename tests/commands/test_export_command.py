"""lm-export as people use and misuse it: one clear line, the right exit status, nothing left broken."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Invoke, one_line, tree
from lm_export.command import main as lm_export


class Hostile:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def newer(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save({**content, "format_version": 99}, path)


def without_weights(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    content["model"].popitem()
    torch.save(content, path)


def with_a_changed_byte(path: Path, run: Path) -> None:
    """In the middle of a weight, where torch reads over it."""
    data = bytearray((run / "best.pt").read_bytes())
    weights = torch.load(run / "best.pt", weights_only=True)["model"].values()
    weight = max(weights, key=torch.numel).numpy().tobytes()
    data[data.index(weight) + 5] ^= 1
    path.write_bytes(data)


def without(name: str) -> Callable[[Path, Path], None]:
    def make(path: Path, run: Path) -> None:
        content = torch.load(run / "best.pt", weights_only=True)
        del content[name]
        torch.save(content, path)

    return make


def with_other_text(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save({**content, "held_out": content["held_out"] + 1000}, path)


def of_a_family_that_is_not_known(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save({**content, "model_config": {**content["model_config"], "model_type": "perceptron"}}, path)


BAD_CHECKPOINTS: list[tuple[Callable[[Path, Path], object], str]] = [
    (lambda path, run: None, "no such checkpoint; lm-train makes one"),
    (lambda path, run: path.write_bytes(b""), "not a checkpoint, or damaged"),
    (lambda path, run: path.write_bytes(b"junk" * 100), "not a checkpoint, or damaged"),
    (
        lambda path, run: path.write_bytes((run / "best.pt").read_bytes()[:-5000]),
        "not a checkpoint, or damaged",
    ),
    (lambda path, run: torch.save(Hostile(), path), "refused: it holds more than tensors"),
    (lambda path, run: path.write_bytes(pickle.dumps(Hostile())), "not a checkpoint, or damaged"),
    (lambda path, run: torch.save({"format": "other"}, path), "not a checkpoint of steplm"),
    (newer, "checkpoint format 99, where this version of steplm reads 1"),
    (with_a_changed_byte, "not a checkpoint, or damaged"),
    (without("held_out"), "damaged: held_out is missing"),
    (without("progress"), "damaged: progress is missing"),
    (with_other_text, "the held-out text has tokens that are not in the vocabulary"),
    (
        of_a_family_that_is_not_known,
        "damaged: model_type must be lstm, gru, rnn, window or ngram, got perceptron",
    ),
    (without_weights, "damaged: "),
]


@pytest.mark.parametrize(("make", "message"), BAD_CHECKPOINTS)
def test_a_bad_checkpoint(
    invoke: Invoke, tmp_path: Path, family_run: Path, make: Callable[[Path, Path], object], message: str
) -> None:
    make(tmp_path / "model.pt", family_run)
    before = tree(tmp_path)
    code, out, err = invoke(lm_export, "model.pt", "--out", "bundle")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert tree(tmp_path) == before  # and no file called executed


def test_export_replaces_only_a_bundle_and_only_when_told(
    invoke: Invoke, tmp_path: Path, small_run: Path, small_bundle: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    code, _, err = invoke(lm_export, small_run, "--out", "other", "--force")
    assert (code, one_line(err)) == (
        2,
        "lm-export: other: not a bundle: no config.json in it; --force replaces only a bundle",
    )
    shutil.copytree(small_bundle, tmp_path / "bundle")
    code, _, err = invoke(lm_export, small_run, "--out", "bundle")
    assert code == 2
    assert all(word in one_line(err) for word in ("bundle holds something already", "--force", "--out"))
    (tmp_path / "bundle/story.state").write_text("mine")
    code, _, err = invoke(lm_export, small_run, "--out", "bundle", "--force")
    assert (code, one_line(err)) == (
        2,
        "lm-export: bundle/story.state is not the bundle's, and --force would remove it; move it away first",
    )
    (tmp_path / "bundle/story.state").unlink()
    (tmp_path / "bundle/link").symlink_to(tmp_path / "other")
    assert invoke(lm_export, small_run, "--out", "bundle", "--force")[0] == 2
    (tmp_path / "bundle/link").unlink()
    assert invoke(lm_export, small_run, "--out", "bundle", "--force")[0] == 0
    assert tree(tmp_path) >= {"bundle/config.json", "other/notes.txt"}
    assert "bundle/onnx/model_quantized.onnx" not in tree(tmp_path)
    assert not [name for name in tree(tmp_path) if name.startswith(".")]


def test_the_folder_of_another_tool_is_no_bundle(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    """Theirs have the same names in them."""
    (tmp_path / "model/onnx").mkdir(parents=True)
    (tmp_path / "model/config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model/onnx/model.onnx").write_text("mine")
    before = tree(tmp_path)
    code, _, err = invoke(lm_export, small_run, "--out", "model", "--force")
    assert code == 2
    wanted = "model/config.json: bundle format None, where this version of steplm reads 1 and 2"
    assert one_line(err) == f"lm-export: {wanted}; --force replaces only a bundle"
    assert tree(tmp_path) == before


def test_a_run_without_a_complete_epoch_has_a_last_checkpoint_only(
    invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(small_run / "last.pt", tmp_path / "run")
    code, _, err = invoke(lm_export, "run", "--out", "bundle")
    assert code == 1
    wanted = "run/best.pt: missing: an epoch's end writes it; lm-train --resume goes on with the run"
    assert one_line(err) == f"lm-export: {wanted}"
    assert invoke(lm_export, "run/last.pt", "--out", "bundle")[0] == 0


def test_an_export_that_fills_the_disk_leaves_nothing(small_run: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "from lm_export.command import main; main(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(small_run), "--out", "bundle"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "File too large" in one_line(result.stderr)
    assert tree(tmp_path) == set()


def test_the_command_says_which_layers_are_int8(invoke: Invoke, family_run: Path) -> None:
    family = torch.load(family_run / "best.pt", weights_only=True)["model_config"]["model_type"]
    code, _, err = invoke(lm_export, family_run, "--out", "bundle", "--quantize", "int8")
    if family == "ngram":
        refusal = "an n-gram model has no weights to quantize; leave out --quantize"
        assert (code, one_line(err)) == (2, f"lm-export: {refusal}")
        return
    assert code == 0
    assert {
        "lstm": "int8: embedding, LSTM layers, output layer",
        "gru": "int8: embedding, output layer; GRU layers stay fp32: onnxruntime has no int8 form of them",
        "rnn": "int8: embedding, output layer; RNN layers stay fp32: onnxruntime has no int8 form of them",
        "window": "int8: embedding, hidden layer, output layer",
    }[family] in err.splitlines()


def test_arpa_comes_with_the_bundle_of_an_ngram_model_alone(
    invoke: Invoke, tmp_path: Path, family_run: Path
) -> None:
    code, _, err = invoke(lm_export, family_run, "--out", "bundle", "--arpa")
    if not family_run.parent.name.startswith("ngram"):
        refusal = "ARPA is a format of n-gram models, and this is a network; leave out --format arpa"
        assert (code, one_line(err)) == (2, f"lm-export: {refusal}")
        assert tree(tmp_path) == set()
        return
    assert code == 0
    assert (tmp_path / "bundle/ngram/model.arpa").read_text().startswith("\\data\\\nngram 1=")
    assert "ngram/model.arpa" in (tmp_path / "bundle/README.md").read_text()
    assert invoke(lm_export, family_run, "--out", "bundle", "--force")[0] == 0
    assert "bundle/ngram/model.arpa" not in tree(tmp_path)


def test_int8_at_an_opset_that_onnxruntime_does_not_run_is_said(
    invoke: Invoke, small_run: Path, tmp_path: Path
) -> None:
    options = ["--out", "bundle", "--opset", 28, "--quantize", "int8"]
    code, out, err = invoke(lm_export, small_run, *options)
    assert (code, out) == (1, "")
    assert "onnxruntime cannot run int8 at this opset" in err.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()
