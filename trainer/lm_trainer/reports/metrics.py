"""A run's metrics: ``metrics.jsonl``, and the pictures drawn from it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lm_runtime.files import UnusableFileError, open_own, read_lines, write_whole
from lm_runtime.scoring.score import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = "metrics.jsonl"
CURVE = "loss.png"
EVENTS = "tensorboard"
"""The folder of TensorBoard's event files."""


class MetricsLog:
    """Appends one JSON object a line; what a killed run wrote behind its checkpoint can be cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size if path.exists() else 0
        """The file's length in bytes."""
        self.watch: Callable[[dict[str, Any]], None] = lambda record: None
        """Called with each new record."""

    def append(self, record: dict[str, Any]) -> None:
        """Add ``record``."""
        line = (json.dumps(record) + "\n").encode()
        with self._open() as file:
            file.write(line)
        self.size += len(line)
        self.watch(record)

    def truncate(self, size: int) -> None:
        """Go back to a length that :attr:`size` had before."""
        if self.size > size:
            with self._open() as file:
                file.truncate(size)
        self.size = min(self.size, size)

    def _open(self) -> IO[bytes]:
        # The processes beside the first one write to nowhere, which is no regular file.
        return self._path.open("ab") if self._path == Path(os.devnull) else open_own(self._path)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run.

    Raises:
        UnusableFileError: they are damaged.
    """
    try:
        return [json.loads(line) for line in read_lines(run / METRICS)]
    except ValueError:
        raise UnusableFileError(run / METRICS, "damaged: a line is not JSON") from None


def new_picture(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty diagram."""
    with _no_cache():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


@contextmanager
def _no_cache() -> Iterator[None]:
    """Within, matplotlib writes no list of fonts into the home folder, unless it has done so before."""
    home = Path(os.environ.get("HOME", ""))
    caches = (Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"), "matplotlib"), home / ".matplotlib")
    if "MPLCONFIGDIR" in os.environ or any(cache.is_dir() for cache in caches):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lm-train-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def draw_rates(records: list[dict[str, Any]], file: IO[bytes]) -> None:
    """Draw the learning rate over the steps, as PNG."""
    figure, axes = new_picture("steps", "learning rate")
    steps = [record for record in records if record["event"] == "step"]
    axes.plot([record["step"] for record in steps], [record["lr"] for record in steps])
    axes.set_ylim(bottom=0)
    figure.savefig(file, format="png", dpi=120)


def draw_curve(run: Path, baselines: dict[str, float]) -> Path:
    """Draw training and validation perplexity over the steps, beside the baselines' perplexities."""
    records = read_metrics(run)
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    figure, axes = new_picture("steps", "perplexity")
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
    axes.legend()
    path = run / CURVE
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
