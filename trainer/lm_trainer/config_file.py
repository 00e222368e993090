"""A file of settings in TOML: one ``name = value`` a line. Knows nothing about what the names mean."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_runtime.files import UnusableFileError, read_text_file


def read_config(path: Path) -> dict[str, Any]:
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


def to_toml(settings: Mapping[str, str | bool | int | float | None]) -> str:
    """The text of a file of ``settings``, without those that are None."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in settings.items() if value is not None)


def _value(value: str | bool | int | float) -> str:
    """JSON, whose numbers and escapes TOML has too; but TOML wants DEL escaped, and writes ``inf``."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
