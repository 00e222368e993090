"""Settings: the fields of a configuration record, each with its help text, bounds and option's name.

What stands on a field is said once: command lines, files of settings and JSON follow from it, and
:func:`check` holds a record to it. Knows nothing about command lines.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Collection
from dataclasses import MISSING, dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any

_KEY = "setting"
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a sequence of strings",
}
"""The types that a setting may have, as messages call them."""
_LONGEST = 80
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
"""Megabytes are not spelled out to be thrown away."""


@dataclass(frozen=True)
class Setting:
    """One field of a record; made by :func:`setting`, read by :func:`settings_of`."""

    help: str
    """What it does, in a sentence or two."""
    group: str = "Options"
    """The heading it stands under in ``--help``."""
    option: str = ""
    """The option's name without its dashes; by default the field's, with dashes."""
    metavar: str | None = None
    """What stands for the value in ``--help``."""
    choices: Collection[str] = ()
    """The values of a string, where only some are allowed; more may be added to it later."""
    low: float | None = None
    """The smallest value."""
    high: float | None = None
    """The largest value."""
    above: float | None = None
    """A bound that is itself too small."""
    below: float | None = None
    """A bound that is itself too large."""
    repeatable: bool = False
    """Whether the option may stand several times, for a field that is no sequence of strings."""
    escapes: bool = False
    """Whether an option's text may have JSON's escapes."""
    name: str = ""
    """The field's name."""
    kind: type = object
    """int, float, bool, str, tuple for several strings, or object for what the record checks itself."""
    optional: bool = False
    """Whether None is a value too."""
    default: Any = None
    """The field's default."""

    @property
    def called(self) -> str:
        """Its type in a message: ``a whole number``."""
        return _KINDS.get(self.kind, "a value")

    @property
    def bounds(self) -> str:
        """Its range in a message: ``from 0 to 1``; empty where every value goes."""
        return _bounds(self)

    def check(self, value: object) -> None:
        """Check one value.

        Raises:
            ValueError: its type or range is wrong; the message names the setting, the value and the bound.
        """
        if self.kind is object or (value is None and self.optional):
            return
        if not _is_kind(value, self.kind):
            raise ValueError(f"{self.name} must be {self.called}, got {short(value)}")
        if isinstance(value, tuple | list) and "" in value:
            raise ValueError(f"a {self.name} string must not be empty")
        if self.choices and value not in self.choices:
            *others, last = self.choices
            raise ValueError(f"{self.name} must be {', '.join(others)} or {last}, got {_plain(value)}")
        if isinstance(value, Real) and not _is_within(self, value):
            raise ValueError(f"{self.name} must be {self.bounds or 'finite'}, got {_plain(value)}")


def setting(default: Any = MISSING, *, help: str, **facts: Any) -> Any:
    """A dataclass field with a :class:`Setting`, whose ``facts`` are given by name.

    >>> @dataclass(frozen=True)
    ... class Recipe:
    ...     epochs: int = setting(5, help="Passes over the text.", low=1, high=1 << 20)
    ...     def __post_init__(self) -> None:
    ...         check(self)
    """
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, **facts)})


@cache
def settings_of(record: type) -> dict[str, Setting]:
    """The settings of a record's class by their names, in the order of its fields."""
    hints = typing.get_type_hints(record)
    found = {}
    for field in dataclasses.fields(record):
        if _KEY in field.metadata:
            kind, optional = _kind_of(hints[field.name])
            found[field.name] = dataclasses.replace(
                field.metadata[_KEY],
                name=field.name,
                option=field.metadata[_KEY].option or field.name.replace("_", "-"),
                kind=kind,
                optional=optional,
                default=None if field.default is MISSING else field.default,
            )
    return found


def check(record: Any, *, omit: Collection[str] = ()) -> None:
    """Check the types and ranges of a record's settings, but for those in ``omit``; lists become tuples.

    Raises:
        ValueError: a value is wrong; the message names it, the value and the bound.
    """
    kind: type = type(record)
    for name, entry in settings_of(kind).items():
        if name not in omit:
            value = getattr(record, name)
            entry.check(value)
            if entry.kind is tuple and isinstance(value, list):
                object.__setattr__(record, name, tuple(value))


def check_number(name: str, value: object, kind: type, **bounds: Any) -> None:
    """Check an argument that is no field, as :meth:`Setting.check` does.

    Args:
        name: the argument's name.
        value: its value.
        kind: int or float.
        bounds: of ``low``, ``high``, ``above`` and ``below``.

    Raises:
        ValueError: its type or range is wrong.
    """
    Setting("", name=name, kind=kind, **bounds).check(value)


def short(value: object) -> str:
    """A value as messages show it: its ``repr``, cut where it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _plain(value: object) -> str:
    """A value of the right type: numpy's as Python's, a string without quotes."""
    return short(int(value)) if isinstance(value, Integral) else str(value)[:_LONGEST]


def _kind_of(hint: Any) -> tuple[type, bool]:
    """A field's type, and whether None is allowed beside it."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    others = [option for option in options if option is not type(None)]
    kind = typing.get_origin(others[0]) or others[0]
    if kind is typing.Literal:
        kind = str
    return (kind if len(others) == 1 and kind in _KINDS else object), len(others) < len(options)


def _is_kind(value: object, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    if kind in (int, float):
        # numpy's numbers too; True is a number for Python alone.
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_within(entry: Setting, value: Real) -> bool:
    """Written so that NaN is out of every range, and infinity of one without an end."""
    number: Any = value
    if entry.kind is float:
        try:
            number = float(number)
        except OverflowError:  # an integer beyond every float
            return False
        if not math.isfinite(number):
            return False
    return (
        (entry.low is None or number >= entry.low)
        and (entry.high is None or number <= entry.high)
        and (entry.above is None or number > entry.above)
        and (entry.below is None or number < entry.below)
    )


def _bounds(entry: Setting) -> str:
    low, high, above, below = (
        None if bound is None else f"{bound:.0f}" if bound == int(bound) else f"{bound:g}"
        for bound in (entry.low, entry.high, entry.above, entry.below)
    )
    if low is not None and high is not None:
        return f"from {low} to {high}"
    named = {"at least": low, "above": above, "at most": high, "below": below}
    return " and ".join(f"{word} {bound}" for word, bound in named.items() if bound is not None)
