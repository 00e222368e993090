"""Lines for the person at the terminal, on standard error."""

from __future__ import annotations

import contextlib
import re
import sys

_LONGEST = 2000
_LAST = 300
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal acts on, or what changes the order in which a line is shown; and halves of characters."""


def printable(text: str) -> str:
    """``text`` with its control characters escaped, but for tabs and line breaks."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """``text`` as one line of at most about 2000 characters, whatever it quotes; the middle goes first."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _LAST]} [... {len(text) - _LONGEST:,} characters ...] {text[-_LAST:]}"
    return printable(" ".join(text.split()))


def how_to_add(extra: str) -> str:
    """How an extra of the package is installed, as in the README."""
    return f"pip install '.[{extra}]' in steplm's folder"


def note(text: str) -> None:
    """Tell the person at the terminal something that is not part of the result; nobody may be listening."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()
