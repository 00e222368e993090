"""Options of the commands: made from the settings of records, and printed in groups by ``--help``.

Knows nothing about what any option means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

import click

from lm_runtime.settings import Setting, settings_of

_Function = TypeVar("_Function", bound=Callable[..., Any])
_OTHERS = "Options"
_ESCAPES = dict(zip('nrtbf"/\\', '\n\r\t\b\f"/\\', strict=True))
_TYPES: dict[type, Any] = {int: click.INT, float: click.FLOAT, bool: click.BOOL}


class Option(click.Option):
    """An option that stands under a heading.

    Args:
        group: the heading.
    """

    def __init__(self, *args: Any, group: str = _OTHERS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class EscapedText(click.ParamType):  # type: ignore[type-arg]  # older versions of click take no argument
    """Text in which a backslash begins an escape, by the rules of JSON."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text with its escapes resolved."""
        try:
            return unescape(value)
        except ValueError as error:
            if isinstance(error, UnicodeEncodeError):
                raise
            self.fail(str(error), param, ctx)


ESCAPED_TEXT = EscapedText()

option = partial(click.option, cls=Option)
"""As ``click.option``, with a ``group``."""


class _Choice(click.Choice):  # type: ignore[type-arg]  # the same
    """One of several strings, to which more may be added after the option is made."""

    def __init__(self, strings: Collection[str]) -> None:
        super().__init__(strings)
        self._strings = strings

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        self.choices = tuple(self._strings)
        return super().get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        self.choices = tuple(self._strings)
        return str(super().convert(value, param, ctx))


class GroupedCommand(click.Command):
    """A command whose ``--help`` prints its options by group, in the order in which groups first come."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every group under its heading; options without one come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue
            if record := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", _OTHERS), []).append(record)
        if _OTHERS in groups:
            groups[_OTHERS] = groups.pop(_OTHERS)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def unescape(text: str) -> str:
    r"""Resolve JSON's escapes: ``\n``, ``\t``, ``\\``, ``\"``, ``\u00e9`` and the like.

    Raises:
        ValueError: a backslash begins no escape, or half a surrogate pair is escaped.
    """
    text.encode()  # refuses what is no text at all

    def character(escape: re.Match[str]) -> str:
        name = escape[1]
        if len(name) == 5:
            return chr(int(name[1:], 16))
        if name not in _ESCAPES:
            raise ValueError(f"\\{name} is no escape; a backslash is written \\\\")
        return _ESCAPES[name]

    found = re.sub(r"\\(u[0-9a-fA-F]{4}|.?)", character, text, flags=re.DOTALL)
    # Pairs of surrogates, as JSON writes characters above U+FFFF, become one character.
    try:
        return found.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("half a surrogate pair is escaped") from None


def settings_options(
    record: type, *, omit: Collection[str] = (), defaults: Callable[[Setting], str] | None = None
) -> Callable[[_Function], _Function]:
    """Give a command an option for every setting of a record; the command gets them by the fields' names.

    An option is None, or empty where it is repeatable, unless it is given. The record checks the range, so
    that all doors refuse a value in the same words.

    Args:
        record: a dataclass with settings.
        omit: fields that get no option.
        defaults: what ``--help`` says of a setting that is not given.
    """

    def decorate(function: _Function) -> _Function:
        for entry in reversed(settings_of(record).values()):
            if entry.name not in omit:
                names, attributes = _arguments(entry, defaults(entry) if defaults else "")
                function = click.option(*names, cls=Option, **attributes)(function)
        return function

    return decorate


def _arguments(entry: Setting, default: str) -> tuple[list[str], dict[str, Any]]:
    """The names and the attributes of a setting's option."""
    name = f"--{entry.option}"
    multiple = entry.repeatable or entry.kind is tuple
    notes = "; ".join(filter(None, (entry.bounds, default and f"default: {default}")))
    return [f"{name}/--no-{entry.option}" if entry.kind is bool else name, entry.name], {
        "type": _type_of(entry),
        "default": None,
        "multiple": multiple,
        "metavar": entry.metavar,
        "help": entry.help + " Repeatable." * multiple + (f"  [{notes}]" if notes else ""),
        "group": entry.group,
    }


def _type_of(entry: Setting) -> Any:
    if entry.choices:
        return _Choice(entry.choices)
    return ESCAPED_TEXT if entry.escapes else _TYPES.get(entry.kind, click.STRING)
