"""Corpora, tokenizer training, models, the training loop and its checkpoints (torch).

>>> import lm_trainer
>>> run = lm_trainer.train("my-text.txt", preset="small", out="my-run", epochs=3)
>>> run.summary["valid"]["perplexity"]
>>> run.export("my-bundle")
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # the import of typing takes longer than all else before Ctrl-C is handled
if TYPE_CHECKING:
    from typing import Any

    from lm_trainer.reports.comparison import Comparison, compare
    from lm_trainer.runs import Run, train

__all__ = ["Comparison", "Run", "compare", "train"]

_HOME = {"Comparison": "reports.comparison", "Run": "runs", "compare": "reports.comparison", "train": "runs"}


def __getattr__(name: str) -> Any:
    # Records and plans are taken from this package where nothing else is installed.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lm_trainer.{_HOME[name]}"), name)
