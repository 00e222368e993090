"""What the families of networks have in common: how they are made, restored and trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_trainer.config import ModelConfig, TrainingConfig
from lm_trainer.families import implementation
from lm_trainer.networks.base import LanguageModel
from lm_trainer.training.columns import check_length
from lm_trainer.training.job import Job
from lm_trainer.training.loop import Trainer
from lm_trainer.training.snapshot import Snapshot


class NetworkFamily:
    """An :class:`lm_trainer.families.Implementation` whose models are networks.

    Args:
        make: a new network of some sizes, its weights drawn from a generator (on the CPU); on the device
            ``meta`` one without weights.
    """

    def __init__(self, make: Callable[[ModelConfig, torch.Generator], LanguageModel]) -> None:
        self.make = make

    def check(self, config: TrainingConfig, tokens: int) -> None:
        """As :meth:`lm_trainer.families.Implementation.check`."""
        check_length(config, tokens)

    def new_model(
        self, config: ModelConfig, recipe: TrainingConfig, log_frequencies: Callable[[], NDArray[np.float64]]
    ) -> LanguageModel:
        """As :meth:`lm_trainer.families.Implementation.new_model`."""
        model = self.make(config, torch.Generator().manual_seed(recipe.seed))
        if recipe.initial_weights == "scaled":
            # No other seed of the run is negative.
            generator = torch.Generator().manual_seed(-1 - recipe.seed)
            model.scale_weights(torch.from_numpy(log_frequencies()), generator)
        return model

    def restore(self, config: ModelConfig, weights: dict[str, Tensor]) -> LanguageModel:
        """As :meth:`lm_trainer.families.Implementation.restore`."""
        self._check_shapes(config, weights)
        model = self.make(config, torch.Generator())
        model.load_state_dict(weights)
        return model

    def _check_shapes(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        """Compare shapes before the network takes its memory, which the weights may be far too few for."""
        with torch.device("meta"):
            expected = self.make(config, torch.Generator()).weights()
        if names := expected.keys() ^ weights.keys():
            raise ValueError(f"the network and its weights differ in {min(names)}")
        for name, tensor in expected.items():
            if tensor.shape != weights[name].shape:
                found = list(weights[name].shape)
                raise ValueError(f"{name} is {found}, where the network has {list(tensor.shape)}")

    def trainer(self, job: Job, model: LanguageModel) -> Trainer:
        """As :meth:`lm_trainer.families.Implementation.trainer`."""
        return Trainer(job, model.to(job.device))

    def resumed(self, job: Job, snapshot: Snapshot) -> Trainer:
        """As :meth:`lm_trainer.families.Implementation.resumed`."""
        if snapshot.weights is None:
            raise ValueError("it has no weights")
        trainer = self.trainer(job, self.restore(job.model_config, snapshot.weights))
        trainer.resume(snapshot)
        return trainer


def make_model(config: ModelConfig, generator: torch.Generator) -> LanguageModel:
    """A new network of the family that ``config`` names, its weights drawn from ``generator``.

    Raises:
        ValueError: the family is none of networks.
    """
    family = implementation(config.model_type)
    if not isinstance(family, NetworkFamily):
        raise ValueError(f"{config.model_type} is no network")
    return family.make(config, generator)
