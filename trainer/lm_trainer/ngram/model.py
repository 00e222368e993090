"""An n-gram model as the trainer and the exporter know models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import StateTensor
from lm_runtime.models.ngram import NgramModel, ngram_states
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.tensors import tensor_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TABLES = "tables"
"""The name of a checkpoint's one tensor: the bytes of the tables' file."""


class NgramLM(NgramTables):
    """Tables as an :class:`lm_trainer.families.Model`."""

    @classmethod
    def of(cls, tables: NgramTables) -> NgramLM:
        """The model that has ``tables``."""
        return cls(**{field.name: getattr(tables, field.name) for field in dataclasses.fields(tables)})

    @property
    def states(self) -> Sequence[StateTensor]:
        """As :attr:`lm_trainer.families.Model.states`."""
        return ngram_states(self.order)

    def weights(self) -> dict[str, Tensor]:
        """As :meth:`lm_trainer.families.Model.weights`."""
        return {TABLES: tensor_of(np.frombuffer(self.to_bytes(), dtype=np.uint8).copy())}

    def parameter_count(self) -> int:
        """As :meth:`lm_trainer.families.Model.parameter_count`."""
        return sum(level.size for level in (*self.log_probabilities, *self.backoffs))

    def text_loss(self, ids: NDArray[np.unsignedinteger], first: int) -> float:
        """As :meth:`lm_trainer.families.Model.text_loss`; ``first`` is a line's end."""
        return -float(log_probabilities(self, ids).sum(dtype=np.float64))

    def step_model(self, tokenizer: Tokenizer) -> NgramModel:
        """As :meth:`lm_trainer.families.Model.step_model`."""
        return NgramModel(self, tokenizer)

    def to(self, device: torch.device, /) -> NgramLM:
        """The model as it is: tables are on the CPU."""
        return self
