"""TensorBoard's event files of a run: its metrics as they come, and at the end the sample.

Importing this needs tensorboard, whose writer is the one that torch has an interface to.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lm_runtime.commands import note
from lm_runtime.files import UnusableFileError
from lm_trainer.reports.metrics import read_metrics
from lm_trainer.run.folder import EVENTS, METRICS

_TAGS = {
    "loss": "loss/train",
    "valid_loss": "loss/valid",
    "train_perplexity": "perplexity/train",
    "valid_perplexity": "perplexity/valid",
    "lr": "learning_rate",
    "gradient_norm": "gradient_norm",
}


class EventLog:
    """Writes event files into the run's folder; what goes wrong ends them with a note, not the run.

    It begins with the metrics so far, in place of the event files that are there.

    Args:
        run: its folder.
        seconds: the time that it has taken so far.
    """

    def __init__(self, run: Path, seconds: float) -> None:
        self._folder = run / EVENTS
        if self._folder.is_symlink():  # to a folder of others, whose events would be removed
            raise UnusableFileError(self._folder, "a link, where the run's own folder is needed")
        self._writer: SummaryWriter | None = None
        self._before = {"step": 0, "seconds": 0.0}
        self._begun = time.time() - seconds
        has_earlier = (run / METRICS).exists()
        earlier = read_metrics(run) if has_earlier else []
        with self._trying():
            if has_earlier:
                for path in self._folder.glob("events.out.tfevents.*"):
                    path.unlink()
            self._writer = SummaryWriter(str(self._folder))
            for record in earlier:
                self._add(self._writer, record)
            self._writer.flush()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record of the metrics; it is in the file when this returns."""
        with self._trying():
            if self._writer:
                self._add(self._writer, record)
                self._writer.flush()

    def add_sample(self, text: str, step: int) -> None:
        """Write the sample as it stands, not as the Markdown that TensorBoard takes texts for."""
        with self._trying():
            if self._writer:
                self._writer.add_text("sample", textwrap.indent(text, "    "), step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._trying():
            if self._writer:
                self._writer.close()

    def _add(self, writer: SummaryWriter, record: dict[str, Any]) -> None:
        """Add a record at the time at which it was, were there no pauses in the run."""
        step, before, wall = record["step"], self._before, self._begun + record["seconds"]
        for name, tag in _TAGS.items():
            if name in record:
                writer.add_scalar(tag, record[name], step, wall)
        if "tokens" in record and (seconds := record["seconds"] - before["seconds"]) > 0:
            per_step = record["tokens"] / step
            rate = (step - before["step"]) * per_step / seconds
            writer.add_scalar("tokens_per_second", rate, step, wall)
        self._before = record

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            note(f"note: {self._folder} has no events from here on ({reason})")
