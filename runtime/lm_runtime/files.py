"""Files: opening nothing but what is wanted, and writing atomically. Knows nothing about their content."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # which only Unix has
    fcntl = None  # type: ignore[assignment]

_LONGEST_REASON = 200
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
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
