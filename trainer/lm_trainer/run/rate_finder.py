"""Finding a learning rate: the range test of Smith (2017), "Cyclical Learning Rates for Training Neural
Networks", with a rate that rises exponentially.

Knows nothing about corpora or a run's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_trainer.reports.pictures import new_picture, save_picture
from lm_trainer.training.loop import Trainer

LOWEST, HIGHEST = 1e-6, 10.0
"""The first and the last rate."""
STEPS = 100
"""The number of rates."""
FRACTION = 0.25
"""The suggested rate, as a fraction of the rate of the lowest loss."""
_RISE = 4
_SMOOTHED = 7


def rise(trainer: Trainer) -> Iterator[tuple[float, float]]:
    """Train with a rate that rises from step to step, until the loss is 4 times its lowest or no number.

    Yields:
        the rate, and the loss before the step with it, nats a token.
    """
    lowest = math.inf
    for lr in np.geomspace(LOWEST, HIGHEST, STEPS).tolist():
        if trainer.progress.window == trainer.windows:
            trainer.rewind()
        loss = float(trainer.step(lr))
        if not math.isfinite(loss) or loss > _RISE * lowest:
            return
        lowest = min(lowest, loss)
        yield lr, loss


def suggest(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> float:
    """A quarter of the rate at which the smoothed loss is lowest.

    There the loss is about to rise: it is the largest rate that still trains, and Smith takes a third or a
    quarter of it. Another common rule, the steepest fall of the loss, was seen to give a tenth of the best
    rate: there a language model learns how frequent each token is.
    """
    return float(rates[smoothed(losses).argmin()]) * FRACTION


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over seven neighbours, fewer at the ends: nothing moves along the rates."""
    half = _SMOOTHED // 2
    return np.array([losses[max(0, at - half) : at + half + 1].mean() for at in range(losses.size)])


def draw(rates: NDArray[np.float64], losses: NDArray[np.float64], suggestion: float, path: Path) -> None:
    """Draw the losses over the rates, as PNG."""
    figure, axes = new_picture("learning rate", "loss, nats a token")
    axes.semilogx(rates, losses, alpha=0.4, label="loss")
    axes.semilogx(rates, smoothed(losses), label="smoothed")
    axes.axvline(suggestion, color="tab:red", linestyle=":", label=f"suggested: {suggestion:.2g}")
    axes.legend()
    save_picture(figure, path)
