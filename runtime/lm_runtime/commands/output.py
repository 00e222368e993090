"""Standard output: results are written to the last byte, in UTF-8, or the command fails.

Python's own streams lose what does not fit (a full disk, a limit on files, a pipe that does not wait) without
a word where they are unbuffered, and with a traceback at the exit where they are not.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lm_runtime.commands.messages import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

NAME = "standard output"
"""What an error of it says in place of a file's name."""


class _Output(io.RawIOBase):
    """Writes all that it is given, at once.

    On a terminal, control characters other than tab and line break are shown escaped, so that a text cannot
    take the terminal over; a file or a pipe gets every byte as it is.

    Raises:
        OSError: (each method) it could not be written; the file name is :data:`NAME`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = os.isatty(descriptor)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._shown

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self._shown:
            rest = memoryview(printable(str(rest, "utf-8", "replace")).encode())
        with _named():
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    select.select([], [self._descriptor], [])
        return size


@contextmanager
def whole_output() -> Iterator[None]:
    """Within, ``sys.stdout`` writes everything at once in UTF-8, whatever the terminal's encoding is.

    Raises:
        OSError: it could not be written, or (at the end) has not arrived; the file name is :data:`NAME`.
    """
    before = sys.stdout
    try:
        before.flush()
        descriptor = before.fileno()
    except (OSError, ValueError):  # a stream within this process that has taken its place
        yield
        return
    if os.name == "nt" and os.isatty(descriptor):  # a console of Windows takes no bytes
        yield
        return
    # A file's name may be no text, and is printed as the bytes that it is.
    sys.stdout = io.TextIOWrapper(_Output(descriptor), "utf-8", "surrogateescape", "\n", write_through=True)
    try:
        yield
        with _named():
            os.close(os.dup(descriptor))  # some file systems say only then that a disk is full
    finally:
        sys.stdout = before


@contextmanager
def _named() -> Iterator[None]:
    """Around what fails without a file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, NAME) from None
