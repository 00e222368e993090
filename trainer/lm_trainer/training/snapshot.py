"""What a run goes on from: the part of a checkpoint that changes as a run goes on.

Knows nothing about files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0
    """Epochs that are complete, validation included."""
    window: int = 0
    """Windows of the current epoch that were trained on."""
    step: int = 0
    """Steps of the optimizer in all."""
    loss_sum: float = 0.0
    """The windows' mean losses in the current epoch, summed up to the last record."""
    pending: float = 0.0
    """The same since the last record."""
    seconds: float = 0.0
    """Time spent training and validating."""
    valid_loss: float = math.inf
    """The validation loss of the last complete epoch, nats a token."""
    best_valid_loss: float = math.inf
    """The lowest validation loss, nats a token."""
    best_epoch: int = 0
    """The epoch that had it, counted from 1."""


@dataclass(frozen=True)
class Descent:
    """What gradient descent goes on from, beside the weights."""

    optimizer: dict[str, Any]
    """The optimizer's own state."""
    generators: Tensor
    """The states of the generators of the dropout masks, uint8 ``(processes, bytes)``."""
    hidden: tuple[Tensor, ...]
    """The network's state after the last window, for all columns."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    progress: Progress
    """How far it is."""
    metrics_bytes: int
    """How long the file of its metrics is."""
    weights: dict[str, Tensor] | None = None
    """The model's; None before there is a model."""
    descent: Descent | None = None
    """What gradient descent goes on from; None before its first step, and for other ways of training."""


class Store(Protocol):
    """Where a run's snapshots are kept."""

    def save(self, snapshot: Snapshot, *, best: bool = False) -> None:
        """Keep ``snapshot`` in place of the one before, as the best one or as that for resuming.

        Raises:
            OSError: it could not be written.
        """

    @property
    def kept(self) -> str:
        """The name of the snapshot for resuming, for messages; empty while there is none."""
