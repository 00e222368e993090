"""Runs that are only tried, and leave nothing: ``lm-train --dry-run`` and ``--find-lr``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from lm_runtime.commands import note
from lm_runtime.folders import temporary_folder
from lm_trainer.families import ModelTrainer
from lm_trainer.presets import Preset
from lm_trainer.run.pretrained import Pretrained
from lm_trainer.run.setup import CorpusArguments, start
from lm_trainer.training import terminal

if TYPE_CHECKING:
    import torch

    from lm_trainer.training.loop import Trainer


@contextmanager
def _trial(
    corpus: CorpusArguments, recipe: Preset, device: torch.device, pretrained: Pretrained | None
) -> Iterator[ModelTrainer]:
    """Within, a run that was set up in a temporary folder."""
    with temporary_folder("lm-train-") as folder:
        yield start(folder / "run", corpus, recipe, device, note, pretrained=pretrained)


def dry_run(
    corpus: CorpusArguments, recipe: Preset, device: torch.device, pretrained: Pretrained | None
) -> dict[str, str]:
    """What the run that the arguments describe would take: figures by their names."""
    begun = time.perf_counter()
    with _trial(corpus, recipe, device, pretrained) as trainer:
        return trainer.forecast(time.perf_counter() - begun)


def find_rate(
    picture: Path,
    corpus: CorpusArguments,
    recipe: Preset,
    device: torch.device,
    pretrained: Pretrained | None,
) -> float:
    """A good learning rate for the run that the other arguments describe; a picture shows why.

    Not for families that are estimated: they have no learning rate.
    """
    from lm_trainer.run import rate_finder

    with _trial(corpus, recipe, device, pretrained) as trainer:
        network_trainer = cast("Trainer", trainer)  # of all families that are not estimated
        with terminal.bar(total=rate_finder.STEPS, unit=" steps") as bar:
            tried = []
            for lr, loss in rate_finder.rise(network_trainer):
                tried.append((lr, loss))
                bar.set_postfix_str(f"learning rate {lr:.1e}, loss {loss:.3f}", refresh=False)
                bar.update()
    rates, losses = np.array(tried).T
    suggestion = rate_finder.suggest(rates, losses)
    rate_finder.draw(rates, losses, suggestion, picture)
    lowest = suggestion / rate_finder.FRACTION
    note(f"loss lowest at {lowest:.3g}, a quarter of it is the suggested learning rate; {picture}")
    return suggestion
