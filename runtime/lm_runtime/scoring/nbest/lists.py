"""N-best lists read from a file or folder, in whichever format it has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.nbest.hypothesis import Hypothesis, Source
from lm_runtime.scoring.nbest.registry import FORMATS
from lm_runtime.scoring.score import read_texts


@dataclass(frozen=True)
class Lists:
    """A file or folder of n-best lists that was opened."""

    format: str
    """The name of its format."""
    hypotheses: Iterator[Hypothesis]
    """The hypotheses, in its order; reading them may raise UnusableFileError."""


def open_lists(
    path: str | Path,
    format: str = "auto",
    *,
    fields: Mapping[str, str] | None = None,
    costs: Sequence[tuple[Path, float]] = (),
) -> Lists:
    """Open n-best lists.

    Args:
        path: a file; for ESPnet a folder.
        format: a name of :data:`FORMATS`, or ``auto``: the first that fits what the file begins with.
        fields: names of fields in JSON Lines, see :class:`Source`.
        costs: files of Kaldi's costs, each with its scale.

    Raises:
        UnusableFileError: the file is missing, empty or no text, or a folder has no lists.
        ValueError: there is no such format.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format must be auto, {', '.join(FORMATS)}, got {format}")
    lines: Iterator[str] = iter(()) if path.is_dir() else read_texts(path)
    first = next(lines, "")
    source = Source(path, itertools.chain([first], lines), first, fields or {}, tuple(costs))
    if format == "auto":
        found = [name for name, entry in FORMATS.items() if entry.load().fits(source)]
        if not found:
            raise UnusableFileError(path, "a folder without lists: there is no 1best_recog in it")
        format = found[0]
    if path.is_dir() and format != "espnet":
        raise UnusableFileError(path, "a folder, where a text file is needed")
    return Lists(format, FORMATS[format].load().read(source))


def read_hypotheses(
    path: str | Path,
    format: str = "auto",
    *,
    fields: Mapping[str, str] | None = None,
    costs: Sequence[tuple[Path, float]] = (),
) -> Iterator[Hypothesis]:
    """The hypotheses of n-best lists; arguments and errors are those of :func:`open_lists`.

    Raises:
        UnusableFileError: besides, a line is not what its format has; the message names it.
    """
    yield from open_lists(path, format, fields=fields, costs=costs).hypotheses
