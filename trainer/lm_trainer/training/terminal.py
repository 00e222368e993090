"""What the person at the terminal sees of a run: a bar with the time that is left, and lines."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from lm_runtime.commands import note
from lm_runtime.scoring.score import perplexity
from lm_trainer.families import ModelTrainer
from lm_trainer.training.processes import Processes
from lm_trainer.training.progress import Observer
from lm_trainer.training.snapshot import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

_NOTEBOOK_COLUMNS = 100


def watching(trainer: ModelTrainer, processes: Processes) -> AbstractContextManager[Observer]:
    """Show a run's progress, within; of several processes the first one does. A single step has no bar."""
    if not processes.is_first:
        return nullcontext(Observer())
    if trainer.total_steps == 1:
        return nullcontext(Observer(epoch=lambda record: note(_in_words(record, trainer.epochs))))
    return _RunBar(trainer)


def bar(**options: Any) -> tqdm[Any]:
    """A progress bar with the time that is left; without a terminal, a line every half minute.

    A notebook shows what a terminal does, but for its width.
    """
    from tqdm import tqdm

    notebook = _is_notebook()
    live = sys.stderr.isatty() or notebook
    return tqdm(
        **options,
        file=sys.stderr if live else _Lines(),
        mininterval=0.2 if live else 30,
        maxinterval=1 if live else 60,
        dynamic_ncols=live and not notebook,
        leave=live,
        ncols=_NOTEBOOK_COLUMNS if notebook else None if live else 0,
        smoothing=0.05,
    )


def _is_notebook() -> bool:
    """Whether this process runs a notebook's cells."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _RunBar:
    """The progress bar of a run."""

    def __init__(self, trainer: ModelTrainer) -> None:
        self._per_step = trainer.tokens_per_step
        self._epochs = trainer.epochs
        self._bar = bar(
            total=trainer.total_steps * self._per_step,
            initial=trainer.progress.step * self._per_step,
            unit=" tokens",
            unit_scale=True,
        )

    def __enter__(self) -> Observer:
        return Observer(step=self._step, record=self._record, epoch=self._epoch)

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _step(self, progress: Progress) -> None:
        self._bar.update(progress.step * self._per_step - self._bar.n)

    def _record(self, progress: Progress, loss: float) -> None:
        self._bar.set_description_str(f"epoch {progress.epoch + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity(loss):.1f}", refresh=False)

    def _epoch(self, record: dict[str, Any]) -> None:
        self._bar.write(_in_words(record, self._epochs), file=self._bar.fp)


def _in_words(record: dict[str, Any], epochs: int) -> str:
    """An epoch's metrics."""
    trained = f"train perplexity {record['train_perplexity']:.2f}, " if "train_perplexity" in record else ""
    best = " (best)" if record["best"] else ""
    return (
        f"epoch {record['epoch']}/{epochs}: {trained}valid {record['valid_perplexity']:.2f}{best}, "
        f"{record['seconds']:.0f} s"
    )


class _Lines:
    """Takes what the progress bar writes repeatedly in one place, and writes it line by line."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            note(line)

    def flush(self) -> None:
        sys.stderr.flush()
