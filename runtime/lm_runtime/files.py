"""Files: reading text in bounded memory, opening nothing but what is wanted, and writing atomically.

Knows nothing about tokens or models.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # which only Unix has
    fcntl = None  # type: ignore[assignment]

STANDARD_INPUT = Path("/dev/stdin")
"""What ``-`` stands for; it is read from where it stands, not opened anew."""

_READ_BYTES = 1 << 20
_LONGEST_PIECE = 1 << 16
_LONGEST_REASON = 200
_DESCRIPTOR = re.compile(r"/dev/(?:stdin|fd/(\d+))|/proc/self/fd/(\d+)")
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
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

# Windows has none of these.
_CLOSED_IN_CHILDREN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_UNNAMED = getattr(os, "O_TMPFILE", 0)


class UnusableFileError(Exception):
    """A file or folder that is missing, damaged, or not what it has to be.

    The message is one line: the path, then what is wrong with it.
    """

    def __init__(self, path: str | Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


@contextlib.contextmanager
def reading(path: str | Path, problem: str) -> Iterator[None]:
    """Turn whatever a reader raises over the content of ``path`` into :class:`UnusableFileError`.

    Args:
        path: the file.
        problem: what to say of it: ``not a tokenizer``; the reader's own words follow.
    """
    try:
        yield
    except (UnusableFileError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise UnusableFileError(path, f"{problem} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut where it is long; the name of its type if there is none."""
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:_LONGEST_REASON]


def open_regular(path: Path, wanted: str = "file") -> io.BufferedReader:
    """Open a regular file for reading; a pipe or a device is never waited for.

    Args:
        path: the file, or a link to one.
        wanted: what it should be, for the message.

    Raises:
        UnusableFileError: a folder, a pipe, a socket or a device.
        OSError: it is missing, or may not be read.
    """
    _require_regular(path, path.stat().st_mode, wanted)  # some devices act as soon as they are opened
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _CLOSED_IN_CHILDREN)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode, wanted)  # another may have taken its place
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path, mode: int, wanted: str = "file") -> None:
    if stat.S_ISDIR(mode):
        raise UnusableFileError(path, f"a folder, where a {wanted} is needed")
    if not stat.S_ISREG(mode):
        raise UnusableFileError(
            path, f"not a regular file ({_KINDS.get(stat.S_IFMT(mode), 'of no known kind')})"
        )


def read_regular(path: Path, most: int, missing: str = "no such file") -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        UnusableFileError: it is missing (in the words ``missing``), too large, or a folder, a pipe, a device.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise UnusableFileError(path, f"{size:,} bytes, more than {most:,}")
            return file.read()  # of a size given, so much memory would be taken first
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableFileError(path, missing) from None


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing so that a reader finds the old file or the new one, never a part.

    The bytes go to a new file that has no name, where the system can make one, else a fresh one that no other
    process knows; they are flushed to the disk and take their place by a rename. When the body raises (a full
    disk, Ctrl-C), ``path`` is as it was and nothing is left. A link in the place of ``path`` is replaced.
    """
    require_place(path)
    try:
        descriptor, partial = _create_beside(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            if partial is None:
                partial = _fresh_name(path)
                # Only with a descriptor given does Python follow the link that /proc has for the file.
                os.link(_in_proc(descriptor), partial, src_dir_fd=descriptor)
        partial.replace(path)
    except BaseException:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise


def _create_beside(path: Path) -> tuple[int, Path | None]:
    """A new file in the folder of ``path``, and its name if it has one already."""
    flags = os.O_WRONLY | _CLOSED_IN_CHILDREN
    if _UNNAMED:
        with contextlib.suppress(OSError):  # a file system that always wants a name
            descriptor = os.open(path.parent, flags | _UNNAMED, 0o666)
            if os.access(_in_proc(descriptor), os.F_OK):
                return descriptor, None
            os.close(descriptor)
    partial = _fresh_name(path)
    return os.open(partial, flags | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666), partial


def _in_proc(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _fresh_name(path: Path) -> Path:
    return path.with_name(hidden_name(path.name, secrets.token_hex(8), "partial"))


def hidden_name(name: str, token: str, ending: str) -> str:
    """The name ``.NAME.TOKEN.ENDING`` of a neighbour; a long ``NAME`` is cut: systems take 255 bytes."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}.{token}.{ending}"


def require_place(path: Path) -> None:
    """Check that a file can stand at ``path``.

    Raises:
        UnusableFileError: a folder or a device is there, or the folder for it is not.
        ValueError: ``-``, which elsewhere stands for standard input and output.
    """
    if str(path) == "-":
        raise ValueError("- is no name for a file that is written; give another")
    if path.exists() and not path.is_file():
        raise UnusableFileError(path, "not a regular file")
    if not path.parent.is_dir() or not path.name:
        raise UnusableFileError(path, "there is no such folder to write it to")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8"))


def open_own(path: Path) -> IO[bytes]:
    """Open a file of this project for reading and appending; it is made if there is none.

    Its name is known beforehand, so others may have put something there: a link is not followed.

    Raises:
        UnusableFileError: it is a link, has a second name, is not a regular file, or is another user's, who
            does not own the folder either.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK | _NO_WAIT | _CLOSED_IN_CHILDREN
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise
        raise UnusableFileError(path, "not a regular file (a link, or a pipe)") from None
    try:
        status = os.fstat(descriptor)
        _require_regular(path, status.st_mode)
        if status.st_nlink > 1:
            raise UnusableFileError(path, "has a second name (a hard link), whose content would change too")
        # Some file systems give all files to one user, whoever writes them.
        if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
            raise UnusableFileError(path, "another user's")
        return os.fdopen(descriptor, "a+b")
    except BaseException:
        os.close(descriptor)
        raise


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process has it.

    Where nothing can be locked, nobody else has it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system that has no locks
    return True


def is_read_once(path: Path) -> bool:
    """Whether what is read from ``path`` cannot be read again: an open descriptor, or no regular file."""
    return _DESCRIPTOR.fullmatch(str(path)) is not None or not path.is_file()


def read_text_file(path: Path) -> str:
    """The whole of a small UTF-8 file, line ends as in :func:`read_pieces`.

    Raises:
        UnusableFileError: as :func:`read_pieces`.
    """
    return "".join(text + "\n" * ends for text, ends in read_pieces(path))


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, each of them whole, without its line break.

    Raises:
        UnusableFileError: as :func:`read_pieces`.
    """
    parts: list[str] = []
    for text, ends in read_pieces(path):
        parts.append(text)
        if ends:
            yield "".join(parts)
            parts.clear()


def read_pieces(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[str, bool]]:
    """The lines of a UTF-8 text, or of its bytes from ``start`` to ``end``, in bounded memory.

    Yields ``(text, ends)``: a line without its line break and True; a line longer than 64 KiB comes
    in several pieces, of which only the last has True. A long line is cut between a word and the
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
        while len(rest) > 2 * _LONGEST_PIECE:
            head, rest = _split_long(rest)
            yield head, False
    if rest:
        yield from _cut(rest.removesuffix("\r"))


def _decoded(path: Path, start: int, end: int | None) -> Iterator[str]:
    """The characters between two byte offsets, about a megabyte at a time."""
    offset = start  # of the first byte of ``undecoded``
    undecoded = b""
    for block in _blocks(path, start, end):
        data = undecoded + block
        if offset == 0:
            for beginning, problem in _NOT_TEXT.items():
                if data.startswith(beginning) and len(data) > len(beginning):
                    raise UnusableFileError(path, problem)
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


def _blocks(path: Path, start: int, end: int | None) -> Iterator[bytes]:
    """The bytes between two offsets, at most a megabyte at a time."""
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
                yield block
    except FileNotFoundError:
        raise UnusableFileError(path, "no such file") from None
    except IsADirectoryError:  # of a descriptor
        raise UnusableFileError(path, "a folder, where a text file is needed") from None


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
    while len(line) > _LONGEST_PIECE:
        head, line = _split_long(line)
        yield head, False
    yield line, True


def _split_long(line: str) -> tuple[str, str]:
    """Cut before a single space that stands between two words, near the longest piece allowed."""
    at = line.rfind(" ", 1, _LONGEST_PIECE)
    while at > 0 and (line[at - 1].isspace() or line[at + 1].isspace()):
        at = line.rfind(" ", 1, at)
    at = at if at > 0 else _LONGEST_PIECE
    return line[:at], line[at:]
