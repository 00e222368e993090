"""How a run is watched, and how it ends before its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm_trainer.training.snapshot import Progress


class TrainingError(Exception):
    """A run that cannot go on; the message says why and what was kept."""


class InterruptedRunError(Exception):
    """A run that was asked to stop and has written its checkpoint."""


@dataclass(frozen=True)
class Observer:
    """Who is told how a run goes on."""

    step: Callable[[Progress], None] = lambda progress: None
    """Called at each step."""
    record: Callable[[Progress, float], None] = lambda progress, loss: None
    """Called at each record with the loss since the last one, nats a token."""
    epoch: Callable[[dict[str, Any]], None] = lambda record: None
    """Called at the end of an epoch with its metrics."""
