"""The model of each family of :data:`lm_trainer.config.FAMILIES`: how it is made, kept, and measured.

A model is a network or an n-gram model's tables; whoever need not tell them apart asks here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_runtime.bundle import NGRAM_TYPE
from lm_runtime.models.ngram import NgramModel, log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.models.protocol import StepModel
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig
from lm_trainer.networks.base import LanguageModel, TorchStepModel, negative_log_likelihood
from lm_trainer.networks.recurrent import CELLS, RecurrentLM
from lm_trainer.networks.window import WindowLM

Model = LanguageModel | NgramTables

NETWORKS: dict[str, type[RecurrentLM] | type[WindowLM]] = {
    **dict.fromkeys(CELLS, RecurrentLM),
    "window": WindowLM,
}
"""The networks, which are trained by gradient descent."""

_TABLES = "tables"


def make_model(config: ModelConfig, generator: torch.Generator) -> LanguageModel:
    """A new network of the family that ``config`` names, its weights drawn from ``generator``."""
    return NETWORKS[config.model_type](config, generator)


def weights_of(model: Model) -> dict[str, Any]:
    """What a checkpoint keeps of ``model``: tensors by their names; of tables, their file's bytes."""
    if isinstance(model, NgramTables):
        return {_TABLES: torch.from_numpy(np.frombuffer(model.to_bytes(), dtype=np.uint8).copy())}
    return model.state_dict()


def restore(config: ModelConfig, weights: dict[str, Tensor]) -> Model:
    """The model of ``config`` from what :func:`weights_of` gave.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: the two do not fit.
    """
    if config.model_type != NGRAM_TYPE:
        model = make_model(config, torch.Generator())
        model.load_state_dict(weights)
        return model
    if not weights:
        raise ValueError("the run was broken off before there were tables; lm-train --resume goes on")
    tables = NgramTables.from_bytes(weights[_TABLES].numpy().data)
    if (tables.order, tables.vocab_size) != (config.order, config.vocab_size):
        raise ValueError(f"tables of order {tables.order} for {tables.vocab_size} tokens")
    return tables


def parameter_count(model: Model) -> int:
    """How many numbers are learned; shared ones count once."""
    if isinstance(model, NgramTables):
        return sum(level.size for level in (*model.log_probabilities, *model.backoffs))
    return sum(parameter.numel() for parameter in model.parameters())


def text_loss(model: Model, ids: NDArray[np.unsignedinteger], first: int) -> float:
    """The loss of a text ``(tokens,)`` in nats, summed over its tokens, read behind the id ``first``."""
    if isinstance(model, NgramTables):  # of which first is the end of every line
        return -float(log_probabilities(model, ids).sum(dtype=np.float64))
    return negative_log_likelihood(model, ids, first)


def step_model(model: Model, tokenizer: Tokenizer) -> StepModel:
    """``model`` in the form that :mod:`lm_runtime` generates and scores with."""
    if isinstance(model, NgramTables):
        return NgramModel(model, tokenizer)
    return TorchStepModel(model, tokenizer)
