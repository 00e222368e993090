"""Archives of arrays, as numpy's ``savez`` writes them, read without trust in what they declare.

numpy's own reader takes the memory that a file of a few megabytes declares, and parses an array's header as
Python. Knows nothing about what the arrays are.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][fiu][1248])', 'fortran_order': (False|True), "
    rb"'shape': \(([0-9, ]{0,100})\), \} *\n",
    re.DOTALL,
)
"""The header of an array, version 1.0, with the length of its text in two bytes."""
_BEFORE_TEXT = 10
_LONGEST_HEADER = 512
_LARGEST_DIRECTORY = 1 << 23
"""What an archive may hold beside the arrays, since its list of entries is read before they are known."""


def read_arrays(file: IO[bytes], largest: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Read arrays of an archive that is not compressed.

    Args:
        file: the archive.
        largest: the names of the arrays, and of each the most bytes of its numbers.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged, lacks an array, or declares a larger one. No more
            memory was taken than such arrays need.
    """
    size, most = file.seek(0, os.SEEK_END), sum(largest.values()) + _LARGEST_DIRECTORY
    if size > most:
        raise ValueError(f"{size:,} bytes, more than {most:,}")
    if not zipfile.is_zipfile(file):
        raise ValueError("not an npz archive")
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        return {
            name: _read(archive, entries.get(f"{name}.npy"), name, most) for name, most in largest.items()
        }


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, name: str, most: int) -> NDArray[Any]:
    if entry is None:
        raise ValueError(f"no {name}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most + _LONGEST_HEADER:
        raise ValueError(f"{name} is compressed, or too large")
    with archive.open(entry) as member:
        content = member.read(entry.file_size + 1)
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise ValueError(f"{name} is not what was written")
    return _array(content, name)


def _array(content: bytes, name: str) -> NDArray[Any]:
    """The array in the content of an ``.npy`` file."""
    header = _HEADER.match(content, 0, _LONGEST_HEADER)
    if header is None or header.end() != _BEFORE_TEXT + int.from_bytes(content[8:_BEFORE_TEXT], "little"):
        raise ValueError(f"{name} has no header of an array")
    dtype = np.dtype(header[1].decode())
    shape = [int(length) for length in header[3].split(b",") if length.strip()]
    count = math.prod(shape)
    if count * dtype.itemsize != len(content) - header.end():
        raise ValueError(f"{name} has not the numbers that its header declares")
    array = np.frombuffer(content, dtype, count, header.end())
    shaped = array.reshape(shape, order="F" if header[2] == b"True" else "C")
    return shaped.astype(dtype.newbyteorder("="), order="C")
