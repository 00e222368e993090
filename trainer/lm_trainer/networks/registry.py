"""Functions over the models of all families; the protocol is in :mod:`lm_trainer.families`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lm_runtime.models.protocol import StepModel
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig
from lm_trainer.families import FAMILIES, Model, implementation
from lm_trainer.networks.family import make_model

__all__ = ["NETWORKS", "Model", "make_model", "parameter_count", "restore", "step_model", "text_loss"]

NETWORKS = [name for name, family in FAMILIES.items() if not family.is_estimated]
"""The families that are trained by gradient descent."""


def restore(config: ModelConfig, weights: dict[str, Tensor]) -> Model:
    """As :meth:`lm_trainer.families.Implementation.restore`."""
    return implementation(config.model_type).restore(config, weights)


def parameter_count(model: Model) -> int:
    """As :meth:`lm_trainer.families.Model.parameter_count`."""
    return model.parameter_count()


def text_loss(model: Model, ids: NDArray[np.unsignedinteger], first: int) -> float:
    """As :meth:`lm_trainer.families.Model.text_loss`."""
    return model.text_loss(ids, first)


def step_model(model: Model, tokenizer: Tokenizer) -> StepModel:
    """As :meth:`lm_trainer.families.Model.step_model`."""
    return model.step_model(tokenizer)
