"""Which learning rate a run could have: the range test of Smith (2017), "Cyclical Learning Rates for Training
Neural Networks", with a rate that rises exponentially.

Knows nothing about corpora or folders of runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import write_whole
from lm_trainer.reports.metrics import new_picture
from lm_trainer.training.loop import Trainer

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 100
FRACTION = 0.25
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

    There the loss is about to rise: the rate is the largest that still trains, of which Smith takes a third
    or a quarter. The steepest fall of the loss, a common rule too, is where a language model learns how
    frequent each token is, and was seen to come at a tenth of the best rate.
    """
    return float(rates[smoothed(losses).argmin()]) * FRACTION


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over seven neighbours, fewer at the ends, so that nothing is moved along the rates."""
    half = _SMOOTHED // 2
    return np.array([losses[max(0, at - half) : at + half + 1].mean() for at in range(losses.size)])


def draw(rates: NDArray[np.float64], losses: NDArray[np.float64], suggestion: float, path: Path) -> None:
    """Draw the losses over the rates, as PNG."""
    figure, axes = new_picture("learning rate", "loss, nats a token")
    axes.semilogx(rates, losses, alpha=0.4, label="loss")
    axes.semilogx(rates, smoothed(losses), label="smoothed")
    axes.axvline(suggestion, color="tab:red", linestyle=":", label=f"suggested: {suggestion:.2g}")
    axes.legend()
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
