"""Families of models: what one is, the registry of them, and how an implementation is found.

A :class:`Family` is what can be said without torch: a description, and which sizes and settings it leaves
open. The rest is an :class:`Implementation` in the family's own module, imported when it is needed. Nobody
else asks what type a model is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from lm_runtime.bundle import StateTensor
    from lm_runtime.models.protocol import StepModel
    from lm_runtime.tokenizer import Tokenizer
    from lm_trainer.config import ModelConfig, TrainingConfig
    from lm_trainer.reports.metrics import MetricsLog
    from lm_trainer.training.job import Job
    from lm_trainer.training.progress import Observer
    from lm_trainer.training.snapshot import Progress, Snapshot

Fixed = dict[str, tuple[Any, str]]
"""Values by their fields' names, each with the reason why there is no other."""


@dataclass(frozen=True)
class Family:
    """What can be said of a family without its implementation."""

    description: str
    """What it is, in a few words."""
    module: str
    """The module with its :class:`Implementation`, which is called ``IMPLEMENTATION`` there."""
    fixed: Fixed
    """Values of :class:`lm_trainer.config.ModelConfig` that its form leaves no choice about."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Values that presets, which are made for all families, do not name."""
    fixed_training: Fixed = field(default_factory=dict)
    """Values of :class:`lm_trainer.config.TrainingConfig` that it leaves no choice about."""
    is_estimated: bool = False
    """Whether it is estimated in one pass and one process: no :class:`lm_trainer.config.TrainingConfig`
    applies to it, and a model cannot be trained further."""


class Model(Protocol):
    """A model of any family: a network, or tables."""

    @property
    def states(self) -> Sequence[StateTensor]:
        """The tensors of its state."""

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it: tensors by their names."""

    def parameter_count(self) -> int:
        """The number of learned values; shared ones count once."""

    def text_loss(self, ids: NDArray[np.unsignedinteger], first: int) -> float:
        """The loss in nats, summed over the text ``ids`` ``(tokens,)``, which follows the token ``first``."""

    def step_model(self, tokenizer: Tokenizer) -> StepModel:
        """The model in the form with which :mod:`lm_runtime` generates and scores."""

    def to(self, device: torch.device, /) -> object:
        """Move it to a device, if it can be on one."""


class ModelTrainer(Protocol):
    """A run of one model, from its first step to its last."""

    progress: Progress
    metrics: MetricsLog
    tokens_per_step: int
    epochs: int
    total_steps: int

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""

    def train(self, observer: Observer) -> None:
        """Train to the end.

        Raises:
            TrainingError: the run cannot go on.
            InterruptedRunError: a signal asked to stop; a checkpoint is written.
            OSError: a file could not be written.
        """

    def save(self) -> None:
        """Write the checkpoint for resuming."""

    def describe(self) -> str:
        """The model's sizes, and how it is trained, for the log."""

    def forecast(self, setup_seconds: float) -> dict[str, str]:
        """What the run would take, set up in ``setup_seconds``: figures by their names, for people.

        It may train a few steps; the trainer is not used afterwards.
        """


class Implementation(Protocol):
    """What a family does: its models are made, restored and trained here."""

    def check(self, config: TrainingConfig, tokens: int) -> None:
        """Check that a training text of ``tokens`` is long enough.

        Raises:
            ValueError: it is not.
        """

    def new_model(
        self, config: ModelConfig, recipe: TrainingConfig, log_frequencies: Callable[[], NDArray[np.float64]]
    ) -> Model | None:
        """A model with its first weights; None where there is no model before it is trained.

        Args:
            config: its sizes.
            recipe: has the seed and the name of the weights' distribution.
            log_frequencies: gives the natural logarithms ``(vocab,)`` of the tokens' frequencies in the
                training text.
        """

    def restore(self, config: ModelConfig, weights: dict[str, Tensor]) -> Model:
        """The model of ``config`` with the ``weights`` that :meth:`Model.weights` gave.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: the two do not fit.
        """

    def trainer(self, job: Job, model: Any) -> ModelTrainer:
        """What trains ``model``, as :meth:`new_model` or :meth:`restore` returned it."""

    def resumed(self, job: Job, snapshot: Snapshot) -> ModelTrainer:
        """What goes on from ``snapshot``.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: it does not fit the job.
        """


_IN_STATE = "what it has read is in its state"
_NOT_PRUNED = ("", "it has no n-grams")
_RECURRENT: Fixed = {"window": (0, _IN_STATE), "order": (0, _IN_STATE), "prune": _NOT_PRUNED}
_NOT_RECURRENT = "it has no recurrent layers"
_NO_LAYERS = "it has tables, no layers"

FAMILIES = {
    "lstm": Family(
        "long short-term memory network, LSTM (Hochreiter and Schmidhuber 1997)",
        "lm_trainer.networks.recurrent",
        _RECURRENT,
    ),
    "gru": Family(
        "network of gated recurrent units, GRU (Cho et al. 2014)",
        "lm_trainer.networks.recurrent",
        _RECURRENT,
    ),
    "rnn": Family(
        "simple recurrent network with tanh, RNN (Elman 1990)",
        "lm_trainer.networks.recurrent",
        _RECURRENT,
    ),
    "window": Family(
        "feed-forward network that sees the last few tokens (Bengio et al. 2003)",
        "lm_trainer.networks.window",
        {
            "num_layers": (1, "it has one hidden layer"),
            "tied": (False, "its embedding has a row that its output layer has not"),
            "order": (0, "it sees the tokens of its window"),
            "prune": _NOT_PRUNED,
            "projection": (0, "its one hidden layer can have that width itself"),
        },
        {"window": 5},
        {"locked_dropout": (False, _NOT_RECURRENT), "weight_drop": (0.0, _NOT_RECURRENT)},
    ),
    "ngram": Family(
        "n-gram model, interpolated modified Kneser-Ney (Chen and Goodman 1998)",
        "lm_trainer.ngram.family",
        {
            **dict.fromkeys(("embedding_dim", "hidden_size", "num_layers"), (0, _NO_LAYERS)),
            "tied": (False, _NO_LAYERS),
            "window": (0, "it sees one token less than its order"),
            "projection": (0, _NO_LAYERS),
        },
        {"order": 5},
        is_estimated=True,
    ),
}
"""Each family by its name, the ``model_type`` of configurations."""


def register(name: str, family: Family) -> None:
    """Add a family to those that ``lm-train --model`` knows.

    Raises:
        ValueError: there is one of this name.
    """
    if name in FAMILIES:
        raise ValueError(f"there is a family {name} already")
    FAMILIES[name] = family


def implementation(name: str) -> Implementation:
    """The implementation of the family ``name``; its module is imported now.

    Raises:
        ValueError: there is no such family.
    """
    if name not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}, got {name}")
    found: Implementation = importlib.import_module(FAMILIES[name].module).IMPLEMENTATION
    return found
