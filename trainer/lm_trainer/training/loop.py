"""The training loop: truncated backpropagation through time over contiguous columns.

The text is cut into ``batch_size`` columns; each window of ``seq_len`` tokens is read from the state that
the window before left, detached. Everything that the next step depends on is in the checkpoint, so that a
run that was killed and resumed ends with the same weights, to the bit. Of several processes each has a share
of the columns, and gradients are summed. Knows nothing about corpora.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from lm_runtime.scoring.score import perplexity
from lm_trainer.corpora.token_file import Ids
from lm_trainer.networks.base import LanguageModel, TorchState, negative_log_likelihood
from lm_trainer.networks.dropout import Dropout
from lm_trainer.networks.loss import linear_cross_entropy
from lm_trainer.training.columns import Columns
from lm_trainer.training.forecast import forecast
from lm_trainer.training.job import Job
from lm_trainer.training.optimizer import learning_rate, load_state, make_optimizer
from lm_trainer.training.progress import InterruptedRunError, Observer, TrainingError
from lm_trainer.training.signals import StopSignals
from lm_trainer.training.snapshot import Descent, Progress, Snapshot

LOG_STEPS = 50
"""Steps between two records of the metrics, in an epoch that has at least that many."""


class Trainer:
    """A network's run, from its first step to its last.

    Args:
        job: the texts, the recipe, and where everything goes.
        model: the network, on the job's device.

    Raises:
        ValueError: the text is too short for the columns.
    """

    def __init__(self, job: Job, model: LanguageModel) -> None:
        config, processes = job.recipe, job.processes
        self.progress = Progress()
        self.model = model
        self.config = config
        self.valid = job.valid
        self.metrics = job.metrics
        """Where the records go."""
        self._job = job
        self._processes = processes
        self._device = model.device
        self._columns = self._columns_of(job.train)
        self._arranged: int | None = None
        self.windows = self._columns.windows
        """Windows in an epoch."""
        self.epochs = config.epochs
        """Passes over the training text."""
        self.total_steps = self.windows * config.epochs
        """Steps in the whole run."""
        self.tokens_per_step = config.batch_size * config.seq_len
        """Tokens that each step trains on."""
        self._log_windows = min(LOG_STEPS, self.windows)
        self._optimizer = make_optimizer(model.parameters(), config)
        self._generator = torch.Generator(self._device).manual_seed(config.seed + 1 + processes.rank)
        self._dropout = Dropout(
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
        self._signals = StopSignals()

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from ``snapshot``, whose weights the model has.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: it does not fit the network or the recipe.
        """
        self.progress = dataclasses.replace(snapshot.progress)
        self._pending += self.progress.pending
        self.metrics.truncate(snapshot.metrics_bytes)
        if (descent := snapshot.descent) is None:  # before the first step all is as it was made
            return
        load_state(self._optimizer, descent.optimizer, self.config)
        rank, size = self._processes.rank, self._generator.get_state().numel()
        if descent.generators.shape == (self._processes.count, size):
            self._generator.set_state(descent.generators[rank].clone())  # torch reads the storage's beginning
        else:  # another kind of device or number of processes
            self._generator.manual_seed(self.config.seed + 1 + rank + self.progress.step)
        for whole, tensor in zip(descent.hidden, self.model.states, strict=True):
            expected = [self.config.batch_size if size is None else size for size in tensor.shape]
            if list(whole.shape) != expected:
                raise ValueError(f"the state {tensor.name} is {list(whole.shape)}, not {expected}")
        self._state = tuple(
            whole.to(self._device).narrow(axis, self._columns.own.start, len(self._columns)).contiguous()
            for whole, axis in zip(descent.hidden, self._batch_axes, strict=True)
        )

    def _columns_of(self, ids: Ids) -> Columns:
        return Columns(ids, self.config, self._processes.columns(self.config.batch_size), self._device)

    def _arrange(self) -> None:
        """Put the training text in the order of the epoch."""
        if self._job.order is not None and self._arranged != self.progress.epoch:
            self._arranged = self.progress.epoch
            self._columns = self._columns_of(self._job.order(self._arranged))

    def save(self) -> None:
        """Write the checkpoint for resuming."""
        self._save()

    def describe(self) -> str:
        """As :meth:`lm_trainer.families.ModelTrainer.describe`."""
        count, precision = self.model.parameter_count(), self.config.precision
        return f"{self.model.config}: {count:,} parameters, {precision} on {self._device}"

    def forecast(self, setup_seconds: float) -> dict[str, str]:
        """As :meth:`lm_trainer.families.ModelTrainer.forecast`."""
        return forecast(self, setup_seconds)

    @property
    def complete(self) -> bool:
        """Whether all epochs are trained, or validation has not improved for the recipe's patience."""
        progress, patience = self.progress, self.config.patience
        return progress.epoch >= self.epochs or 0 < patience <= progress.epoch - progress.best_epoch

    def train(self, observer: Observer) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss is no longer a number.
            InterruptedRunError: a signal asked to stop; the checkpoint is written.
            OSError: a file could not be written.
        """
        with self._signals:
            while not self.complete:
                self._epoch(observer)
            if self._processes.any(self._signals.stop)[0]:
                raise InterruptedRunError

    def _epoch(self, observer: Observer) -> None:
        progress = self.progress
        started = saved = time.perf_counter()
        base_seconds = progress.seconds
        self._arrange()
        while progress.window < self.windows:
            self.step()
            progress.seconds = base_seconds + time.perf_counter() - started
            observer.step(progress)
            if progress.window % self._log_windows == 0:
                self._record(observer)
            due = time.perf_counter() - saved >= self._job.checkpoint_seconds
            stop, due = self._processes.any(self._signals.stop, due)
            if stop or due:
                self._save()
                saved = time.perf_counter()
            if stop:
                raise InterruptedRunError
        valid_loss = self._validate()
        progress.seconds = base_seconds + time.perf_counter() - started
        self._end_epoch(valid_loss, observer)

    def _end_epoch(self, valid_loss: float, observer: Observer) -> None:
        progress = self.progress
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
            self._save(best=True)
        self._save()
        observer.epoch(record)

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
                x, state_after = model.read(token, state, self._dropout)
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
        token, target = (ids.chunk(groups) for ids in self._columns.window(window))
        states = (
            tensor.chunk(groups, axis) for tensor, axis in zip(self._state, self._batch_axes, strict=True)
        )
        for group, state in enumerate(zip(*states, strict=True)):
            yield token[group], target[group], tuple(tensor.contiguous() for tensor in state)

    def _record(self, observer: Observer) -> None:
        progress = self.progress
        # Here alone the CPU waits for the GPU.
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
        observer.record(progress, loss)

    def _check_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        kept = self._job.store.kept
        raise TrainingError(
            f"the loss became {loss} in epoch {self.progress.epoch + 1}, by step {self.progress.step}; "
            "begin again with a lower --lr or another --clip-norm"
            + (f"; the last good state is {kept}, which --init takes" if kept else "")
        )

    def _validate(self) -> float:
        """The loss of the validation text, nats a token.

        The first process finds it: one state goes through the whole text, so that it cannot be divided.
        """
        [stop] = self._processes.any(self._signals.stop)
        found: float | None = None
        if self._processes.is_first and not stop:
            found = self._signals.unless_stopped(
                lambda: negative_log_likelihood(self.model, self.valid, self._job.eos_id)
            )
        loss = math.nan if found is None else found / self.valid.size
        loss, has_loss = self._processes.from_first(loss, found is not None)
        if not has_loss:
            self._save()
            raise InterruptedRunError
        self._check_finite(loss)
        return loss

    def _save(self, *, best: bool = False) -> None:
        """Write a checkpoint, unless the weights are no longer numbers."""
        pending = float(self._pending)
        # Not isfinite() of each: that takes as much memory again.
        ends = [end for parameter in self.model.parameters() for end in parameter.detach().aminmax()]
        healthy = torch.stack(ends).isfinite().all()
        self._check_finite(pending if bool(healthy) else math.nan)
        self.progress.pending = pending
        gather = self._processes.gather
        hidden = tuple(
            torch.cat(gather(tensor.detach()), axis)
            for tensor, axis in zip(self._state, self._batch_axes, strict=True)
        )
        generators = torch.stack(gather(self._generator.get_state()))
        if self._processes.is_first:
            descent = Descent(self._optimizer.state_dict(), generators, hidden)
            self._job.store.save(
                Snapshot(self.progress, self.metrics.size, self.model.weights(), descent), best=best
            )
