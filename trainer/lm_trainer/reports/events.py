"""TensorBoard's event files of a run: its metrics as they come, and at the end the sample.

Importing this needs tensorboard, whose writer is the one that torch has an interface to.
"""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lm_runtime.files import UnusableFileError
from lm_trainer.reports.metrics import EVENTS, METRICS, read_metrics

_TAGS = {
    "loss": "loss/train",
    "valid_loss": "loss/valid",
    "train_perplexity": "perplexity/train",
    "valid_perplexity": "perplexity/valid",
    "lr": "learning_rate",
    "gradient_norm": "gradient_norm",
}


class EventLog:
    """Writes to the run's folder of events: at first those of the metrics so far, in place of what is there.

    Args:
        run: its folder.
        seconds: that it has taken so far.
    """

    def __init__(self, run: Path, seconds: float) -> None:
        earlier = []
        if (run / EVENTS).is_symlink():  # which leads to a folder of others, whose events would be removed
            raise UnusableFileError(run / EVENTS, "a link, where the run's own folder is needed")
        if (run / METRICS).exists():
            earlier = read_metrics(run)
            for path in (run / EVENTS).glob("events.out.tfevents.*"):
                path.unlink()
        self._writer = SummaryWriter(str(run / EVENTS))
        self._before = {"step": 0, "seconds": 0.0}
        self._begun = time.time() - seconds
        for record in earlier:
            self._add(record)
        self._writer.flush()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record of the metrics; it is in the file when this returns."""
        self._add(record)
        self._writer.flush()

    def _add(self, record: dict[str, Any]) -> None:
        """Add a record at the time at which it was, were there no pauses in the run."""
        step, before, wall = record["step"], self._before, self._begun + record["seconds"]
        for name, tag in _TAGS.items():
            if name in record:
                self._writer.add_scalar(tag, record[name], step, wall)
        if "tokens" in record and (seconds := record["seconds"] - before["seconds"]) > 0:
            per_step = record["tokens"] / step
            rate = (step - before["step"]) * per_step / seconds
            self._writer.add_scalar("tokens_per_second", rate, step, wall)
        self._before = record

    def add_sample(self, text: str, step: int) -> None:
        """Write the sample as it stands, not as the Markdown that TensorBoard takes texts for."""
        self._writer.add_text("sample", textwrap.indent(text, "    "), step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
