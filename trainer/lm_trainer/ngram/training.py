"""An n-gram model's run: one estimate. Knows nothing about corpora."""

from __future__ import annotations

import dataclasses
import time

from lm_runtime.commands import file_size
from lm_runtime.scoring.score import perplexity
from lm_trainer.ngram.estimation import estimate
from lm_trainer.ngram.model import NgramLM
from lm_trainer.ngram.pruning import numbers_of
from lm_trainer.training.job import Job
from lm_trainer.training.memory import peak_memory
from lm_trainer.training.progress import InterruptedRunError, Observer
from lm_trainer.training.snapshot import Progress, Snapshot

_NGRAM_BYTES = 14
_TOKEN_BYTES = 70
"""The bounds of :func:`lm_trainer.ngram.estimation.estimate`."""


class NgramTrainer:
    """Estimates the tables; there is nothing between the beginning and the end.

    Args:
        job: the texts, the order, and where everything goes.
    """

    epochs = total_steps = 1

    def __init__(self, job: Job) -> None:
        self.progress = Progress()
        self.metrics = job.metrics
        """Where the record goes."""
        self.tokens_per_step = job.train.size
        self._job = job
        self._model: NgramLM | None = None

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from ``snapshot``."""
        self.progress = dataclasses.replace(snapshot.progress)
        self.metrics.truncate(snapshot.metrics_bytes)

    def save(self) -> None:
        """Write the checkpoint for resuming."""
        self._save()

    def describe(self) -> str:
        """As :meth:`lm_trainer.families.ModelTrainer.describe`."""
        return str(self._job.model_config)

    def forecast(self, setup_seconds: float) -> dict[str, str]:
        """As :meth:`lm_trainer.families.ModelTrainer.forecast`; the memory is a bound."""
        tokens, config = self.tokens_per_step, self._job.model_config
        ngrams = sum(min(config.vocab_size**length, tokens) for length in range(1, config.order + 1))
        memory = peak_memory() + _NGRAM_BYTES * ngrams + _TOKEN_BYTES * tokens
        return {
            "tokens": f"{tokens:,}",
            "order": f"{config.order}",
            "peak memory": f"at most about {file_size(memory)}",
        }

    @property
    def complete(self) -> bool:
        """Whether the tables are estimated."""
        return self.progress.epoch == 1

    def train(self, observer: Observer) -> None:
        """Estimate the tables, and score the validation text.

        Raises:
            InterruptedRunError: Ctrl-C; the checkpoint of the beginning is there.
            OSError: a file could not be written.
        """
        job, begun = self._job, time.perf_counter()
        try:
            config = job.model_config
            tables = estimate(
                job.train, config.vocab_size, job.eos_id, config.order, numbers_of(config.prune)
            )
            self._model = NgramLM.of(tables)
            loss = self._model.text_loss(job.valid, job.eos_id) / job.valid.size
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
        observer.step(self.progress)
        self.metrics.append(record)
        self._save(best=True)
        self._save()
        observer.epoch(record)

    def _save(self, *, best: bool = False) -> None:
        weights = None if self._model is None else self._model.weights()
        self._job.store.save(Snapshot(self.progress, self.metrics.size, weights), best=best)
