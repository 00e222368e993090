"""A dry run says what a run would take, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from conftest import SMALL, TINY, Invoke, family_options, one_line, tree
from lm_trainer.command import main as lm_train
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.training import forecast
from lm_trainer.training.loop import Trainer


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files; the measuring takes no longer than it must."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(forecast, "_SECONDS", 0)
    return folder


def left(temporary: Path) -> list[Path]:
    """What a dry run left there; torch and onnxruntime have files of their own there."""
    return list(temporary.glob("lm-train-*"))


def figures(out: str) -> dict[str, str]:
    """The lines' names and values."""
    return dict(re.split(r"  +", line) for line in out.splitlines())


def number(text: str) -> float:
    return float(text.split()[-1].replace(",", ""))


def test_it_says_what_the_run_then_takes(
    invoke: Invoke, tmp_path: Path, temporary: Path, family_run: Path
) -> None:
    last = load_checkpoint(family_run / "last.pt")
    family = last.model_config.model_type
    (tmp_path / "artifacts/run").mkdir(parents=True)
    (tmp_path / "artifacts/run/notes.txt").write_text("mine")
    before = tree(tmp_path)
    code, out, _ = invoke(lm_train, TINY, *family_options(family), "--dry-run")
    assert code == 0
    assert tree(tmp_path) == before
    assert not left(temporary)
    said = figures(out)
    if family == "ngram":
        assert said.keys() == {"tokens", "order", "peak memory"}
        assert number(said["tokens"]) == last.facts.corpus.splits["train"].tokens
        assert said["order"] == "5"
        assert said["peak memory"].startswith("at most about ")
        return
    summary = json.loads((family_run / "summary.json").read_text())
    assert number(said["parameters"]) == summary["parameters"]
    assert number(said["steps"]) == last.progress.step
    assert number(said["tokens an epoch"]) == last.progress.step / 3 * 4 * 10
    assert re.fullmatch(r"about \d+\.\d [MG]B", said["peak memory"])
    hours, minutes, seconds = map(int, said["time"].removeprefix("about ").split(":"))
    training = 3 * number(said["tokens an epoch"]) / number(said["tokens a second"])
    assert training - 1 < hours * 3600 + minutes * 60 + seconds < training + 60


def test_an_epoch_may_be_shorter_than_what_is_measured(invoke: Invoke, temporary: Path) -> None:
    code, out, _ = invoke(lm_train, TINY, *SMALL, "--seq-len", 200, "--epochs", 1, "--dry-run")
    assert code == 0
    assert figures(out)["steps"] == "1"


@pytest.mark.parametrize("corpus", ["nowhere", TINY])
def test_a_run_that_cannot_begin_says_so(
    invoke: Invoke, tmp_path: Path, temporary: Path, corpus: object
) -> None:
    code, out, err = invoke(lm_train, corpus, *SMALL, "--seq-len", 9999, "--dry-run")
    assert (code, out) == (2, "")
    assert ("no corpus nowhere" if corpus == "nowhere" else "the training text is too short") in one_line(err)
    assert not tree(tmp_path)
    assert not left(temporary)
    code, _, err = invoke(lm_train, TINY, "--resume", "--dry-run")
    assert code == 2
    assert "give --resume or --dry-run, not both" in one_line(err)


def test_an_interruption_leaves_nothing(
    invoke: Invoke, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def interrupted(_: Trainer) -> None:
        found.extend(temporary.glob("lm-train-*/run/last.pt"))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupted)
    code, out, err = invoke(lm_train, TINY, *SMALL, "--dry-run")
    assert (code, out) == (130, "")
    assert one_line(err) == "lm-train: interrupted"
    assert len(found) == 1
    assert not tree(tmp_path)
    assert not left(temporary)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "lm-train"), str(TINY), *SMALL, "--dry-run"],
        cwd=here,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(temporary.glob("lm-train-*/run/last.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert one_line(err) == "lm-train: interrupted"
    assert not tree(here)
    assert not left(temporary)
