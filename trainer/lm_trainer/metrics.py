"""A run's metrics: ``metrics.jsonl``, and the picture drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_runtime.files import UnusableFileError, write_whole
from lm_runtime.scoring import perplexity

METRICS = "metrics.jsonl"
CURVE = "loss.png"


class MetricsLog:
    """Appends one JSON object a line; what a killed run wrote behind its checkpoint can be cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size if path.exists() else 0
        """The file's length in bytes."""

    def append(self, record: dict[str, Any]) -> None:
        """Add ``record``."""
        line = (json.dumps(record) + "\n").encode()
        with self._path.open("ab") as file:
            file.write(line)
        self.size += len(line)

    def truncate(self, size: int) -> None:
        """Go back to a length that :attr:`size` had before."""
        if self.size > size:
            with self._path.open("r+b") as file:
                file.truncate(size)
        self.size = min(self.size, size)


def draw_curve(run: Path, baselines: dict[str, float]) -> Path:
    """Draw training and validation perplexity over the steps, beside the baselines' perplexities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    try:
        records = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise UnusableFileError(run / METRICS, "damaged: a line is not JSON") from None
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.semilogy(
        [record["step"] for record in steps],
        [perplexity(record["loss"]) for record in steps],
        color="tab:blue",
        alpha=0.6,
        label="train",
    )
    axes.semilogy(
        [record["step"] for record in epochs],
        [record["valid_perplexity"] for record in epochs],
        "o-",
        color="tab:red",
        label="valid",
    )
    for record in epochs:
        axes.annotate(
            f"{record['valid_perplexity']:.1f}",
            (record["step"], record["valid_perplexity"]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=8,
        )
    for name, value in baselines.items():
        axes.axhline(value, color="gray", linestyle=":", linewidth=1)
        axes.annotate(f"{name} {value:,.0f}", (0, value), fontsize=8, color="gray", va="bottom")
    axes.set_xlabel("steps")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.legend()
    path = run / CURVE
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
