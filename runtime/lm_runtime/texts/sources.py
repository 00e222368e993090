"""Which files a call means: files, folders, globs and standard input. Reads none of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_runtime.files import UnusableFileError
from lm_runtime.text_files import STANDARD_INPUT, is_read_once
from lm_runtime.texts.packed import is_packed

Form = Literal["text", "jsonl", "parquet"]

_FORMS: dict[str, Form] = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
KNOWN = ".txt, .jsonl or .parquet, also packed as .gz, .zst, .xz or .bz2"
"""What a folder is searched for, in words."""


@dataclass(frozen=True)
class Source:
    """A file with one text or many records."""

    path: Path
    """The file."""
    form: Form
    """One text, a record a line, or a table of records."""

    @property
    def size(self) -> int:
        """In bytes, as it stands there; 0 where that is not known."""
        return 0 if is_read_once(self.path) else self.path.stat().st_size


def find_sources(arguments: Iterable[str], *, records_in: bool = False) -> tuple[Source, ...]:
    """The files that ``arguments`` name, each once, in their order.

    A folder stands for all files below it whose names say that they are texts, sorted by their paths; hidden
    ones are left out. What has ``*``, ``?`` or ``[`` and is no file's name is a glob, ``**`` for any folders.

    Args:
        arguments: paths, globs, or ``-`` for standard input.
        records_in: whether standard input has JSON Lines, not a text.

    Raises:
        UnusableFileError: there is no such file, or no text in a folder.
    """
    found: dict[Path, Source] = {}
    for argument in arguments:
        for source in _named(argument, records_in):
            found.setdefault(source.path, source)
    return tuple(found.values())


def form_of(path: Path) -> Form | None:
    """What the name says of the content; None for a name that says nothing."""
    inner = Path(path.stem) if is_packed(path) else path
    return _FORMS.get(inner.suffix.lower())


def _named(argument: str, records_in: bool) -> Iterator[Source]:
    path = STANDARD_INPUT if argument == "-" else Path(argument)
    if path == STANDARD_INPUT:
        yield Source(path, "jsonl" if records_in else "text")
    elif path.is_dir():
        yield from _below(path)
    elif not os.path.lexists(path) and glob.has_magic(argument):
        found = glob.iglob(argument, recursive=True)  # noqa: PTH207
        paths = sorted(Path(name) for name in found if not Path(name).is_dir())
        if not paths:
            raise UnusableFileError(argument, "no file has such a name")
        yield from (Source(path, form_of(path) or "text") for path in paths)
    elif not argument or not path.exists():
        raise UnusableFileError(argument or "''", "no such file")
    else:
        yield Source(path, form_of(path) or "text")


def _below(folder: Path) -> Iterator[Source]:
    paths = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        if not _hidden(Path(root).relative_to(folder))
        for name in names
        if not _hidden(Path(name))
    )
    sources = [Source(path, form) for path in paths if (form := form_of(path)) and path.is_file()]
    if not sources:
        raise UnusableFileError(folder, f"has no text: no file below it ends in {KNOWN}")
    yield from sources


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)
