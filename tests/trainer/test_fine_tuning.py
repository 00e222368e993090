"""A fine-tuned run begins exactly where its checkpoint is, and goes on without it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY, Invoke, one_line, tree
from lm_trainer.command import main as lm_train
from lm_trainer.config_file import read_settings
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.run.records import Origin
from lm_trainer.training.loop import Trainer

TRAINING: list[object] = ["--batch-size", 4, "--seq-len", 10, "--sample-tokens", 5]
NEW = "the keeper wrote a zeppelin\nquux of the keeper\n"
"""Words that data/tiny has, and two that it has not."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    for name, repeats in (("train", 30), ("valid", 2), ("test", 1)):
        (tmp_path / f"new/{name}.txt").write_text(NEW * repeats)
    return tmp_path / "new"


def is_ngram(run: Path) -> bool:
    return load_checkpoint(run).model_config.model_type == "ngram"


def valid_losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["valid_loss"] for record in lines if record["event"] == "epoch"]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_checkpoint(path).weights for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_begins_from_the_checkpoint_s_own_network(
    invoke: Invoke, tmp_path: Path, family_run: Path
) -> None:
    """With a learning rate that moves nothing, the validation is the checkpoint's, to the bit."""
    tuned = [TINY, "--init", family_run, *TRAINING, "--epochs", 1, "--out", "run"]
    code, out, err = invoke(lm_train, *tuned, "--lr", 1e-30)
    if is_ngram(family_run):
        assert (code, out) == (1, "")
        assert "best.pt: an ngram model, which is estimated: it cannot be trained further" in one_line(err)
        assert tree(tmp_path) == set()
        return
    assert code == 0
    assert valid_losses(tmp_path / "run") == [load_checkpoint(family_run).progress.valid_loss]
    own, found = load_checkpoint(family_run), load_checkpoint(tmp_path / "run")
    assert found.model_config == own.model_config
    assert invoke(lm_train, *tuned, "--lr", 0.01, "--force")[0] == 0
    assert not same_weights(family_run, tmp_path / "run")


def test_the_vocabulary_stays_and_what_it_lacks_is_counted(
    invoke: Invoke, tmp_path: Path, small_run: Path, corpus: Path
) -> None:
    own_text = ["--replay", 0, "--epochs", 1]
    code, _, err = invoke(lm_train, corpus, "--init", small_run, *TRAINING, *own_text, "--out", "run")
    assert code == 0
    assert (tmp_path / "run/tokenizer.json").read_bytes() == (small_run / "tokenizer.json").read_bytes()
    own, found = load_checkpoint(small_run), load_checkpoint(tmp_path / "run")
    assert found.facts.tokenizer == own.facts.tokenizer
    assert found.facts.tokenizer_config == own.facts.tokenizer_config
    assert found.model_config == own.model_config
    unknown = {name: split.unknown for name, split in found.facts.corpus.splits.items()}
    assert unknown == {"train": 60, "valid": 4, "test": 2}
    assert "(4 unknown in valid)" in err
    assert json.loads((tmp_path / "run/summary.json").read_text())["test"]["unknown"] == 2


def test_a_run_says_what_it_began_from(invoke: Invoke, tmp_path: Path, small_run: Path, corpus: Path) -> None:
    shutil.copy(small_run / "best.pt", tmp_path / "begin.pt")
    assert invoke(lm_train, corpus, "--init", "begin.pt", *TRAINING, "--epochs", 1, "--out", "run")[0] == 0
    sha256 = hashlib.sha256((small_run / "best.pt").read_bytes()).hexdigest()
    path = str(tmp_path / "begin.pt")
    for name in ("last.pt", "best.pt"):
        assert load_checkpoint(tmp_path / "run" / name).facts.init == Origin(path, sha256)
    settings = read_settings(tmp_path / "run/config.toml")
    assert settings["init"] == path
    assert not {"model", "hidden_size", "tokenizer", "vocab_size", "initial_weights"} & settings.keys()
    report = (tmp_path / "run/report.html").read_text()
    assert f"<tr><th>init</th><td>{path}</td></tr>" in report
    assert "initial_weights" not in report
    assert invoke(lm_train, "--config", "run/config.toml", "--out", "again")[0] == 0
    assert same_weights(tmp_path / "run", tmp_path / "again")


def test_an_interrupted_run_goes_on_without_the_checkpoint_to_the_same_bits(
    invoke: Invoke, tmp_path: Path, small_run: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(small_run / "best.pt", tmp_path / "begin.pt")
    tuned = [corpus, "--init", "begin.pt", "--preset", "tutorial", *TRAINING, "--epochs", 3, "--dropout", 0.3]
    assert invoke(lm_train, *tuned, "--out", "whole")[0] == 0
    step = Trainer.step

    def interrupt(self: Any) -> None:
        step(self)
        self._signals.stop = self.progress.step == 7

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        assert invoke(lm_train, *tuned, "--out", "run")[0] == 130
    (tmp_path / "begin.pt").unlink()
    code, _, err = invoke(lm_train, *tuned, "--out", "run", "--resume")
    assert code == 0
    assert "step 7 of " in err
    assert same_weights(tmp_path / "whole/last.pt", tmp_path / "run/last.pt")
    assert valid_losses(tmp_path / "whole") == valid_losses(tmp_path / "run")
    assert len(valid_losses(tmp_path / "run")) == 3
    own = f"--resume goes on with the run's own settings: init is {tmp_path / 'begin.pt'}"
    code, _, err = invoke(lm_train, "--init", "other.pt", "--out", "run", "--resume")
    assert (code, one_line(err)) == (2, f"lm-train: {own}, not other.pt")


@pytest.mark.parametrize(
    "option",
    [
        ["--model", "gru"],
        ["--hidden-size", 32],
        ["--layers", 2],
        ["--no-tied"],
        ["--tied"],
        ["--projection", 8],
        ["--window", 5],
        ["--order", 3],
        ["--embedding-dim", 24],
        ["--tokenizer", "word"],
        ["--vocab-size", 180],
        ["--min-frequency", 2],
        ["--initial-weights", "scaled"],
    ],
)
def test_the_network_and_the_vocabulary_are_the_checkpoint_s(
    invoke: Invoke, tmp_path: Path, small_run: Path, option: list[object]
) -> None:
    code, out, err = invoke(lm_train, TINY, "--init", small_run, *option)
    assert (code, out) == (2, "")
    name = str(option[0]).replace("--no-", "--")
    assert f"--init gives the network and its vocabulary; leave out {name} " in one_line(err)
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "begin.pt: no such checkpoint"), (b"PK\3\4junk", "begin.pt: not a checkpoint, or damaged")],
)
def test_a_checkpoint_that_cannot_be_used(
    invoke: Invoke, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "begin.pt").write_bytes(content)
    before = tree(tmp_path)
    code, out, err = invoke(lm_train, TINY, "--init", "begin.pt")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert tree(tmp_path) == before


def test_training_must_be_possible_with_the_checkpoint_s_network(
    invoke: Invoke, tmp_path: Path, family_run: Path
) -> None:
    family = load_checkpoint(family_run).model_config.model_type
    options = [*TRAINING, "--epochs", 1, "--locked-dropout"]
    code, _, err = invoke(lm_train, TINY, "--init", family_run, *options, "--out", "run")
    assert code == {"window": 2, "ngram": 1}.get(family, 0)
    if family == "window":
        assert "locked_dropout must be False with window (it has no recurrent layers)" in one_line(err)
        assert tree(tmp_path) == set()
