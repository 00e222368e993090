"""An n-gram model's run: the counterpart of :mod:`lm_trainer.training.loop`, in one step.

Knows nothing about corpora.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.scoring.score import perplexity
from lm_trainer.config import BEST, LAST, ModelConfig
from lm_trainer.corpora.token_file import Ids
from lm_trainer.networks.registry import text_loss, weights_of
from lm_trainer.ngram.estimation import estimate
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.run.checkpoint import save_checkpoint
from lm_trainer.training.loop import InterruptedRunError, Progress, Report


class NgramTrainer:
    """Counts the training text and keeps the tables; there is nothing between the beginning and the end.

    Args:
        run: the run's folder.
        config: the order and the vocabulary.
        train: token ids of the training text.
        valid: token ids of the validation text.
        eos_id: a line's end, and what both texts' first tokens are predicted from.
        facts: what each checkpoint holds beside the tables.
        metrics: where the record goes.
    """

    epochs = total_steps = 1

    def __init__(
        self,
        run: Path,
        config: ModelConfig,
        *,
        train: Ids,
        valid: Ids,
        eos_id: int,
        facts: dict[str, Any],
        metrics: MetricsLog,
    ) -> None:
        self.progress = Progress()
        self.config = config
        self.tokens_per_step = train.size
        self._run = run
        self._train = train
        self._valid = valid
        self._eos_id = eos_id
        self._facts = facts
        self.metrics = metrics
        """Where the record goes."""
        self._tables: NgramTables | None = None

    def resume(self, content: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.progress = Progress(**content["progress"])
        self.metrics.truncate(content["metrics_bytes"])

    def save(self) -> None:
        """Write the checkpoint for resuming."""
        self._save(LAST)

    @property
    def complete(self) -> bool:
        """Whether the text is counted."""
        return self.progress.epoch == 1

    def train(self, report: Report) -> None:
        """Count, and measure on the validation text.

        Raises:
            InterruptedRunError: Ctrl-C; the checkpoint of the beginning is there.
            OSError: a file could not be written.
        """
        begun = time.perf_counter()
        try:
            self._tables = estimate(
                self._train, self.config.vocab_size, self._eos_id, order=self.config.order
            )
            loss = text_loss(self._tables, self._valid, self._eos_id) / self._valid.size
        except KeyboardInterrupt:
            raise InterruptedRunError from None
        seconds = time.perf_counter() - begun
        self.progress = Progress(
            epoch=1, step=1, seconds=seconds, valid_loss=loss, best_valid_loss=loss, best_epoch=1
        )
        record = {
            "event": "epoch",
            "epoch": 1,
            "step": 1,
            "valid_loss": loss,
            "valid_perplexity": perplexity(loss),
            "best": True,
            "seconds": round(seconds, 3),
        }
        report.step(self.progress)
        self.metrics.append(record)
        self._save(BEST)
        self._save(LAST)
        report.epoch(record)

    def _save(self, name: str) -> None:
        content = {
            **self._facts,
            "training_config": {},
            "model_config": dataclasses.asdict(self.config),
            "model": {} if self._tables is None else weights_of(self._tables),
            "optimizer": {},
            "generator": torch.empty(0, dtype=torch.uint8),
            "hidden": [],
            "progress": dataclasses.asdict(self.progress),
            "metrics_bytes": self.metrics.size,
        }
        save_checkpoint(self._run / name, content)
