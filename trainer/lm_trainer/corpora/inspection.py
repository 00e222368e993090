"""What the beginning of a text tells about its form: what cannot be meant, and what may not be."""

from __future__ import annotations

import json
from pathlib import Path

from lm_runtime.files import UnusableFileError, open_regular
from lm_runtime.text_files import read_fragments
from lm_runtime.tokenizer import EOS

_HEAD_BYTES = 1 << 16
_LINES = 20


def inspect(path: Path) -> tuple[str, ...]:
    """Look at the first 64 KiB of a text.

    Returns:
        what the person at the terminal should know, a line each.

    Raises:
        UnusableFileError: it is not a regular file, compressed, not UTF-8, or its lines have no line feeds.
    """
    with open_regular(path, "text file") as file:
        head = file.read(_HEAD_BYTES)
    if _is_utf16(head):
        raise UnusableFileError(path, "UTF-16, where UTF-8 is needed; convert it first")
    next(read_fragments(path), None)
    if head.count(b"\r") > 1 and b"\n" not in head:
        raise UnusableFileError(
            path, "its lines end in carriage returns alone, where line feeds are needed; convert it first"
        )
    lines = [line.strip() for line in head.split(b"\n")[:-1] if line.strip()][:_LINES]
    notes = []
    if len(lines) > 1 and all(line.endswith(EOS.encode()) for line in lines):
        notes.append(
            f"note: the lines of {path} end in {EOS}, which is text: each line's end is a token already"
        )
    if len(lines) > 1 and all(map(_is_json_object, lines)):
        notes.append(f"note: {path} looks like JSON Lines: its keys and quotes are learned as text")
    return tuple(notes)


def _is_utf16(head: bytes) -> bool:
    """Whether most characters are two bytes of which one, always on the same side, is NUL."""
    for zeros, others in ((head[::2], head[1::2]), (head[1::2], head[::2])):
        if zeros.count(0) > len(head) // 4 and not others.count(0):
            return True
    return False


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
