"""A run's job for its trainer: the texts in its folder, and where records and checkpoints go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lm_trainer.config import TrainingConfig
from lm_trainer.families import FAMILIES
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.run.checkpoint import CheckpointStore
from lm_trainer.run.folder import METRICS, TOKEN_FILES
from lm_trainer.run.records import Checkpoint
from lm_trainer.training.job import Job
from lm_trainer.training.processes import Processes

if TYPE_CHECKING:
    import torch


def make_job(
    run: Path,
    checkpoint: Checkpoint,
    *,
    eos_id: int,
    device: torch.device,
    checkpoint_seconds: float,
    processes: Processes,
) -> Job:
    """The job of the run in the folder ``run`` that has ``checkpoint``; the rest is as for :class:`Job`.

    Raises:
        UnusableFileError: a token file is missing, or is not the one that was written.
    """
    facts, recipe = checkpoint.facts, checkpoint.training_config
    return Job(
        checkpoint.model_config,
        recipe or TrainingConfig(),
        train=facts.corpus.open(run / TOKEN_FILES, "train"),
        valid=facts.corpus.open(run / TOKEN_FILES, "valid"),
        eos_id=eos_id,
        metrics=MetricsLog(run / METRICS if processes.is_first else Path(os.devnull)),
        store=CheckpointStore(run, facts, checkpoint.model_config, recipe),
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        processes=processes,
    )


def check_processes(count: int, model_type: str, config: TrainingConfig) -> None:
    """Check that ``count`` processes can train a model together.

    Raises:
        ValueError: they cannot.
    """
    if count == 1:
        return
    if FAMILIES[model_type].is_estimated:
        raise ValueError(
            f"{model_type} is estimated in one process, not in {count}: start it without torchrun"
        )
    if config.batch_size % (count * config.accumulate):
        groups = f", in {config.accumulate} groups each" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size must be divisible by the number of processes{groups}, got {config.batch_size} and "
            f"{count}"
        )
