"""What an export takes from a checkpoint. The only module that knows a checkpoint's content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig
from lm_trainer.corpora.token_file import split_figures
from lm_trainer.networks.registry import Model, parameter_count
from lm_trainer.run.checkpoint import load_checkpoint, restore_model, training_settings


@dataclass(frozen=True)
class Source:
    """A trained model and what is known of it."""

    model: Model
    """The network or the tables."""
    tokenizer: Tokenizer
    """Its vocabulary."""
    config: ModelConfig
    """Its sizes."""
    held_out: NDArray[np.int64]
    """The beginning of the validation text, ``(tokens,)``, for proofs."""
    training: dict[str, Any]
    """Facts about the training, for ``config.json`` and the card."""


def read_source(path: Path) -> Source:
    """Read a checkpoint, or a run's folder (then its best one).

    Raises:
        UnusableFileError: the checkpoint cannot be used.
    """
    content = load_checkpoint(path)
    model, tokenizer = restore_model(path, content)
    corpus, progress = content["corpus"], content["progress"]
    # Within an epoch the weights are no longer those that were validated.
    validated = progress["epoch"] and not progress["window"]
    training = {
        "corpus": corpus["name"],
        "train_tokens": corpus["splits"]["train"]["tokens"],
        "parameters": parameter_count(model),
        "epoch": progress["epoch"],
        "steps": progress["step"],
        "seconds": round(progress["seconds"], 1),
        "valid": split_figures(progress["valid_loss"], corpus["splits"]["valid"]) if validated else None,
        "recipe": training_settings(content),
    }
    config = ModelConfig(**content["model_config"])
    return Source(model, tokenizer, config, content["held_out"].numpy(), training)
