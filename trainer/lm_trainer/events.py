"""TensorBoard's event files of a run: its metrics as they come, and at the end the sample.

Importing this needs tensorboard, whose writer is the one that torch has an interface to.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lm_trainer.metrics import EVENTS, METRICS, read_metrics

_TAGS = {
    "loss": "loss/train",
    "valid_loss": "loss/valid",
    "train_perplexity": "perplexity/train",
    "valid_perplexity": "perplexity/valid",
    "lr": "learning_rate",
    "gradient_norm": "gradient_norm",
}


class EventLog:
    """Writes to the run's folder of events, a new file at each start.

    What a killed run wrote behind its checkpoint is purged. A run that had no events so far gets those of
    its metrics.

    Args:
        run: its folder.
        step: where the run goes on.
    """

    def __init__(self, run: Path, step: int) -> None:
        folder = run / EVENTS
        earlier = read_metrics(run) if (run / METRICS).exists() else []
        behind = step + 1 if folder.exists() else None
        self._writer = SummaryWriter(str(folder), purge_step=behind)
        self._before = {"step": 0, "seconds": 0.0}
        for record in earlier:
            if behind is None:
                self.append(record)
            self._before = record

    def append(self, record: dict[str, Any]) -> None:
        """Write one record of the metrics; it is in the file when this returns."""
        step, before = record["step"], self._before
        for name, tag in _TAGS.items():
            if name in record:
                self._writer.add_scalar(tag, record[name], step)
        if "tokens" in record and (seconds := record["seconds"] - before["seconds"]) > 0:
            per_step = record["tokens"] / step
            self._writer.add_scalar("tokens_per_second", (step - before["step"]) * per_step / seconds, step)
        self._writer.flush()
        self._before = record

    def add_sample(self, text: str, step: int) -> None:
        """Write the sample as it stands, not as the Markdown that TensorBoard takes texts for."""
        self._writer.add_text("sample", textwrap.indent(text, "    "), step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
