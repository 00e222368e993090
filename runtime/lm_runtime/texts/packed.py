"""Files packed by gzip, bzip2, xz and zstd, unpacked block by block. Knows nothing about what is in them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lm_runtime.files import UnusableFileError, first_line, open_regular

PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The names' endings, and what packs so."""

BLOCK_BYTES = 1 << 20
_XZ_MEMORY = 1 << 28
_BOMB_BYTES, _BOMB_RATIO = 1 << 28, 1100
"""A file that unpacks to more than this is no text if it grows by more than the ratio: gzip's is 1,030 at
most, and texts are far below."""


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is packed."""
    return path.suffix.lower() in PACKED


def unpacked(path: Path) -> Iterator[tuple[bytes, int]]:
    """The content of a packed file, at most a megabyte at a time, with the packed bytes read so far.

    Raises:
        UnusableFileError: it is missing, not regular, damaged, cut off, or grows as no text does.
    """
    kind = PACKED[path.suffix.lower()]
    total = 0
    try:
        with open_regular(path, "text file") as file:
            try:
                for block in _READERS[kind](file):
                    total += len(block)
                    position = file.tell()
                    if total > max(_BOMB_BYTES, _BOMB_RATIO * position):
                        raise UnusableFileError(
                            path, f"unpacks to more than {_BOMB_RATIO:,} times its size: that is no text"
                        )
                    yield block, position
            except EOFError:
                raise UnusableFileError(path, f"damaged: the {kind} data are cut off") from None
    except FileNotFoundError:
        raise UnusableFileError(path, "no such file") from None
    except (OSError, lzma.LZMAError, zlib.error, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnusableFileError(path, f"damaged: no {kind} data ({first_line(error)})") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise UnusableFileError(path, f"damaged: no zstd data ({first_line(error)})") from None


def _gzip(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    try:
        from compression.zstd import ZstdDecompressor
    except ModuleNotFoundError:  # Python has it from 3.14 on
        from backports.zstd import ZstdDecompressor
    return _frames(file, ZstdDecompressor)


def _frames(file: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """The content of the frames that ``file`` is made of, one after the other.

    Args:
        file: packed.
        new: makes what unpacks one frame, with the interface of :class:`bz2.BZ2Decompressor`.
    """
    data = file.read(BLOCK_BYTES)
    while data:
        frame = new()
        while True:
            if block := frame.decompress(data, BLOCK_BYTES):
                yield block
            if frame.eof:
                break
            data = file.read(BLOCK_BYTES) if frame.needs_input else b""
            if frame.needs_input and not data:
                raise EOFError
        # Frames of xz may have zeros between them.
        data = (frame.unused_data or file.read(BLOCK_BYTES)).lstrip(b"\0")


_READERS: dict[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    "gzip": _gzip,
    "bzip2": lambda file: _frames(file, bz2.BZ2Decompressor),
    "xz": lambda file: _frames(file, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)),
    "zstd": _zstd,
}
