"""Files: reading text in bounded memory, and writing a file whole or not at all.

Knows nothing about tokens or models.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # which only Unix has
    fcntl = None  # type: ignore[assignment]

_READ_BYTES = 1 << 20
_LONGEST_PIECE = 1 << 16
_LONGEST_REASON = 200


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


def read_regular(path: Path, most: int, missing: str = "no such file") -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        UnusableFileError: it is missing (in the words ``missing``), too large, or a folder, a pipe, a device.
    """
    try:
        _require_regular(path, path.stat().st_mode)  # to open a pipe would wait for its writer
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _require_regular(path, status.st_mode)
            if status.st_size > most:
                raise UnusableFileError(path, f"{status.st_size:,} bytes, more than {most:,}")
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableFileError(path, missing) from None


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UnusableFileError(path, "a folder, where a file is needed")
    if not stat.S_ISREG(mode):
        raise UnusableFileError(path, "not a regular file")


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing so that a reader finds the old file or the new one, never a part.

    The bytes go to a neighbour of fixed name, are flushed to the disk, and take their place by a
    rename. When the body raises (a full disk, Ctrl-C), the neighbour is removed and ``path`` is as
    it was.
    """
    require_place(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_place(path: Path) -> None:
    """Check that a file can stand at ``path``.

    Raises:
        UnusableFileError: a folder or a device is there, or the folder for it is not.
    """
    if path.exists() and not path.is_file():
        raise UnusableFileError(path, "not a regular file")
    if not path.parent.is_dir() or not path.name:
        raise UnusableFileError(path, "there is no such folder to write it to")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """An empty neighbour of ``folder`` in which it is prepared.

    It is removed at the end, unless it was renamed, and so are the folders above it that had to be made,
    unless they are used by then.

    Raises:
        ValueError: another process is preparing it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with held(partial):
            try:
                for entry in partial.iterdir():  # of a process that was killed
                    remove(entry)
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def holds_something(folder: Path) -> bool:
    """Whether a folder that is to be written is there already, and not empty.

    Raises:
        ValueError: a file stands in its place or in that of a folder above it, or a disk is mounted there.
    """
    if os.path.ismount(folder.resolve()):  # which nothing can be renamed to
        raise ValueError(f"{folder} is where a disk is mounted; name a folder in it")
    if folder.name in ("", ".."):
        raise ValueError(f"{folder}: name the folder itself")
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if nearest.exists() and not nearest.is_dir():
        raise ValueError(f"{folder} cannot be a folder: {nearest} is a file")
    return nearest == folder and any(folder.iterdir())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, no other process holds ``folder``, on systems that can say so.

    Raises:
        ValueError: another one does.
    """
    if fcntl is None:
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ValueError(f"{folder}: another process is at work in it") from None
    except OSError:
        pass  # a file system that has no locks
    try:
        yield
    finally:
        os.close(file)


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
    ``CRLF`` counts as a line break, a byte order mark is dropped, and the last line of a file counts
    as ended whether or not a line break follows it.

    Raises:
        UnusableFileError: the file is missing, not UTF-8 (with the byte offset) or binary.
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
    try:
        with path.open("rb") as file:
            if start:  # a pipe cannot seek
                file.seek(start)
            position = start
            while block := file.read(_READ_BYTES if end is None else min(_READ_BYTES, end - position)):
                position += len(block)
                data = undecoded + block
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
    except FileNotFoundError:
        raise UnusableFileError(path, "no such file") from None
    except IsADirectoryError:
        raise UnusableFileError(path, "a folder, where a text file is needed") from None
    if undecoded:
        raise _not_utf8(path, offset, undecoded[0])


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
