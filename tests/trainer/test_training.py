"""The loop trains what the recipe says, repeats to the bit, and goes on from where it was killed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import SMALL, TINY, family_options, run_command
from lm_trainer.config import TrainingConfig
from lm_trainer.networks.recurrent import CELLS, RecurrentLM
from lm_trainer.presets import PRESETS
from lm_trainer.run.checkpoint import load_checkpoint, restore_model
from lm_trainer.run.records import Checkpoint
from lm_trainer.training import loop as training
from lm_trainer.training.loop import Trainer
from lm_trainer.training.optimizer import learning_rate
from lm_trainer.training.progress import InterruptedRunError, Observer, TrainingError
from lm_trainer.training.snapshot import Progress
from small_runs import IDS, NETWORKS, changed, make_trainer, records, same, wait_for

SILENT = Observer()


def resume(trainer: Trainer, checkpoint: Checkpoint) -> None:
    trainer.model.load_state_dict(checkpoint.weights)
    trainer.resume(checkpoint.snapshot)


def test_the_tutorial_preset_is_the_tutorial() -> None:
    preset = PRESETS["tutorial"]
    assert preset.model == {"embedding_dim": 128, "hidden_size": 1024, "num_layers": 1, "tied": False}
    assert preset.tokenizer.tokenizer == "word"
    assert preset.training == TrainingConfig(
        epochs=5, batch_size=20, seq_len=30, dropout=0.0, optimizer="adam", lr=0.002, clip_norm=0.5
    )


@pytest.mark.parametrize("clip", [{"clip_norm": 0.5}, {"clip_value": 0.01}])
def test_the_loop_is_the_tutorial_s_loop(tmp_path: Path, clip: dict[str, float]) -> None:
    """The tutorial's recipe written out with torch's parts ends with the same weights."""
    trainer = make_trainer(tmp_path, lr=0.002, **clip)
    embed, lstm, linear = nn.Embedding(50, 8), nn.LSTM(8, 16, 1, batch_first=True), nn.Linear(16, 50)
    assert isinstance(trainer.model, RecurrentLM)
    parts = zip(
        (embed, lstm, linear),
        (trainer.model.embedding, trainer.model.layers[0], trainer.model.head),
        strict=True,
    )
    for part, ours in parts:
        part.load_state_dict(ours.state_dict())
    parameters = [*embed.parameters(), *lstm.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.002)
    columns = torch.from_numpy(IDS.astype(np.int64))[: len(IDS) // 4 * 4].view(4, -1)
    states = (torch.zeros(1, 4, 16), torch.zeros(1, 4, 16))
    for i in range(0, columns.size(1) - 7, 7):
        states = (states[0].detach(), states[1].detach())
        outputs, states = lstm(embed(columns[:, i : i + 7]), states)
        loss = nn.functional.cross_entropy(
            linear(outputs).reshape(-1, 50), columns[:, i + 1 : i + 8].reshape(-1)
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if "clip_norm" in clip:
            nn.utils.clip_grad_norm_(parameters, 0.5)
        else:
            nn.utils.clip_grad_value_(parameters, 0.01)
        optimizer.step()
    trainer.train(SILENT)
    assert trainer.progress.step == trainer.total_steps == 32
    for expected, found in zip(parameters, trainer.model.parameters(), strict=True):
        assert float((expected - found).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("family", NETWORKS)
def test_mixed_precision_trains_what_full_precision_trains(tmp_path: Path, family: str) -> None:
    """The losses stay together; and the products are in bfloat16 indeed, so they are not the same."""
    curves = []
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        trainer = make_trainer(tmp_path / precision, family=family, precision=precision, epochs=3, lr=0.01)
        trainer.train(SILENT)
        curves.append([record["loss"] for record in records(tmp_path / precision) if "loss" in record])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    difference = np.abs(np.subtract(*curves))
    assert 0 < difference.max() < 0.01


def test_schedules() -> None:
    def rates(**settings: Any) -> list[float]:
        return [round(learning_rate(TrainingConfig(lr=1.0, **settings), step, 4), 3) for step in range(4)]

    assert rates() == [1, 1, 1, 1]
    assert rates(schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(schedule="cosine") == [1, 0.854, 0.5, 0.146]
    assert rates(warmup_steps=2) == [0.5, 1, 1, 1]
    assert rates(warmup_steps=500) == [0.5, 1, 1, 1]
    assert rates(warmup_steps=500, schedule="linear") == [0.5, 1, 1, 0.5]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns(tmp_path: Path, optimizer: str) -> None:
    ids = np.tile(np.arange(10, dtype=np.uint16), 90)
    lr = 1.0 if optimizer == "sgd" else 0.02
    trainer = make_trainer(tmp_path, ids, optimizer=optimizer, lr=lr, epochs=2, weight_decay=1e-5)
    trainer.train(SILENT)
    assert trainer.progress.best_valid_loss < 1.0 < np.log(10)


@pytest.mark.parametrize("family", NETWORKS)
def test_every_family_learns(tmp_path: Path, family: str) -> None:
    ids = np.tile(np.array([3, 1, 4, 1, 5, 9], dtype=np.uint16), 150)  # what comes after 1 needs a memory
    trainer = make_trainer(tmp_path, ids, family=family, lr=0.02, epochs=3)
    trainer.train(SILENT)
    assert trainer.progress.best_valid_loss < 0.2 < np.log(2) / 3


@pytest.mark.parametrize("family", NETWORKS)
def test_scaled_weights_are_at_the_unigram_perplexity_before_the_first_step(
    tmp_path: Path, family: str
) -> None:
    """And torch's at the uniform one; a rate near 0 leaves them there."""
    found = {}
    for name in ("torch", "scaled"):
        options = [TINY, *family_options(family), "--epochs", 1, "--lr", 1e-12]
        run_command("lm-train", *options, "--initial-weights", name, "--out", name, cwd=tmp_path)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        found[name] = summary["valid"]["perplexity"]
    baselines = summary["baselines"]
    assert found["torch"] == pytest.approx(baselines["uniform"], rel=0.2)
    assert found["scaled"] == pytest.approx(baselines["unigram"], rel=0.1)
    assert baselines["unigram"] < 0.7 * baselines["uniform"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", NETWORKS)
def test_a_run_of_any_family_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path, family: str, precision: str
) -> None:
    """What was trained since the last checkpoint is lost, as when a process is killed."""

    class KilledError(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 40:
            raise KilledError

    settings: dict[str, Any] = {"family": family, "layers": 2, "epochs": 2, "dropout": 0.3}
    settings |= {"precision": precision, "dropout_input": 0.1, "dropout_words": 0.1, "accumulate": 2}
    if family in CELLS:
        settings |= {"locked_dropout": True, "weight_drop": 0.2}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train(SILENT)
    killed = make_trainer(tmp_path / "killed", **settings)
    with pytest.raises(KilledError):
        killed.train(dataclasses.replace(SILENT, step=kill))
    stopped = load_checkpoint(tmp_path / "killed/last.pt", mapped=False)
    assert 0 < stopped.progress.step < 40
    resumed = make_trainer(tmp_path / "killed", **settings)
    resume(resumed, stopped)
    resumed.train(SILENT)
    ends = [load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "killed")]
    assert same(*ends)
    assert ends[0].model_config.model_type == family


def test_ctrl_c_within_a_validation_keeps_the_epoch_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        raise AssertionError("the validation went on")

    stopped = make_trainer(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(training, "negative_log_likelihood", interrupted)
        stopped.train(SILENT)
    checkpoint = load_checkpoint(tmp_path / "last.pt", mapped=False)
    assert checkpoint.progress.step == checkpoint.progress.window == stopped.windows
    resumed = make_trainer(tmp_path)
    resume(resumed, checkpoint)
    resumed.train(SILENT)
    assert resumed.progress.step == stopped.windows
    assert resumed.progress.epoch == 1


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("family", NETWORKS)
def test_columns_read_in_groups_make_the_same_steps(tmp_path: Path, family: str, groups: int) -> None:
    """The states too, column by column; only sums are in another order."""
    settings: dict[str, Any] = {"family": family, "layers": 2, "lr": 0.01, "clip_norm": 0.5}
    whole = make_trainer(tmp_path, **settings)
    grouped = make_trainer(tmp_path, accumulate=groups, **settings)
    for _ in range(whole.windows):
        losses = [float(trainer.step()) for trainer in (whole, grouped)]
        assert abs(losses[0] - losses[1]) < 1e-5
    states = []
    for trainer in (whole, grouped):
        trainer.save()
        states.append(torch.load(tmp_path / "last.pt", weights_only=True)["hidden"])
    for a, b in zip(*states, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a.float(), b.float(), atol=1e-4)


OTHER_IDS = np.random.default_rng(1).integers(0, 50, 100).astype(np.uint16)


def test_a_run_waits_for_a_better_validation_as_long_as_its_patience(tmp_path: Path) -> None:
    """No random text helps with another: validation soon gets worse. Killed while it waits, it goes on."""

    class KilledError(Exception):
        pass

    def make(name: str, **settings: Any) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return make_trainer(tmp_path / name, valid=OTHER_IDS, lr=0.02, epochs=30, **settings)

    whole = make("whole", patience=3)
    whole.train(SILENT)
    bests = [record["best"] for record in records(tmp_path / "whole") if record["event"] == "epoch"]
    assert 3 < len(bests) < 30
    assert bests[-4:] == [True, False, False, False]
    assert not any(not any(bests[at : at + 3]) for at in range(len(bests) - 3))

    def kill(progress: Progress) -> None:
        if progress.epoch == len(bests) - 1 and progress.window == 20:
            raise KilledError

    killed = make("killed", patience=3)
    with pytest.raises(KilledError):
        killed.train(dataclasses.replace(SILENT, step=kill))
    resumed = make("killed", patience=3)
    resume(resumed, load_checkpoint(tmp_path / "killed/last.pt", mapped=False))
    assert not resumed.complete
    resumed.train(SILENT)
    ends = [load_checkpoint(tmp_path / name / "last.pt", mapped=False) for name in ("whole", "killed")]
    assert same(*ends)
    patient = make("killed")
    resume(patient, ends[1])
    assert not patient.complete


def test_a_checkpoint_from_before_there_were_families_is_an_lstm(small_run: Path, tmp_path: Path) -> None:
    content = torch.load(small_run / "best.pt", weights_only=True)
    for name in ("model_type", "window"):
        del content["model_config"][name]
    torch.save(content, tmp_path / "early.pt")
    model, _ = restore_model(load_checkpoint(tmp_path / "early.pt"))
    assert isinstance(model, RecurrentLM)
    assert model.config.model_type == "lstm"


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, lr=1e38, optimizer="sgd", epochs=9, checkpoint_seconds=0)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in epoch 1, by step"):
        trainer.train(SILENT)
    last = tmp_path / "last.pt"
    if last.exists():
        weights = torch.load(last, weights_only=True)["model"].values()
        assert all(bool(tensor.isfinite().all()) for tensor in weights)


LONG = [
    TINY,
    *SMALL,
    "--epochs",
    "12",
    "--dropout",
    "0.3",
    "--schedule",
    "cosine",
    "--checkpoint-seconds",
    "0",
]


AT_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """lm-train as a shell at a terminal starts it: signals end it, though the tests may run under nohup."""
    command = [str(Path(sys.executable).parent / "lm-train"), *map(str, LONG), "--out", "run", *more]
    shell = [sys.executable, "-I", "-S", "-c", AT_A_TERMINAL, *command]
    return subprocess.Popen(shell, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_command("lm-train", *LONG, "--out", "run", cwd=folder)
    return folder / "run"


@pytest.mark.parametrize("seconds", ["0", "0.1"])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    uninterrupted: Path, tmp_path: Path, seconds: str
) -> None:
    """With a checkpoint at each step, and with some steps and records after the last one."""
    seed = random.randrange(1 << 30)
    print("kill -9 moments from seed", seed)
    moments = random.Random(seed)
    last = tmp_path / "run" / "last.pt"
    kills, steps = 0, []
    for _ in range(3):
        process = start(tmp_path, "--resume", "--checkpoint-seconds", seconds)
        wait_for(changed(last, last.stat().st_mtime_ns if last.exists() else 0), process)
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert process.stderr is not None
        process.stderr.close()
        steps.append(load_checkpoint(last).progress.step)
    run_command("lm-train", *LONG, "--out", "run", "--resume", cwd=tmp_path)
    assert kills >= 2, f"the run was over too early: killed at steps {steps}"
    for name in ("last.pt", "best.pt"):
        assert same(load_checkpoint(uninterrupted / name), load_checkpoint(tmp_path / "run" / name)), steps
    assert records(uninterrupted) == records(tmp_path / "run"), steps
    assert (tmp_path / "run/sample.txt").read_text() == (uninterrupted / "sample.txt").read_text()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    uninterrupted: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        run_command("lm-train", *LONG, "--epochs", 12, "--out", name, "--seed", seed, cwd=tmp_path)
    first, again, other = (
        load_checkpoint(run / "last.pt") for run in (uninterrupted, tmp_path / "a", tmp_path / "b")
    )
    assert same(first, again)
    assert not same(first.weights, other.weights)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_checkpoint_and_resume_goes_on(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "--checkpoint-seconds", "1000")
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
    run_command("lm-train", *LONG, "--out", "run", "--resume", cwd=tmp_path)
    assert same(load_checkpoint(uninterrupted / "last.pt"), load_checkpoint(tmp_path / "run/last.pt"))


def test_under_nohup_a_closed_terminal_does_not_end_a_run(tmp_path: Path) -> None:
    command = ["nohup", str(Path(sys.executable).parent / "lm-train"), *map(str, LONG), "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("delay", [0.2, 0.5, 0.9, 1.4])
def test_ctrl_c_at_any_moment_leaves_nothing_half_written(tmp_path: Path, delay: float) -> None:
    process = start(tmp_path)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), err
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    # On a busy machine Python may still be on its way to our first module, and says itself where it was.
    assert "Traceback" not in err or not re.search(r"lm_(trainer|runtime)/(?!__init__|start)", err), err


def test_a_finished_run_has_everything(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        "best.pt",
        "config.toml",
        "last.pt",
        "loss.png",
        "metrics.jsonl",
        "report.html",
        "sample.txt",
        "summary.json",
        "tokenizer.json",
        "tokens",
    }
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["baselines"]["uniform"] == 180
    assert 1 < summary["valid"]["perplexity"] < summary["baselines"]["unigram"] < 180
    epochs = [record for record in records(uninterrupted) if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs] == list(range(1, 13))
    assert min(record["valid_perplexity"] for record in epochs) == pytest.approx(
        summary["valid"]["perplexity"]
    )


def test_resuming_a_finished_run_does_nothing_and_more_epochs_go_on(tmp_path: Path) -> None:
    short = [*LONG[:-6], "--epochs", "2"]
    run_command("lm-train", *short, "--out", "run", cwd=tmp_path)
    before = (tmp_path / "run/last.pt").stat().st_mtime_ns
    result = run_command("lm-train", "--out", "run", "--resume", cwd=tmp_path)
    assert "complete: nothing to do" in result.stderr
    assert (tmp_path / "run/last.pt").stat().st_mtime_ns == before
    run_command("lm-train", "--out", "run", "--resume", "--epochs", 3, "--sample-tokens", 5, cwd=tmp_path)
    assert load_checkpoint(tmp_path / "run/last.pt").progress.epoch == 3


def test_a_disk_that_is_full_leaves_the_checkpoint_before(uninterrupted: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    run = tmp_path / "run"
    run_command("lm-train", *LONG[:-6], "--epochs", 1, "--out", run, "--sample-tokens", 0, cwd=tmp_path)
    before = (run / "last.pt").read_bytes()
    limit = len(before) // 2
    code = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from lm_trainer.command import main; main(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--out", str(run), "--resume", "--epochs", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert (run / "last.pt").read_bytes() == before
    assert not list(run.glob(".*"))
