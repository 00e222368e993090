"""Pictures of a run, drawn by matplotlib without a screen and without the user's choice of a backend."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lm_runtime.files import write_whole
from lm_runtime.scoring.score import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120


def new_picture(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty diagram."""
    with _no_backend(), _no_cache():
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
def _no_backend() -> Iterator[None]:
    """Within, matplotlib loads where a notebook's backend is named that this environment does not have."""
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen


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


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture to ``path`` as PNG, atomically."""
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def draw_rates(records: list[dict[str, Any]], file: IO[bytes]) -> None:
    """Draw the learning rate over the steps, as PNG."""
    figure, axes = new_picture("steps", "learning rate")
    steps = [record for record in records if record["event"] == "step"]
    axes.plot([record["step"] for record in steps], [record["lr"] for record in steps])
    axes.set_ylim(bottom=0)
    figure.savefig(file, format="png", dpi=_DPI)


def draw_curve(records: list[dict[str, Any]], baselines: dict[str, float], path: Path) -> None:
    """Draw training and validation perplexity over the steps, beside the baselines' perplexities."""
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
    save_picture(figure, path)
