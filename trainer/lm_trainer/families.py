"""The network of each family of :data:`lm_trainer.config.FAMILIES`."""

from __future__ import annotations

import torch

from lm_trainer.config import ModelConfig
from lm_trainer.model import LanguageModel
from lm_trainer.recurrent import CELLS, RecurrentLM
from lm_trainer.window import WindowLM

NETWORKS: dict[str, type[RecurrentLM] | type[WindowLM]] = {
    **dict.fromkeys(CELLS, RecurrentLM),
    "window": WindowLM,
}
"""The networks, which are trained by gradient descent."""


def make_model(config: ModelConfig, generator: torch.Generator) -> LanguageModel:
    """A new network of the family that ``config`` names, its weights drawn from ``generator``."""
    return NETWORKS[config.model_type](config, generator)
