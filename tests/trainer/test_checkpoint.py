"""A checkpoint is records: what is in the file is what was written, or the file is refused by its name."""

from __future__ import annotations

import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

import lm_runtime
from conftest import ROOT, SMALL, TINY, Invoke, one_line
from lm_export.command import main as lm_export
from lm_runtime.files import UnusableFileError
from lm_trainer.command import main as lm_train
from lm_trainer.families import implementation
from lm_trainer.run import checkpoint as checkpoints
from lm_trainer.run.checkpoint import load_checkpoint, restore_model
from lm_trainer.run.folder import FILES, FOLDERS
from lm_trainer.training.loop import Trainer

OLD_RUN = ROOT / "tests/fixtures/old_run"
"""An LSTM's run of one epoch in format 1."""
OLD_NGRAM = ROOT / "tests/fixtures/old_ngram.pt"
"""An n-gram model in format 1."""
LOSS_TOLERANCE = 1e-5
"""Relative, of a loss in float32 on another machine."""


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def with_checksums(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with checksums that are right."""
    content.pop("checksums", None)
    return {**content, "checksums": {n: checkpoints._checksum(t) for n, t in checkpoints._tensors(content)}}


@pytest.mark.parametrize("path", [OLD_RUN / "last.pt", OLD_NGRAM], ids=["lstm", "ngram"])
def test_a_model_of_format_1_is_the_one_that_was_validated(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    model, tokenizer = restore_model(checkpoint)
    valid = np.array(tokenizer.encode((TINY / "valid.txt").read_text()))
    loss = model.text_loss(valid, tokenizer.eos_id) / valid.size
    assert loss == pytest.approx(checkpoint.progress.valid_loss, rel=LOSS_TOLERANCE)


def test_a_run_of_format_1_is_resumed_and_exported(invoke: Invoke, tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "run")
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 2)
    assert code == 0
    assert "resumed from run/last.pt: step 24 of 48" in err
    checkpoint = load_checkpoint(tmp_path / "run")
    assert (checkpoint.progress.epoch, content_of(checkpoint.path)["format_version"]) == (2, 2)
    assert checkpoint.progress.valid_loss < load_checkpoint(OLD_RUN / "last.pt").progress.valid_loss
    text = "the keeper\n\nxyzzy of\n"
    for path in (OLD_RUN / "last.pt", OLD_NGRAM):
        assert invoke(lm_export, path, "--out", path.stem)[0] == 0
        bundle = lm_runtime.load(tmp_path / path.stem)
        library = tokenizers.Tokenizer.from_file(str(tmp_path / path.stem / "tokenizer.json"))
        assert bundle.config.format_version == 2
        _, old = restore_model(load_checkpoint(path))
        assert old.encode(text) == bundle.tokenizer.encode(text) == library.encode(text).ids[1:]


def test_an_ngram_run_of_format_1_without_tables_is_not_exported(invoke: Invoke, tmp_path: Path) -> None:
    torch.save({**content_of(OLD_NGRAM), "model": {}}, tmp_path / "last.pt")
    code, _, err = invoke(lm_export, "last.pt", "--out", "bundle")
    assert code == 1
    assert "last.pt: the run was broken off before there were tables" in one_line(err)


def test_what_a_run_does_not_need_is_not_in_its_file(
    invoke: Invoke, tmp_path: Path, family_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, family = content_of(family_run / "last.pt"), load_checkpoint(family_run).model_config.model_type
    needed = {"optimizer", "generator", "hidden", "training_config"}
    assert needed & content.keys() == (set() if family == "ngram" else needed)
    assert "init" not in content

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(implementation(family)), "trainer", stop)
        settings = ["--config", family_run / "config.toml"]
        assert invoke(lm_train, *settings, "--out", "new")[0] == 130
    assert not {"optimizer", "generator", "hidden"} & content_of(tmp_path / "new/last.pt").keys()
    assert invoke(lm_train, "--out", "new", "--resume")[0] == 0
    ends = [load_checkpoint(run / "last.pt").weights for run in (family_run, tmp_path / "new")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_new_run_makes_its_trainer_once(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = Trainer.__init__

    def count(self: Trainer, *arguments: Any) -> None:
        made.append(self)
        make(self, *arguments)

    monkeypatch.setattr(Trainer, "__init__", count)
    assert invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", "run")[0] == 0
    assert len(made) == 1


def test_all_names_in_a_run_s_folder_are_known(small_run: Path) -> None:
    names = {path.name for path in small_run.iterdir()}
    assert names <= {*FILES, *FOLDERS}
    assert len({*FILES, *FOLDERS}) == 11


@pytest.mark.parametrize("mapped", [True, False])
def test_each_tensor_has_a_checksum(small_run: Path, tmp_path: Path, mapped: bool) -> None:
    """A weight that the archive finds right is refused, and so is one that has no checksum."""
    content = content_of(small_run / "last.pt")
    names = [name for name, _ in checkpoints._tensors(content)]
    assert names == list(content["checksums"])
    assert {"held_out", "generator", "hidden.0", "model.head.weight"} <= set(names)
    assert any(name.startswith("optimizer.state.0.") for name in names)
    content["optimizer"]["state"][0]["exp_avg"][0] += 1e-8
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UnusableFileError, match=r"other.pt: damaged: optimizer.state.0.exp_avg has another"):
        load_checkpoint(tmp_path / "other.pt", mapped)
    content = content_of(small_run / "last.pt")
    del content["checksums"]["model.head.weight"]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UnusableFileError, match=r"damaged: model.head.weight has another checksum"):
        load_checkpoint(tmp_path / "other.pt", mapped)
    torch.save(with_checksums(content), tmp_path / "other.pt")
    load_checkpoint(tmp_path / "other.pt", mapped)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("source", [OLD_RUN / "last.pt", None], ids=["format 1", "format 2"])
def test_no_bit_of_the_archive_s_directory_gives_other_weights(
    small_run: Path, tmp_path: Path, source: Path | None, mapped: bool
) -> None:
    """torch takes an entry that is marked as a folder for empty, and returns uninitialized memory."""
    source = source or small_run / "best.pt"
    data, expected = source.read_bytes(), load_checkpoint(source).weights
    changed = tmp_path / "changed.pt"
    refused = 0
    for place in directory_of(source):
        copy = bytearray(data)
        copy[place + 38] ^= 0x10  # of the external attributes
        changed.write_bytes(copy)
        try:
            found = load_checkpoint(changed, mapped).weights
        except UnusableFileError as error:
            assert str(error).startswith(f"{changed}: ")
            refused += 1
        else:
            assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert refused > 10


def directory_of(path: Path) -> list[int]:
    """Where the entries of an archive's directory begin."""
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
    data, places = path.read_bytes(), []
    while data[place : place + 4] == b"PK\1\2":
        places.append(place)
        place += 46 + sum(struct.unpack("<HHH", data[place + 28 : place + 34]))
    return places


def put(*names: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        content[names[-1]] = value

    return change


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

DAMAGES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put("threads", value=0), "0 threads and 1 processes"),
    (put("threads", value=10**9), "1000000000 threads"),
    (put("processes", value=-1), "-1 processes"),
    (put("metrics_bytes", value=-1), "a count is negative"),
    (put("progress", "step", value="7"), "progress step is missing or not what it should be"),
    (put("progress", "best_epoch", value="7"), "progress best_epoch is missing or not what it should be"),
    (put("model_config", "hidden_size", value=32.5), "hidden_size must be a whole number, got 32.5"),
    (put("model_config", "hidden_size", value=33), "is [128, 24], where the network has [132, 24]"),
    (put("model_config", "hidden_size", value=65536), "where the network has [262144, 24]"),
    (put("training_config", "lr", value="high"), "damaged: "),
    (put("training_config", "unheard_of", value=1), "damaged: "),
    (put("corpus", "splits", "train", "dtype", value="float32"), "dtype must be uint16 or uint32"),
    (put("corpus", "splits", "train", value=None), "train is missing"),
    (put("tokenizer", value="{}"), "damaged: "),
    (put("model", "head.weight", value=7), "the weights are not tensors"),
    (put("model", "head.weight", value=torch.zeros(180, 32, device="meta")), "head.weight is not a plain"),
    (put("model", "head.weight", value=torch.zeros(1).expand(180, 32)), "head.weight is not a plain tensor"),
    (put("model", "head.weight", value=torch.eye(32).to_sparse()), "head.weight is not a plain tensor"),
    (put("optimizer", value=[]), "optimizer is missing or not what it should be"),
    (put("optimizer", "state", 0, value=ENDLESS), "damaged: "),
    (put("optimizer", "state", 0, "exp_avg", value=torch.zeros(3)), "exp_avg of weight 0 is [3]"),
    (put("optimizer", "state", 0, value={}), "damaged: the optimizer's state has nothing"),
    (put("hidden", value=[]), "damaged: "),
    (put("hidden", value=[7, 7]), "damaged: "),
    (put("hidden", 1, value=torch.zeros(2, 5, 32)), "the state c is [2, 5, 32], not [2, 4, 32]"),
    (put("generator", value=torch.zeros(1, 5056, dtype=torch.uint8)), "damaged: "),
    (put("checksums", value=None), "it has no checksums"),
]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_one_line(
    invoke: Invoke, tmp_path: Path, small_run: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Whatever is wrong, and with checksums that are right."""
    shutil.copytree(small_run, tmp_path / "run")
    content = with_checksums(content_of(small_run / "last.pt"))
    damage(content)
    if content["checksums"]:
        content["checksums"] = {
            name: checkpoints._checksum(tensor)
            for name, tensor in checkpoints._tensors(content)
            if tensor.layout == torch.strided and tensor.device.type == "cpu"
        }
    torch.save(content, tmp_path / "run/last.pt")
    code, out, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 4)
    assert (code, out) == (1, "")
    assert one_line(err).startswith("lm-train: run/last.pt: ")
    assert message in one_line(err)


def test_weights_that_are_no_numbers_are_one_line(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    """They are noticed as the run's new length is written."""
    shutil.copytree(small_run, tmp_path / "run")
    content = content_of(small_run / "last.pt")
    content["model"]["head.bias"][3] = float("nan")
    torch.save(with_checksums(content), tmp_path / "run/last.pt")
    before = (tmp_path / "run/config.toml").read_text()
    code, out, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 4)
    assert (code, out) == (1, "")
    assert "run/last.pt: the loss became nan in epoch 4" in one_line(err)
    assert (tmp_path / "run/config.toml").read_text() == before


def test_a_damaged_best_checkpoint_is_named(invoke: Invoke, tmp_path: Path, family_run: Path) -> None:
    (tmp_path / "run").mkdir()
    content = content_of(family_run / "best.pt")
    content["model"].popitem()
    torch.save(with_checksums(content), tmp_path / "run/best.pt")
    code, _, err = invoke(lm_export, "run", "--out", "bundle")
    assert code == 1
    assert one_line(err).startswith("lm-export: run/best.pt: damaged: ")


@pytest.mark.parametrize("mapped", [True, False])
def test_a_thousand_changed_files_load_as_they_were_or_are_refused(tmp_path: Path, mapped: bool) -> None:
    seed = random.randrange(1 << 30)
    print("changes from seed", seed)
    chance = random.Random(seed)
    source = content_of(OLD_RUN / "last.pt")
    source = with_checksums({**source, "format_version": 2})
    path = tmp_path / "changed.pt"
    torch.save(source, path)
    data = path.read_bytes()
    for _ in range(500):
        copy = bytearray(data)
        match chance.randrange(3):
            case 0:
                copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
            case 1:  # the directory is at the end
                copy[-chance.randrange(1, 6000)] = chance.randrange(256)
            case 2:
                start = chance.randrange(len(copy))
                del copy[start : start + chance.randrange(1, 100)]
        path.write_bytes(copy)
        try:
            found = load_checkpoint(path, mapped)
            restore_model(found)
        except UnusableFileError as error:
            assert str(error).startswith(f"{path}: ")
            assert len(str(error).splitlines()) == 1
        else:
            assert all(torch.equal(tensor, source["model"][name]) for name, tensor in found.weights.items())
