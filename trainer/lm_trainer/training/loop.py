"""The training loop: truncated backpropagation through time over contiguous columns.

The text is cut into ``batch_size`` columns; each window of ``seq_len`` tokens is read from the state that
the window before left, detached. Everything that the next step depends on is in the checkpoint, so that a
run that was killed and resumed ends with the same weights, to the bit. Several processes have a part of the
columns each, and sum their gradients. Knows nothing about corpora.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm_runtime.scoring.score import perplexity
from lm_trainer.config import BEST, LAST, TrainingConfig
from lm_trainer.corpora.token_file import Ids
from lm_trainer.networks.base import LanguageModel, Noise, TorchState, negative_log_likelihood
from lm_trainer.networks.loss import linear_cross_entropy
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.run.checkpoint import save_checkpoint
from lm_trainer.training.processes import ALONE, Processes

LOG_STEPS = 50
"""Steps between two records of the metrics, in an epoch that has so many."""


class TrainingError(Exception):
    """A run that cannot go on; the message says why and what was kept."""


class InterruptedRunError(Exception):
    """A run that was asked to stop and has written its checkpoint."""


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0
    """Epochs that are complete, validation included."""
    window: int = 0
    """Windows of the current epoch that were trained on."""
    step: int = 0
    """Steps of the optimizer in all."""
    loss_sum: float = 0.0
    """The windows' mean losses in the current epoch, summed up to the last record."""
    pending: float = 0.0
    """The same since the last record."""
    seconds: float = 0.0
    """Time spent training and validating."""
    valid_loss: float = math.inf
    """The validation loss of the last complete epoch, nats a token."""
    best_valid_loss: float = math.inf
    """The lowest validation loss, nats a token."""
    best_epoch: int = 0
    """The epoch that had it, counted from 1."""


@dataclass(frozen=True)
class Report:
    """What the person at the terminal is told while a run goes on."""

    step: Callable[[Progress], None]
    """Called at each step."""
    record: Callable[[Progress, float], None]
    """Called at each record with the loss since the last one, nats a token."""
    epoch: Callable[[dict[str, Any]], None]
    """Called at the end of an epoch with its metrics."""


def make_optimizer(model: LanguageModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names."""
    parameters = list(model.parameters())
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    raise ValueError(f"optimizer must be adam, adamw or sgd, got {config.optimizer}")


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """The learning rate of step ``step`` (from 0) of ``total``."""
    warmup = min(config.warmup_steps, total // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"schedule must be constant, cosine or linear, got {config.schedule}")


class Trainer:
    """One run: a model on its way from the first step to the last.

    Args:
        run: the run's folder.
        model: on its device.
        config: the recipe.
        train: token ids of the training text.
        valid: token ids of the validation text.
        eos_id: what the validation text's first token is predicted from.
        facts: what each checkpoint holds beside the state of the training.
        metrics: where the records go.
        checkpoint_seconds: the longest time between two checkpoints; 0 writes one at each step.
        processes: those that train this model together. Each has a part of the columns; the first one
            validates and writes.

    Raises:
        ValueError: the text is too short for the columns.
    """

    def __init__(
        self,
        run: Path,
        model: LanguageModel,
        config: TrainingConfig,
        *,
        train: Ids,
        valid: Ids,
        eos_id: int,
        facts: dict[str, Any],
        metrics: MetricsLog,
        checkpoint_seconds: float,
        processes: Processes = ALONE,
    ) -> None:
        self.progress = Progress()
        self.model = model
        self.config = config
        self._run = run
        self.valid = valid
        self._train = train
        self._eos_id = eos_id
        self._facts = facts
        self.metrics = metrics
        """Where the records go."""
        self._checkpoint_seconds = checkpoint_seconds
        self._processes = processes
        self._columns = processes.columns(config.batch_size)
        self._device = model.device
        self._column = train.size // config.batch_size
        if self._column <= config.seq_len:
            raise ValueError(
                f"the training text is too short: {train.size:,} tokens in {config.batch_size} columns are "
                f"{self._column} steps each, and a window takes {config.seq_len + 1}; "
                "give more text, or a smaller --batch-size or --seq-len"
            )
        self.windows = (self._column - 1) // config.seq_len
        """Windows in an epoch."""
        self.epochs = config.epochs
        """Passes over the training text."""
        self.total_steps = self.windows * config.epochs
        """Steps in the whole run."""
        self.tokens_per_step = config.batch_size * config.seq_len
        """Tokens that each step trains on."""
        self._log_windows = min(LOG_STEPS, self.windows)
        self._optimizer = make_optimizer(model, config)
        self._generator = torch.Generator(self._device).manual_seed(config.seed + 1 + processes.rank)
        self._noise = Noise(
            self._generator,
            config.dropout if config.dropout_input is None else config.dropout_input,
            config.dropout,
            config.dropout if config.dropout_output is None else config.dropout_output,
            config.dropout_words,
            config.weight_drop,
            config.locked_dropout,
        )
        self._state = model.zero_state(len(self._columns))
        self._batch_axes = [tensor.batch_axis for tensor in model.states]
        self._gradient_norm = torch.zeros(())
        self._pending = torch.zeros((), dtype=torch.float64, device=self._device)
        self._stop = False
        self._may_break_off = False

    def resume(self, content: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.model.load_state_dict(content["model"])
        self.progress = Progress(**content["progress"])
        self._optimizer.load_state_dict(content["optimizer"])
        rank, generators = self._processes.rank, content["generator"].cpu()
        if content["device"] == self._device.type:
            generators = generators.view(-1, self._generator.get_state().numel())
        if content["device"] == self._device.type and len(generators) == self._processes.count:
            self._generator.set_state(generators[rank].clone())  # torch reads from the storage's beginning
        else:  # the two kinds of device, and the processes, have generators of their own
            self._generator.manual_seed(self.config.seed + 1 + rank + self.progress.step)
        self._state = tuple(
            whole.to(self._device).narrow(axis, self._columns.start, len(self._columns)).contiguous()
            for whole, axis in zip(content["hidden"], self._batch_axes, strict=True)
        )
        self._pending += self.progress.pending
        self.metrics.truncate(content["metrics_bytes"])

    def save(self) -> None:
        """Write the checkpoint for resuming."""
        self._save(LAST)

    @property
    def complete(self) -> bool:
        """Whether all epochs are trained, or validation has not improved for as many as are waited for."""
        progress, patience = self.progress, self.config.patience
        return progress.epoch >= self.epochs or 0 < patience <= progress.epoch - progress.best_epoch

    def train(self, report: Report) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss is no longer a number.
            InterruptedRunError: a signal asked to stop; the checkpoint is written.
            OSError: a file could not be written.
        """
        with self._stoppable():
            while not self.complete:
                self._epoch(report)
            if self._processes.any(self._stop)[0]:
                raise InterruptedRunError

    def _epoch(self, report: Report) -> None:
        progress = self.progress
        started = saved = time.perf_counter()
        base_seconds = progress.seconds
        while progress.window < self.windows:
            self.step()
            progress.seconds = base_seconds + time.perf_counter() - started
            report.step(progress)
            if progress.window % self._log_windows == 0:
                self._record(report)
            due = time.perf_counter() - saved >= self._checkpoint_seconds
            stop, due = self._processes.any(self._stop, due)
            if stop or due:
                self._save(LAST)
                saved = time.perf_counter()
            if stop:
                raise InterruptedRunError
        valid_loss = self._validate()
        progress.seconds = base_seconds + time.perf_counter() - started
        train_loss = (progress.loss_sum + float(self._pending)) / self.windows
        self._pending.zero_()
        progress.epoch += 1
        progress.loss_sum = 0.0
        self.rewind()
        progress.valid_loss = valid_loss
        best = valid_loss < progress.best_valid_loss
        if best:
            progress.best_valid_loss, progress.best_epoch = valid_loss, progress.epoch
        record = {
            "event": "epoch",
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": train_loss,
            "train_perplexity": perplexity(train_loss),
            "valid_loss": valid_loss,
            "valid_perplexity": perplexity(valid_loss),
            "best": best,
            "seconds": round(progress.seconds, 3),
        }
        self.metrics.append(record)
        if best:
            self._save(BEST)
        self._save(LAST)
        report.epoch(record)

    def rewind(self) -> None:
        """Go back to the beginning of the columns, where nothing was read yet."""
        self.progress.window = 0
        self._state = self.model.zero_state(len(self._columns))

    def step(self, lr: float | None = None) -> Tensor:
        """One window: forward, backward, update.

        Args:
            lr: the learning rate in place of the recipe's.

        Returns:
            the mean loss before the update, nats a token, a scalar.
        """
        config, progress = self.config, self.progress
        model, bfloat16 = self.model, config.precision == "bf16"
        loss = torch.zeros_like(self._pending)
        after: list[TorchState] = []
        self._optimizer.zero_grad()
        for token, target, state in self._groups(progress.window):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=bfloat16):
                x, state_after = model.read(token, state, self._noise)
                mean = linear_cross_entropy(
                    x.flatten(0, 1), model.head.weight, model.head.bias, target.flatten()
                )
            part = mean / (config.accumulate * self._processes.count)  # of the mean over the batch
            torch.autograd.backward(part)
            loss += part.detach()
            after.append(tuple(tensor.detach() for tensor in state_after))
        self._state = tuple(
            torch.cat(parts, axis)
            for parts, axis in zip(zip(*after, strict=True), self._batch_axes, strict=True)
        )
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._processes.sum([loss, *gradients])
        if config.clip_value:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), config.clip_value)
        if config.clip_norm:
            self._gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, progress.step, self.total_steps) if lr is None else lr
        self._optimizer.step()
        self._pending += loss
        progress.window += 1
        progress.step += 1
        return loss

    def _groups(self, window: int) -> Iterator[tuple[Tensor, Tensor, TorchState]]:
        """A window's input and target ids ``(columns, time)`` and their state, for each group of columns."""
        groups = self.config.accumulate
        token, target = (ids.chunk(groups) for ids in self._window(window))
        states = (
            tensor.chunk(groups, axis) for tensor, axis in zip(self._state, self._batch_axes, strict=True)
        )
        for group, state in enumerate(zip(*states, strict=True)):
            yield token[group], target[group], tuple(tensor.contiguous() for tensor in state)

    def _window(self, window: int) -> tuple[Tensor, Tensor]:
        """Input and target ids ``(columns, time)``; the target is the input's next token."""
        start = window * self.config.seq_len
        rows = [
            self._train[column * self._column + start :][: self.config.seq_len + 1]
            for column in self._columns
        ]
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))
        if self._device.type == "cuda":  # from pinned memory nothing waits for the steps before
            ids = ids.pin_memory().to(self._device, non_blocking=True)
        return ids[:, :-1], ids[:, 1:]

    def _record(self, report: Report) -> None:
        progress = self.progress
        # The one time that a GPU is waited for.
        pending, norm = torch.stack([self._pending, self._gradient_norm.to(self._pending)]).tolist()
        loss = pending / self._log_windows
        self._check_finite(loss)
        progress.loss_sum += pending
        self._pending.zero_()
        self.metrics.append(
            {
                "event": "step",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "loss": loss,
                "lr": learning_rate(self.config, progress.step - 1, self.total_steps),
                "tokens": progress.step * self.tokens_per_step,
                "seconds": round(progress.seconds, 3),
                **({"gradient_norm": norm} if self.config.clip_norm else {}),
            }
        )
        report.record(progress, loss)

    def _check_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        kept = self._run / LAST
        raise TrainingError(
            f"the loss became {loss} in epoch {self.progress.epoch + 1}, by step {self.progress.step}; "
            "begin again with a lower --lr or another --clip-norm"
            + (f"; the last good state is {kept}, which --init takes" if kept.exists() else "")
        )

    def _validate(self) -> float:
        """The loss of the validation text, nats a token.

        The first process finds it: one state goes through the whole text, so that it cannot be divided.
        """
        [stop] = self._processes.any(self._stop)
        loss, complete = math.nan, False
        if self._processes.is_first and not stop:
            self._may_break_off = True
            try:
                if not self._stop:
                    loss = negative_log_likelihood(self.model, self.valid, self._eos_id) / self.valid.size
                    complete = True
            except KeyboardInterrupt:
                pass
            finally:
                self._may_break_off = False
        loss, has_loss = self._processes.from_first(loss, complete)
        if not has_loss:
            self._save(LAST)
            raise InterruptedRunError
        self._check_finite(loss)
        return loss

    def _save(self, name: str) -> None:
        """Write a checkpoint, unless the weights are no longer numbers."""
        pending = float(self._pending)
        # Not isfinite() of each: that takes as much memory again.
        ends = [end for parameter in self.model.parameters() for end in parameter.detach().aminmax()]
        healthy = torch.stack(ends).isfinite().all()
        self._check_finite(pending if bool(healthy) else math.nan)
        self.progress.pending = pending
        gather = self._processes.gather
        hidden = [
            torch.cat(gather(tensor.detach()), axis)
            for tensor, axis in zip(self._state, self._batch_axes, strict=True)
        ]
        generators = torch.stack(gather(self._generator.get_state()))
        if not self._processes.is_first:
            return
        content = {
            **self._facts,
            "training_config": dataclasses.asdict(self.config),
            "model_config": dataclasses.asdict(self.model.config),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": generators,
            "hidden": hidden,
            "progress": dataclasses.asdict(self.progress),
            "metrics_bytes": self.metrics.size,
        }
        save_checkpoint(self._run / name, content)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Within, SIGINT and SIGTERM end the run after the step in hand, with a checkpoint."""

        def ask_to_stop(signum: int, frame: object) -> None:
            self._stop = True
            if self._may_break_off:
                self._may_break_off = False  # once is enough
                raise KeyboardInterrupt

        before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
