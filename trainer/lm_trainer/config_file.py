"""A file of settings in TOML: one ``name = value`` a line. Knows nothing about what the settings mean."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_runtime.files import UnusableFileError
from lm_runtime.settings import Setting
from lm_runtime.text_files import read_text_file


def read_settings(path: Path) -> dict[str, Any]:
    """The file's settings by their names, in which a dash is an underscore.

    Raises:
        UnusableFileError: it is missing, not TOML, or has a name twice.
    """
    try:
        entries = tomllib.loads(read_text_file(path))
    except (ValueError, RecursionError) as error:
        raise UnusableFileError(path, f"not TOML: {error}") from None
    settings = {name.replace("-", "_"): value for name, value in entries.items()}
    if len(settings) < len(entries):
        raise UnusableFileError(path, "a setting stands there twice, with dashes and with underscores")
    return settings


def by_fields(settings: Mapping[str, Any], known: Mapping[str, Setting], path: Path) -> dict[str, Any]:
    """Settings by the names of the fields that they are for.

    Args:
        settings: from :func:`read_settings`.
        known: the settings that may stand in a file, by their fields' names; there they have their options'.
        path: the file, for messages.

    Raises:
        ValueError: a name, a type or a range is wrong.
    """
    fields = {in_file(entry): entry for entry in known.values()}
    found = {}
    for name, value in settings.items():
        if name not in fields:
            raise ValueError(
                f"{path}: no setting is called {name}; they are the options of lm-train, and corpus"
            )
        entry = fields[name]
        if entry.kind is float and type(value) is int:
            value = _float(value)
        try:
            dataclasses.replace(entry, name=name).check(value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found[entry.name] = value
    return found


def in_file(entry: Setting) -> str:
    """What a setting is called in a file."""
    return entry.option.replace("-", "_")


def to_toml(settings: Mapping[str, Any]) -> str:
    """The text of a file of ``settings``, without those that are None."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in settings.items() if value is not None)


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _value(value: Any) -> str:
    """JSON, whose numbers and escapes TOML has too; but TOML wants DEL escaped, and writes ``inf``."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
