"""On a GPU: every recipe trains, is resumed and exported, and its steps wait for nothing.

Run where torch sees one; the project's own checks have none.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY
from lm_trainer.presets import PRESETS
from small_runs import made_small

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}

STEPS = """
import sys
from pathlib import Path
import numpy as np
import torch
from dataclasses import replace
from lm_trainer.config import ModelConfig
from lm_trainer.networks.family import make_model
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.presets import PRESETS
from lm_trainer.training.job import Job
from lm_trainer.training.loop import Trainer

preset, folder = PRESETS[sys.argv[1]], Path(sys.argv[2])
config = ModelConfig(**{**preset.model, "vocab_size": 1000})
model = make_model(config, torch.Generator().manual_seed(0)).to("cuda")
ids = np.random.default_rng(0).integers(0, 1000, 100_000).astype(np.uint16)
job = Job(
    config, replace(preset.training, precision=sys.argv[3]), train=ids, valid=ids[:100], eos_id=0,
    metrics=MetricsLog(folder / "metrics"), store=None,
)
trainer = Trainer(job, model)
for _ in range(3):
    trainer.step()
torch.cuda.set_sync_debug_mode("error")
for _ in range(5):
    trainer.step()
"""


@functools.cache
def has_gpu() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0


def call(folder: Path, *arguments: object) -> str:
    name, *rest = map(str, arguments)
    command = [str(Path(sys.executable).parent / name), *rest]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not has_gpu():
        pytest.skip("torch sees no GPU here")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_run_is_resumed_and_its_graph_equals_the_torch_model(
    tmp_path: Path, name: str, precision: str
) -> None:
    options = [*made_small(name), "--device", "cuda", "--precision", precision, "--out", "run"]
    call(tmp_path, "lm-train", *options)
    call(tmp_path, "lm-train", *options, "--resume", "--epochs", 3)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["valid_loss"] for record in records if record["event"] == "epoch"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    call(tmp_path, "lm-export", "run", "--out", "bundle")
    score = json.loads(call(tmp_path, "lm-score", "bundle", TINY / "valid.txt", "--json"))
    best = json.loads((tmp_path / "run/summary.json").read_text())["valid"]["perplexity"]
    assert score["perplexity"] == pytest.approx(best, rel=0.01)  # TF32 there, float32 here


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_waits_for_nothing(tmp_path: Path, name: str, precision: str) -> None:
    """torch raises at whatever would make it wait for the GPU."""
    subprocess.run([sys.executable, "-c", STEPS, name, str(tmp_path), precision], env=ENVIRONMENT, check=True)
