"""A run's job for its trainer: the texts in its folder, and where records and checkpoints go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm_trainer.config import TrainingConfig
from lm_trainer.corpora.corpus import documents_path, require_document_ends
from lm_trainer.corpora.shuffling import document_ends, line_ends, write_shuffled
from lm_trainer.corpora.token_file import Ids
from lm_trainer.families import FAMILIES
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.run.checkpoint import CheckpointStore
from lm_trainer.run.folder import METRICS, SHUFFLED, TOKEN_FILES
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
        order=_order(run / TOKEN_FILES, checkpoint, eos_id, processes),
        processes=processes,
    )


def _order(
    folder: Path, checkpoint: Checkpoint, eos_id: int, processes: Processes
) -> Callable[[int], Ids] | None:
    """What writes the training text in an epoch's order into the ``folder`` of token files, and opens it."""
    recipe, corpus = checkpoint.training_config, checkpoint.facts.corpus
    if recipe is None or recipe.shuffle not in ("line", "document"):
        return None
    train, path, seed = corpus.splits["train"], folder / SHUFFLED, recipe.seed
    if recipe.shuffle == "document" and processes.is_first:
        require_document_ends(documents_path(folder, "train"), train)

    def order(epoch: int) -> Ids:
        if processes.is_first:
            ids = corpus.open(folder, "train", verify=False)
            documents = recipe.shuffle == "document"
            ends = document_ends(documents_path(folder, "train")) if documents else line_ends(ids, eos_id)
            write_shuffled(path, ids, ends, np.random.default_rng([seed, epoch]))
        processes.from_first(0)  # once it is written
        return train.open(path, verify=False)

    return order


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
