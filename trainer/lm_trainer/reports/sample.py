"""A run's sample: a text that a model made, which may have any character in it."""

from __future__ import annotations

from pathlib import Path

from lm_runtime.files import open_regular
from lm_trainer.run.folder import SAMPLE


def read_sample(run: Path) -> str:
    """The text; a byte that is no UTF-8 is U+FFFD.

    Raises:
        UnusableFileError: it is missing, or no regular file.
    """
    with open_regular(run / SAMPLE, "text file") as file:
        return file.read().decode("utf-8", "replace")
