"""Processes that torchrun starts train what one process trains, and end together."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from conftest import SMALL, TINY, run_command, tree
from lm_trainer.run.checkpoint import load_checkpoint
from small_runs import changed, records, same, wait_for

TOGETHER = ["--nproc-per-node", 2, "--no-python", Path(sys.executable).parent / "lm-train"]
CURVE_TOLERANCE = 1e-5
"""Of losses in float32: two processes add in another order than one."""


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Two processes that train together, under torchrun."""
    command = [str(Path(sys.executable).parent / "torchrun"), *map(str, [*TOGETHER, *arguments])]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


def complaints(err: str) -> list[str]:
    """Our lines among torchrun's own."""
    return [line for line in err.splitlines() if line.startswith(("lm-train:", "stopped"))]


def losses(run: Path) -> list[float]:
    return [record[name] for record in records(run) for name in ("loss", "valid_loss") if name in record]


def assert_same_curve(a: Path, b: Path) -> None:
    assert len(losses(a)) == len(losses(b)) > 4
    assert max(abs(x - y) for x, y in zip(losses(a), losses(b), strict=True)) < CURVE_TOLERANCE


@pytest.mark.parametrize("family", ["lstm", "window"])
def test_two_processes_train_what_one_trains_whenever_they_resume_it(tmp_path: Path, family: str) -> None:
    """The same batch gives the same losses, also where one goes on from two and two from one."""
    layers = ["--layers", 1] if family == "window" else []
    options = [
        TINY,
        *SMALL,
        "--model",
        family,
        *layers,
        "--dropout",
        0,
        "--seq-len",
        4,
        "--schedule",
        "constant",
    ]
    run_command("lm-train", *options, "--epochs", 4, "--out", "one", cwd=tmp_path)
    run_command("torchrun", *TOGETHER, *options, "--epochs", 2, "--out", "two", cwd=tmp_path)
    result = run_command("lm-train", "--out", "two", "--resume", "--epochs", 3, cwd=tmp_path)
    assert "the number of processes was 2 and is 1: the run goes on, but not bit for bit" in result.stderr
    result = run_command("torchrun", *TOGETHER, "--out", "two", "--resume", "--epochs", 4, cwd=tmp_path)
    assert result.stdout == "two/best.pt\n"
    assert result.stderr.count("resumed from") == 1
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


LONG = [TINY, *SMALL, "--epochs", 8, "--dropout", 0.3, "--weight-drop", 0.2, "--checkpoint-seconds", 0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_command("torchrun", *TOGETHER, *LONG, "--out", "run", cwd=folder)
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_ends_one_process_ends_both_and_they_go_on_to_the_same_bits(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    last = tmp_path / "run/last.pt"
    process = start(tmp_path, *LONG, "--out", "run")
    wait_for(last.exists, process)
    wait_for(changed(last, last.stat().st_mtime_ns), process)
    second = next(child for child in psutil.Process(process.pid).children() if child.environ()["RANK"] == "1")
    second.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1  # torchrun's own, whatever the processes end with
    [line] = complaints(err)
    if number == signal.SIGKILL:
        assert line.startswith("lm-train: another process of this run has ended or cannot be reached")
    else:
        assert line.startswith("stopped at step")
        assert "exitcode  : 130" in err
    assert not [name for name in tree(tmp_path) if name.endswith(".partial")]
    assert load_checkpoint(last).progress.epoch < 8
    run_command("torchrun", *TOGETHER, "--out", "run", "--resume", cwd=tmp_path)
    checkpoint = load_checkpoint(last)
    assert same(load_checkpoint(uninterrupted / "last.pt"), checkpoint)
    assert checkpoint.snapshot.descent is not None
    assert not torch.equal(*checkpoint.snapshot.descent.generators)  # of their own masks
    assert records(uninterrupted) == records(tmp_path / "run")


def test_ctrl_c_of_torchrun_ends_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "--out", "run", "--checkpoint-seconds", 1000)
    wait_for((tmp_path / "run/metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    [line] = complaints(err)
    assert line.startswith("stopped at step")
    assert load_checkpoint(tmp_path / "run/last.pt").progress.step > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY, "--batch-size", 5], "batch_size must be divisible by the number of processes, got 5 and 2"),
        (
            [TINY, "--model", "ngram"],
            "ngram is estimated in one process, not in 2: start it without torchrun",
        ),
        (["nowhere"], "no corpus nowhere: neither a folder, a file, nor one of pydocs"),
        ([TINY, "--no-such-option"], "No such option '--no-such-option'. (see lm-train --help)"),
    ],
)
def test_a_mistake_is_said_once(tmp_path: Path, arguments: list[object], message: str) -> None:
    result = run_command("torchrun", *TOGETHER, *arguments, "--out", "run", cwd=tmp_path, code=1)
    [line] = complaints(result.stderr)
    assert line.startswith(f"lm-train: {message}")
    assert tree(tmp_path) == set()


def test_a_batch_that_cannot_be_divided_is_refused_when_a_run_goes_on(tmp_path: Path) -> None:
    run_command("lm-train", TINY, *SMALL, "--batch-size", 3, "--epochs", 1, "--out", "run", cwd=tmp_path)
    before = (tmp_path / "run/last.pt").read_bytes()
    result = run_command("torchrun", *TOGETHER, "--out", "run", "--resume", cwd=tmp_path, code=1)
    [line] = complaints(result.stderr)
    assert line == "lm-train: batch_size must be divisible by the number of processes, got 3 and 2"
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_a_disk_that_is_full_ends_both(tmp_path: Path) -> None:
    """The first process cannot write; the other one does not wait for it."""
    run_command("torchrun", *TOGETHER, TINY, *SMALL, "--epochs", 1, "--out", "run", cwd=tmp_path)
    before = (tmp_path / "run/last.pt").read_bytes()
    code = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2})); "
        "from lm_trainer.command import main; main(sys.argv[1:])"
    )
    (tmp_path / "limited.py").write_text(code)
    arguments = ["--nproc-per-node", 2, "limited.py", "--out", "run", "--resume", "--epochs", 2]
    result = run_command("torchrun", *arguments, cwd=tmp_path, code=1)
    [line] = complaints(result.stderr)
    assert "File too large" in line
    assert (tmp_path / "run/last.pt").read_bytes() == before


THREADS = """
import sys

import psutil
import torch

from lm_trainer.training.processes import Processes

processes = Processes.join(torch.device("cpu"))
parameter = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.Adam([parameter])
parameter.grad = torch.ones(3)
optimizer.step()
processes.sum([parameter.grad])
before = psutil.Process().num_threads()
processes.leave()
after = psutil.Process().num_threads()
if before - after < 2:  # gloo's
    sys.exit(f"of {before} threads {after} are left")
"""


def test_who_has_left_has_no_threads_that_could_abort_it(tmp_path: Path) -> None:
    """What torch imports with the first step would keep them."""
    (tmp_path / "script.py").write_text(THREADS, encoding="utf-8")
    run_command("torchrun", "--nproc-per-node", 2, "script.py", cwd=tmp_path)
