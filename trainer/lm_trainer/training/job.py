"""What a trainer is given, whatever the family. Knows nothing about corpora or a run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lm_trainer.config import ModelConfig, TrainingConfig
from lm_trainer.corpora.token_file import Ids
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.training.processes import ALONE, Processes
from lm_trainer.training.snapshot import Store

if TYPE_CHECKING:
    import torch


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """A model to train on a text."""

    model_config: ModelConfig
    """The model's sizes."""
    recipe: TrainingConfig
    """How to train; without meaning for a family that is estimated."""
    train: Ids
    """Token ids of the training text."""
    valid: Ids
    """Token ids of the validation text."""
    eos_id: int
    """A line's end, from which the validation text's first token is predicted."""
    metrics: MetricsLog
    """Where the records go."""
    store: Store
    """Where the checkpoints go."""
    device: torch.device = field(default_factory=_cpu)
    """Where to train."""
    checkpoint_seconds: float = 60.0
    """The longest time between two checkpoints; 0 writes one at each step."""
    order: Callable[[int], Ids] | None = None
    """The training text as an epoch reads it, counted from 0; None where each reads it as it is."""
    processes: Processes = ALONE
    """Those that train the model together. Each has a share of the columns; the first one validates and
    writes."""
