"""Small networks and runs that several tests train, and how two runs are compared."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conftest import TINY
from lm_trainer.config import ModelConfig, TokenizerConfig, TrainingConfig
from lm_trainer.corpora.corpus import CorpusFacts
from lm_trainer.corpora.token_file import TokenFile
from lm_trainer.families import FAMILIES
from lm_trainer.networks.base import LanguageModel
from lm_trainer.networks.family import make_model
from lm_trainer.presets import PRESETS
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.run.checkpoint import CheckpointStore
from lm_trainer.run.records import RunFacts
from lm_trainer.training.job import Job
from lm_trainer.training.loop import Trainer

NETWORKS = [name for name, family in FAMILIES.items() if not family.is_estimated]
"""The families that are trained by gradient descent."""

IDS = np.random.default_rng(0).integers(0, 50, 900).astype(np.uint16)

_TEXT = TokenFile(tokens=900, unknown=0, bytes=900, words=900, dtype="uint16", sha256="0" * 64)
FACTS = RunFacts(
    CorpusFacts("random", "random", {"train": _TEXT, "valid": _TEXT}),
    tokenizer="",
    tokenizer_config=TokenizerConfig("word", 50),
    held_out=torch.zeros(1, dtype=torch.int64),
    threads=1,
    device="cpu",
)
"""Of a text of random tokens."""


def small_model(family: str, layers: int = 1) -> LanguageModel:
    """50 tokens, embedding 8, hidden 16, untied; the window model sees three tokens."""
    layers, window = (1, 3) if family == "window" else (layers, 0)
    return make_model(ModelConfig(50, 8, 16, layers, False, family, window), torch.Generator().manual_seed(0))


def make_trainer(
    folder: Path,
    ids: Any = IDS,
    checkpoint_seconds: float = 1e9,
    family: str = "lstm",
    layers: int = 1,
    valid: Any = None,
    **settings: Any,
) -> Trainer:
    """A trainer of a small model on ``ids``, which writes into ``folder``."""
    model = small_model(family, layers)
    config = TrainingConfig(**{"epochs": 1, "batch_size": 4, "seq_len": 7, **settings})
    job = Job(
        model.config,
        config,
        train=ids,
        valid=ids[:100] if valid is None else valid,
        eos_id=0,
        metrics=MetricsLog(folder / "metrics.jsonl"),
        store=CheckpointStore(folder, FACTS, model.config, config),
        checkpoint_seconds=checkpoint_seconds,
    )
    return Trainer(job, model)


def made_small(name: str) -> list[object]:
    """The preset's techniques on layers that train in a second."""
    preset = PRESETS[name]
    projection = ["--projection", 16] if preset.model.get("projection") else []
    narrow = preset.model["tied"] and not projection
    return [
        *[TINY, "--preset", name, "--vocab-size", 300 if preset.tokenizer.tokenizer == "bpe" else 180],
        *["--embedding-dim", 16, "--hidden-size", 16 if narrow else 24, *projection],
        *["--batch-size", 4, "--seq-len", 10, "--epochs", 2, "--sample-tokens", 5],
    ]


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints agree to the bit, but for their paths and the time they took."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same(a[key], b[key]) for key in a if key not in ("seconds", "metrics_bytes", "path")
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def changed(path: Path, before: int) -> Callable[[], bool]:
    return lambda: path.exists() and path.stat().st_mtime_ns != before


def skewed(tokens: int) -> list[int]:
    """A text of ids below 300 whose counts are like a language's: many phrases are rare, some are not."""
    generator = np.random.default_rng(3)
    text: list[int] = []
    while len(text) < tokens:
        if text and generator.random() < 0.6:
            start = int(len(text) * generator.random() ** 2)
            text += text[start : start + 6]
        else:
            text += [int(number) if number < 300 else 0 for number in generator.zipf(1.3, 6)]
    return text[:tokens]
