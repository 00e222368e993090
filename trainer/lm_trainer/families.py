"""The families of models, as ``lm-train --model`` names them, and the registry of them.

A record says what can be known of a family without torch: what it is, and which sizes and settings it leaves
open. Its networks or tables are in :attr:`Family.module`, which is imported when a model is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Fixed = dict[str, tuple[Any, str]]
"""Values by their fields' names, each with the reason why there is no other."""


@dataclass(frozen=True)
class Family:
    """A family of models."""

    description: str
    """What it is, in a few words."""
    module: str
    """The module that holds its implementation."""
    fixed: Fixed
    """Values of :class:`lm_trainer.config.ModelConfig` that its form leaves no choice about."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Values that presets, which are made for all families, do not name."""
    fixed_training: Fixed = field(default_factory=dict)
    """Values of :class:`lm_trainer.config.TrainingConfig` that it leaves no choice about."""
    is_estimated: bool = False
    """Whether it is estimated in one pass: no :class:`lm_trainer.config.TrainingConfig` applies to it."""


_IN_STATE = "what it has read is in its state"
_RECURRENT: Fixed = {"window": (0, _IN_STATE), "order": (0, _IN_STATE)}
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
            "order": (0, "it sees as many tokens as its window has"),
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
