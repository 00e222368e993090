"""Folders: prepared beside their place, put there in one step, and one process's at a time.

Nothing is removed that this process did not make, but what a caller names. Knows nothing about what is in
them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lm_runtime.files import hidden_name, lock

_PREPARED, _REPLACED = "partial", "replaced"
_EXCHANGE = 2
"""The flag of Linux's ``renameat2`` and of macOS's ``renamex_np`` that exchanges two names."""
_CURRENT_FOLDER = -100
"""``AT_FDCWD`` of Linux."""


@contextlib.contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """An empty neighbour of ``folder`` in which it is prepared.

    It is removed at the end, unless it was renamed, and so are the folders above it that had to be made,
    unless they are used by then. A process that is killed leaves its neighbour, and nobody else removes it.

    Raises:
        ValueError: another process is preparing it.
    """
    _require_alone(folder)
    made: list[Path] = []
    try:
        for parent in reversed(folder.parents):
            if not parent.is_dir():
                parent.mkdir()
                made.append(parent)
        partial = _new_neighbour(folder, _PREPARED)
        try:
            with _open(partial) as descriptor:
                if descriptor is not None:
                    lock(descriptor, wait=True)  # for as long as another process looks whether it is locked
                yield partial
        finally:
            with contextlib.suppress(OSError):
                remove(partial)
    finally:
        with contextlib.suppress(OSError):
            for parent in reversed(made):
                parent.rmdir()


def replace_folder(partial: Path, out: Path, check: Callable[[Path], None] = lambda replaced: None) -> None:
    """Give ``partial`` the place of ``out``; what was there then is where ``partial`` was, or removed.

    A reader finds the old folder or the new one, where the system can exchange two names. Elsewhere there is
    a moment without either; :func:`restore_folder` undoes it if the process was killed then.

    Args:
        partial: from :func:`folder_beside`, which removes what is there afterwards.
        out: a folder, or nothing.
        check: called with the old folder after the exchange; if it raises, the old one gets its place back.
    """
    try:
        partial.rename(out)  # which also replaces an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(partial, out):
        try:
            check(partial)
        except BaseException:
            _exchange(partial, out)
            raise
        return
    aside = _new_neighbour(out, _REPLACED)
    old = aside / out.name
    try:
        out.rename(old)
        try:
            check(old)
            partial.rename(out)
        except BaseException:
            old.rename(out)
            raise
        remove(old)
    finally:
        with contextlib.suppress(OSError):
            aside.rmdir()


def restore_folder(out: Path) -> None:
    """Put back the folder that a process, killed in :func:`replace_folder`, has left beside its place."""
    if os.path.lexists(out):
        return
    for aside in _neighbours(out, _REPLACED):
        if (aside / out.name).is_dir() and not (aside / out.name).is_symlink():
            (aside / out.name).rename(out)
            with contextlib.suppress(OSError):
                aside.rmdir()
            return


def _new_neighbour(folder: Path, ending: str) -> Path:
    """A new empty folder beside ``folder``, of a name that no other process knows."""
    neighbour = folder.with_name(hidden_name(folder.name, secrets.token_hex(8), ending))
    neighbour.mkdir()
    return neighbour


def _neighbours(folder: Path, ending: str) -> Iterator[Path]:
    """The folders beside ``folder`` that are named as :func:`_new_neighbour` names them."""
    before, after = hidden_name(folder.name, "|", ending).split("|")
    with contextlib.suppress(OSError), os.scandir(folder.parent) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(before) and name.endswith(after) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _require_alone(folder: Path) -> None:
    if os.name == "nt":  # which opens no folders
        return
    for partial in _neighbours(folder, _PREPARED):
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if not lock(descriptor):
                    raise ValueError(f"{partial}: another process is at work in it")
            finally:
                os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    import ctypes  # here, because few calls need it

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, _EXCHANGE)
        else:
            failed = libc.renameat2(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _EXCHANGE)
    except (OSError, TypeError, AttributeError):  # no such library, no such function
        return False
    if failed and (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(other))
    return not failed


@contextlib.contextmanager
def temporary_folder(prefix: str, within: Path | None = None) -> Iterator[Path]:
    """A folder of a name that begins with ``prefix``, among the system's or ``within``; it is removed."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=within))
    try:
        with _open(folder):
            yield folder
    finally:
        with contextlib.suppress(OSError):
            remove(folder)


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[int | None]:
    """Hold ``folder`` open; once it is closed there is a descriptor to remove it with."""
    if os.name == "nt":  # which opens no folders
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file or link, if there is one.

    One descriptor at a time, so that it works where the limit on open files is reached.
    """
    if path.is_dir() and not path.is_symlink():
        for entry in list(path.iterdir()):
            remove(entry)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def holds_something(folder: Path) -> bool:
    """Whether a folder that is to be written is there already, and not empty.

    Raises:
        ValueError: a file stands in its place or in that of a folder above it, or a disk is mounted there.
    """
    if os.path.ismount(folder.resolve()):  # which nothing can be renamed to
        raise ValueError(f"{folder} is where a disk is mounted; name a folder in it")
    if folder.name in ("", "..") or str(folder) == "-":
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
    with _open(folder) as descriptor:
        if descriptor is not None and not lock(descriptor):
            raise ValueError(f"{folder}: another process is at work in it")
        yield
