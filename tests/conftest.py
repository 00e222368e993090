"""What several claims need: commands run as a user runs them, and one small model trained and exported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import sentencepiece

from lm_export.command import main as lm_export
from lm_trainer.command import main as lm_train
from lm_trainer.families import FAMILIES

# These models are so small that a second thread costs more than it brings.
os.environ["OMP_NUM_THREADS"] = "1"
# Claims to the bit are made for the CPU; those for GPUs are in test_cuda.py.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "data" / "tiny"
FIXTURE = ROOT / "tests" / "fixtures" / "tiny_bundle"

# A model that trains in a second and still has everything: two layers, untied, unknown words.
SMALL = (
    "--tokenizer word --vocab-size 180 --embedding-dim 24 --hidden-size 32 --layers 2 --no-tied "
    "--batch-size 4 --seq-len 10 --sample-tokens 20 --lr 0.01"
).split()
SPELLED = (
    "--hidden-size 32 --embedding-dim 32 --batch-size 4 --seq-len 20 --epochs 10 --lr 0.02 --sample-tokens 0"
).split()
COUNTED = SMALL[:4]
"""The same vocabulary, and nothing about a network."""


def run_command(name: str, *arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands as a process of its own and check its exit status."""
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == code, f"{name} exited with {result.returncode}:\n{result.stderr[-3000:]}"
    return result


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on data/tiny."""
    folder = tmp_path_factory.mktemp("small")
    run_command("lm-train", TINY, "--out", "run", "--epochs", 3, *SMALL, cwd=folder)
    return folder / "run"


@pytest.fixture(scope="session")
def small_bundle(small_run: Path) -> Path:
    """Its bundle, with int8."""
    run_command("lm-export", small_run, "--out", "bundle", "--quantize", "int8", cwd=small_run.parent)
    return small_run.parent / "bundle"


@pytest.fixture(scope="session", params=FAMILIES)
def family_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each family."""
    if request.param == "lstm":
        run: Path = request.getfixturevalue("small_run")
        return run
    run = tmp_path_factory.mktemp(request.param) / "run"
    _run_here(lm_train, TINY, "--out", run, *family_options(request.param))
    return run


def family_options(family: str) -> list[object]:
    """What makes a small run of a family."""
    if family == "ngram":
        return ["--model", family, *COUNTED, "--sample-tokens", 20]
    return ["--model", family, *SMALL, "--epochs", 3, *(["--layers", 1] if family == "window" else [])]


@pytest.fixture(scope="session")
def family_bundle(request: pytest.FixtureRequest, family_run: Path) -> Path:
    """Its bundle, a network's with int8."""
    if family_run == request.getfixturevalue("small_run"):
        bundle: Path = request.getfixturevalue("small_bundle")
        return bundle
    bundle = family_run.parent / "bundle"
    options = [] if family_run.parent.name.startswith("ngram") else ["--quantize", "int8"]
    _run_here(lm_export, family_run, "--out", bundle, *options)
    return bundle


@pytest.fixture(scope="session", params=["bpe", "char", "sentencepiece"])
def spelled_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a small model whose words are spelled by several tokens, in each way to do so."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer: list[object] = [request.param, "--vocab-size", 300]
    if request.param == "sentencepiece":
        sentencepiece.SentencePieceTrainer.train(
            input=str(TINY / "train.txt"), model_prefix=str(folder / "units"), vocab_size=150, minloglevel=2
        )
        tokenizer = ["units.model"]
    run_command("lm-train", TINY, "--tokenizer", *tokenizer, *SPELLED, "--out", "run", cwd=folder)
    run_command("lm-export", "run", "--out", "bundle", cwd=folder)
    return folder / "bundle"


def exit_status(command: click.Command, *arguments: object) -> int:
    """Run a command within this process, which has torch loaded already, and return its exit status.

    A command that is about to end the process ignores signals, and every process that is started later would.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as exit_:
            command.main([str(argument) for argument in arguments], prog_name=command.name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def _run_here(command: click.Command, *arguments: object) -> None:
    assert exit_status(command, *arguments) == 0


Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command within this process, in an empty folder: exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(command: click.Command, *arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = exit_status(command, *arguments)
        return (status, *capfd.readouterr())

    return call


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def one_line(err: str) -> str:
    """The last line, which must be the only complaint."""
    assert "Traceback" not in err
    assert "Warning" not in err
    return err.splitlines()[-1]
