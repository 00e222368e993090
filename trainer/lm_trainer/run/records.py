"""The records that a checkpoint is made of. Knows nothing about files' formats."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_runtime.files import UnusableFileError
from lm_trainer.config import ModelConfig, TokenizerConfig, TrainingConfig
from lm_trainer.corpora.corpus import CorpusFacts
from lm_trainer.corpora.token_file import TokenFile
from lm_trainer.training.snapshot import Progress, Snapshot

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a fine-tuned run began from."""

    path: str
    """It, or its run's folder, from the root on."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True)
class RunFacts:
    """What stays the same over a run, beside the model's sizes and the recipe."""

    corpus: CorpusFacts
    """What it trains on."""
    tokenizer: str
    """The vocabulary, the text of a ``tokenizer.json``."""
    tokenizer_config: TokenizerConfig
    """How the vocabulary was made."""
    held_out: Tensor
    """The beginning of the validation text, int64 ``(tokens,)``, which the exporter compares models on."""
    threads: int
    """torch's threads, on which the order of sums depends."""
    device: str
    """The kind of device: cpu or cuda."""
    processes: int = 1
    """The number of processes that train together."""
    init: Origin | None = None
    """What it began from, if not from new weights."""
    first: TokenFile | None = None
    """The validation text of the run that it began from, where that was at hand."""
    before: dict[str, float] | None = None
    """The losses before the first step of a network that was trained already, nats a token: ``valid``, and
    ``first`` on the text above."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at one moment: everything that is needed to go on with it, or to use its model."""

    path: Path
    """The file."""
    facts: RunFacts
    """What stays the same over the run."""
    model_config: ModelConfig
    """The model's sizes."""
    training_config: TrainingConfig | None
    """The recipe; None for a family that is estimated."""
    snapshot: Snapshot
    """What changes: progress, weights, and what gradient descent goes on from."""

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {self.model_config}, step {self.progress.step:,})"

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.snapshot.progress

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by their names.

        Raises:
            UnusableFileError: there is no model yet.
        """
        if self.snapshot.weights is None:
            raise UnusableFileError(
                self.path, "the run was broken off before there were tables; lm-train --resume goes on"
            )
        return self.snapshot.weights

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that the training had, by their names."""
        if self.training_config is None:
            return {}
        settings = dataclasses.asdict(self.training_config)
        if self.facts.init:  # whose weights they are
            del settings["initial_weights"]
        return settings
