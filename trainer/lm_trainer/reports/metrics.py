"""A run's metrics: a file of JSON objects, one a line, appended as the run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lm_runtime.files import UnusableFileError, open_own
from lm_runtime.text_files import read_lines
from lm_trainer.run.folder import METRICS


class MetricsLog:
    """Appends records; those that a killed run wrote after its last checkpoint can be cut off."""

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
