"""A hypothesis of a first pass, and the rules that all formats share. Knows no format.

White space that separates is spaces and tabs, and nothing else (a no-break space is part of a word). A number
is decimal, such as -12.5 or 1e-3, ASCII, and finite. A line that lacks something is refused, by its number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.score import read_texts
from lm_runtime.settings import short

Item = TypeVar("Item")

SPACES = " \t"
SEPARATOR = re.compile(r"[ \t]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Hypothesis:
    """One of the texts that a first pass (a recognizer, a translator) holds possible."""

    id: str
    """What it is a hypothesis of: all of one id are a list."""
    score: float
    """The first pass's score, natural logarithm."""
    text: str
    """The text."""
    extra: Any = field(default=None, compare=False, repr=False)
    """What else its format says of it, as that format's module keeps it."""


@dataclass(frozen=True)
class Source:
    """A file or folder of lists, and what was said about it."""

    path: Path
    """The file or folder."""
    lines: Iterable[str]
    """The file's lines, without their breaks; empty for a folder."""
    first: str
    """The first of them."""
    fields: Mapping[str, str]
    """The names of ``id``, ``score`` and ``text`` in JSON, and of ``list`` where a line has a whole list."""
    costs: tuple[tuple[Path, float], ...] = ()
    """Files of costs, each with its scale."""

    def parsed(self, parse: Callable[[str], Item]) -> Iterator[Item]:
        """``parse`` of each line, whose ValueError gets file and line."""
        return parsed(self.path, self.lines, parse)


def parsed(path: Path, lines: Iterable[str], parse: Callable[[str], Item]) -> Iterator[Item]:
    """``parse`` of each line.

    Raises:
        UnusableFileError: ``parse`` raised ValueError; the message has the line's number.
    """
    for number, line in enumerate(lines, start=1):
        try:
            item = parse(line)
        except ValueError as error:
            raise UnusableFileError(path, f"line {number}: {error}") from None
        yield item


def number(text: str, what: str = "score") -> float:
    """The number that ``text`` is.

    Raises:
        ValueError: it is none, or beyond a float's range.
    """
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"the {what} is no number: {short(text)}")
    return value


def keyed(line: str, what: str = "a text") -> tuple[str, str]:
    """The key that a line begins with, and the rest without the spaces around it.

    Raises:
        ValueError: there is no key.
    """
    key, rest = (*SEPARATOR.split(line.strip(SPACES), maxsplit=1), "")[:2]
    if not key:
        raise ValueError(f"not an id and {what}: {short(line)}")
    return key, rest


def table(path: Path, parse: Callable[[str], Item], what: str = "a text") -> dict[str, Item]:
    """The lines ``key rest`` of a file, by their keys.

    Raises:
        UnusableFileError: the file cannot be used, ``parse`` refused a rest, or a key comes twice.
    """
    found: dict[str, Item] = {}

    def entry(line: str) -> None:
        key, rest = keyed(line, what)
        if key in found:
            raise ValueError(f"{short(key)} comes a second time")
        found[key] = parse(rest)

    for _ in parsed(path, read_texts(path), entry):
        pass
    return found
