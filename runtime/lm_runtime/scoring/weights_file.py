"""The small JSON file that keeps the weights of n-best lists."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from lm_runtime.files import UnusableFileError, read_regular, write_text
from lm_runtime.scoring.weights import NAMES, Weights
from lm_runtime.wire import Record, parse

_FORMAT = "steplm-weights"
_MOST_BYTES = 1 << 20


def save_weights(path: Path, weights: Weights, models: Sequence[str], tuned: Record) -> None:
    """Write weights to a JSON file, atomically.

    Args:
        path: the file.
        weights: the weights.
        models: what tells the models they are for from all others.
        tuned: what they were found on, for people who read the file.
    """
    record = {"format": _FORMAT, **dataclasses.asdict(weights), "models": list(models), "tuned": tuned}
    write_text(path, json.dumps(record, indent=2) + "\n")


def load_weights(path: Path) -> tuple[Weights, list[str]]:
    """Read what :func:`save_weights` wrote: the weights, and what tells their models from all others.

    A file written by hand may have the weights alone.

    Raises:
        UnusableFileError: the file is missing, or is something else.
    """
    data = read_regular(path, _MOST_BYTES)
    try:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None
        record = parse(text)
        if unknown := set(record) - {*NAMES, "format", "models", "tuned"}:
            raise ValueError(f"unknown key {min(unknown)!r}")
        if record.get("format", _FORMAT) != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        if not set(NAMES) & set(record):
            raise ValueError(f"it has none of {', '.join(NAMES)}")
        models = record.get("models", [])
        if not isinstance(models, list):
            raise ValueError("models is no list")
        return Weights(**{name: record[name] for name in NAMES if name in record}), models
    except ValueError as error:
        raise UnusableFileError(path, f"no file of weights ({error})") from None
