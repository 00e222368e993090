"""Text files: lines in bounded memory, from files, pipes and standard input. Knows nothing about tokens.

What is a line is said here for training, scoring and generation: ``LF`` and ``CRLF`` end one, nothing else
does. U+2028, U+2029, U+0085, vertical tab and form feed are white space within a line, a ``CR`` alone is a
character, a byte order mark is dropped where the text begins, and NUL or half a surrogate pair is no text.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lm_runtime.files import UnusableFileError, open_regular
from lm_runtime.texts.packed import is_packed, unpacked

Fragments = Iterator[tuple[str, bool]]
"""Lines, or parts of long ones, each with whether it ends its line."""

STANDARD_INPUT = Path("/dev/stdin")
"""What ``-`` stands for; it is read from where it stands, not opened anew."""

_READ_BYTES = 1 << 20
_LONGEST_FRAGMENT = 1 << 16
_DESCRIPTOR = re.compile(r"/dev/(?:stdin|fd/(\d+))|/proc/self/fd/(\d+)")
_NOT_TEXT = {
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ\0": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first",
    b"\xff\xfe": "UTF-16, where UTF-8 is needed; convert it first",
    b"\xfe\xff": "UTF-16, where UTF-8 is needed; convert it first",
}
"""What the first bytes of a file say that is taken for a text by mistake."""


def is_read_once(path: Path) -> bool:
    """Whether what is read from ``path`` cannot be read again: an open descriptor, or no regular file."""
    return _DESCRIPTOR.fullmatch(str(path)) is not None or not path.is_file()


def read_text_file(path: Path) -> str:
    """The whole of a small UTF-8 file, line ends as in :func:`read_fragments`.

    Raises:
        UnusableFileError: as :func:`read_fragments`.
    """
    return "".join(text + "\n" * ends for text, ends in read_fragments(path))


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, each of them whole, without its line break.

    Raises:
        UnusableFileError: as :func:`read_fragments`.
    """
    return whole_lines(read_fragments(path))


def whole_lines(fragments: Fragments) -> Iterator[str]:
    """The lines of ``fragments``, each of them whole."""
    parts: list[str] = []
    for text, ends in fragments:
        parts.append(text)
        if ends:
            yield "".join(parts)
            parts.clear()


def read_fragments(path: Path, start: int = 0, end: int | None = None) -> Fragments:
    """The lines of a UTF-8 text, or of its bytes from ``start`` to ``end``, in bounded memory.

    A file whose name ends in ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` is unpacked; offsets are in its text.

    Yields ``(text, ends)``: a line without its line break and True; a line longer than 64 KiB comes
    in several fragments, of which only the last has True. A long line is cut between a word and the
    space that follows it, where there is one, so that every tokenizer here sees the same words.
    ``CRLF`` is a line break, a byte order mark is dropped, and the last line of a file ends with it,
    whether or not a line break follows.

    Standard input (``/dev/stdin``) and other open descriptors (``/dev/fd/N``) are read from where they stand.

    Raises:
        UnusableFileError: the file is missing, not regular, not UTF-8 (with the byte offset) or binary.
    """
    rest = ""
    for text in _decoded(path, start, end):
        lines = (rest + text).split("\n")
        rest = lines.pop()
        for line in lines:
            yield from _cut(line.removesuffix("\r"))
        while len(rest) > 2 * _LONGEST_FRAGMENT:
            head, rest = _split_long(rest)
            yield head, False
    if rest:
        yield from _cut(rest.removesuffix("\r"))


def split_fragments(text: str) -> Fragments:
    """The lines of a text in memory, as :func:`read_fragments`; an empty text is an empty line."""
    for line in text.removeprefix("\ufeff").removesuffix("\n").split("\n"):
        yield from _cut(line.removesuffix("\r"))


def _decoded(path: Path, start: int, end: int | None) -> Iterator[str]:
    """The characters between two byte offsets, about a megabyte at a time."""
    offset = start  # of the first byte of ``undecoded``
    undecoded = b""
    for block, _ in read_blocks(path, start, end):
        data = undecoded + block
        if offset == 0:
            check_beginning(path, data)
        if (nul := data.find(0)) >= 0:
            raise UnusableFileError(path, f"not a text file: byte {offset + nul} is NUL")
        try:
            text, undecoded = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            # A character cut by the block's end is completed by the next block.
            if error.reason != "unexpected end of data":
                raise _not_utf8(path, offset + error.start, data[error.start]) from None
            text, undecoded = data[: error.start].decode("utf-8"), data[error.start :]
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(data) - len(undecoded)
    if undecoded:
        raise _not_utf8(path, offset, undecoded[0])


def check_beginning(path: Path, data: bytes) -> None:
    """Check that the first bytes of a file may be a text's.

    Raises:
        UnusableFileError: they are those of another kind of file.
    """
    for beginning, problem in _NOT_TEXT.items():
        if data.startswith(beginning) and len(data) > len(beginning):
            raise UnusableFileError(path, problem)


def read_blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int]]:
    """The bytes between two offsets, at most a megabyte at a time, and how many of the file's are read then.

    Raises:
        UnusableFileError: the file is missing, not regular, or cannot be unpacked.
    """
    if is_packed(path):
        yield from _between(unpacked(path), start, end)
        return
    try:
        with _open_text(path, whole=start == 0 and end is None) as file:
            if start:
                file.seek(start)
            position = start
            while True:
                block = file.read(_READ_BYTES if end is None else min(_READ_BYTES, end - position))
                if block is None:  # a pipe that does not wait, and has nothing yet
                    select.select([file], [], [])
                    continue
                if not block:
                    return
                position += len(block)
                yield block, position
    except FileNotFoundError:
        raise UnusableFileError(path, "no such file") from None
    except IsADirectoryError:  # of a descriptor
        raise UnusableFileError(path, "a folder, where a text file is needed") from None


def _between(blocks: Iterator[tuple[bytes, int]], start: int, end: int | None) -> Iterator[tuple[bytes, int]]:
    """The part of ``blocks`` between two offsets."""
    at = 0
    for block, position in blocks:
        part = block[max(start - at, 0) : None if end is None else max(end - at, 0)]
        at += len(block)
        if part:
            yield part, position
        if end is not None and at >= end:
            return


def _open_text(path: Path, *, whole: bool) -> IO[bytes]:
    """A regular file; or, to be read as a whole, a descriptor that is open already."""
    found = _DESCRIPTOR.fullmatch(str(path)) if whole else None
    if found is None:
        return open_regular(path, "text file")
    number = int(found[1] or found[2] or 0)
    try:
        if number == 0 and sys.stdin is None:  # another file may have taken its number since
            raise OSError
        return os.fdopen(os.dup(number), "rb", buffering=0)
    except OSError:
        raise UnusableFileError(path, "closed") from None


def _not_utf8(path: Path, offset: int, byte: int) -> UnusableFileError:
    return UnusableFileError(path, f"not UTF-8: byte {offset} is 0x{byte:02x}")


def _cut(line: str) -> Iterator[tuple[str, bool]]:
    while len(line) > _LONGEST_FRAGMENT:
        head, line = _split_long(line)
        yield head, False
    yield line, True


def _split_long(line: str) -> tuple[str, str]:
    """Cut before a single space that stands between two words, near the longest fragment allowed."""
    at = line.rfind(" ", 1, _LONGEST_FRAGMENT)
    while at > 0 and (line[at - 1].isspace() or line[at + 1].isspace()):
        at = line.rfind(" ", 1, at)
    at = at if at > 0 else _LONGEST_FRAGMENT
    return line[:at], line[at:]
