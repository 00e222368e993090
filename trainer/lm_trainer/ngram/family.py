"""The family of n-gram models: estimated in one pass, kept as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_trainer.config import ModelConfig, TrainingConfig
from lm_trainer.families import Implementation
from lm_trainer.ngram.model import TABLES, NgramLM
from lm_trainer.ngram.training import NgramTrainer
from lm_trainer.tensors import array_of
from lm_trainer.training.job import Job
from lm_trainer.training.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor


class NgramFamily:
    """An :class:`lm_trainer.families.Implementation` whose models are tables."""

    def check(self, config: TrainingConfig, tokens: int) -> None:
        """As :meth:`lm_trainer.families.Implementation.check`: every text is long enough."""

    def new_model(
        self, config: ModelConfig, recipe: TrainingConfig, log_frequencies: Callable[[], NDArray[np.float64]]
    ) -> None:
        """None: there are no tables before the estimate."""

    def restore(self, config: ModelConfig, weights: dict[str, Tensor]) -> NgramLM:
        """As :meth:`lm_trainer.families.Implementation.restore`."""
        model = NgramLM.of(NgramLM.from_bytes(array_of(weights[TABLES]).data))
        if (model.order, model.vocab_size) != (config.order, config.vocab_size):
            raise ValueError(f"tables of order {model.order} for {model.vocab_size} tokens")
        return model

    def trainer(self, job: Job, model: None) -> NgramTrainer:
        """As :meth:`lm_trainer.families.Implementation.trainer`."""
        return NgramTrainer(job)

    def resumed(self, job: Job, snapshot: Snapshot) -> NgramTrainer:
        """As :meth:`lm_trainer.families.Implementation.resumed`."""
        trainer = NgramTrainer(job)
        trainer.resume(snapshot)
        return trainer


IMPLEMENTATION: Implementation = NgramFamily()
