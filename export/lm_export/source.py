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
from lm_trainer.corpora.tokenizer_form import with_line_breaks
from lm_trainer.families import Model
from lm_trainer.run.checkpoint import load_checkpoint, restore_model


@dataclass(frozen=True)
class Source:
    """A trained model and what is known of it."""

    model: Model
    """The network or the tables."""
    tokenizer: Tokenizer
    """Its vocabulary, in the form of today's bundles."""
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
    checkpoint = load_checkpoint(path)
    model, tokenizer = restore_model(checkpoint)
    corpus, progress = checkpoint.facts.corpus, checkpoint.progress
    # Within an epoch the weights are no longer those that were validated.
    validated = progress.epoch and not progress.window
    training = {
        "corpus": corpus.name,
        "train_tokens": corpus.splits["train"].tokens,
        "parameters": model.parameter_count(),
        "epoch": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "valid": split_figures(progress.valid_loss, corpus.splits["valid"]) if validated else None,
        "recipe": checkpoint.recipe,
        **({"unwrapped": True} if checkpoint.facts.tokenizer_config.unwrap else {}),
    }
    tokenizer = with_line_breaks(tokenizer)
    return Source(model, tokenizer, checkpoint.model_config, checkpoint.facts.held_out.numpy(), training)
