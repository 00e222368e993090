"""torch's file format (a zip archive with a pickle of plain values), written and read by numpy alone.

``torch.load(weights_only=True)`` reads what is written here. Reading builds tensors and plain values, and
refuses everything else that a pickle could name: nothing is executed.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_STORAGES = {
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "BoolStorage": "?",
}
"""torch's names of arrays in memory, with numpy's types."""
_ROOT = "archive"
_ALIGNMENT = 64
"""Of a tensor's first byte in the file, so that it can be mapped."""


class _Named:
    """Something of torch that the pickle names, and that is not imported for it."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        """Only there since a pickle's functions must be callable."""


class _Storage:
    """The memory of one array."""

    def __init__(self, key: str, array: NDArray[Any]) -> None:
        self.key, self.array = key, array


_PurePickler: Any = pickle._Pickler  # the one in C cannot name what is not there


class _Pickler(_PurePickler):  # type: ignore[misc]
    """Pickles plain values and arrays as torch does."""

    dispatch = _PurePickler.dispatch.copy()

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, protocol=2)
        self.arrays: list[NDArray[Any]] = []

    def persistent_id(self, obj: Any) -> Any:
        """How the memory of an array is named in the pickle."""
        if not isinstance(obj, _Storage):
            return None
        kind = obj.array.dtype.newbyteorder("<") if obj.array.dtype.itemsize > 1 else obj.array.dtype
        name = next(name for name, dtype in _STORAGES.items() if np.dtype(dtype) == kind)
        return "storage", _Named("torch", name), obj.key, "cpu", obj.array.size

    def _save_named(self, obj: _Named) -> None:
        self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode("ascii"))
        self.memoize(obj)

    def _save_array(self, obj: NDArray[Any]) -> None:
        storage = _Storage(str(len(self.arrays)), obj)
        self.arrays.append(obj)
        stride = tuple(step // obj.itemsize for step in obj.strides)
        arguments: Any = storage, 0, obj.shape, stride, False, OrderedDict()
        self.save_reduce(_Named("torch._utils", "_rebuild_tensor_v2"), arguments, obj=obj)

    dispatch[_Named] = _save_named
    dispatch[np.ndarray] = _save_array


class _Unpickler(pickle.Unpickler):
    """Reads plain values and tensors of an archive, and nothing else."""

    def __init__(self, content: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(content))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """One of the three things that a file of tensors names."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        """The memory that the pickle names."""
        _, dtype, key, _, size = pid
        data = self._archive.read(f"{self._root}/data/{key}")
        return np.frombuffer(bytearray(data), dtype=dtype, count=size)


def _rebuilt(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> NDArray[Any]:
    """As ``torch._utils._rebuild_tensor_v2``; within the storage, or an error."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= storage.size):
        raise ValueError("a tensor is larger than its memory")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


def write_torch_file(content: Any, file: IO[bytes]) -> None:
    """Write plain values and arrays to ``file`` as ``torch.save`` would."""
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", pickled.getvalue())
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.arrays):
            little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
            _add(archive, f"data/{key}", little.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a file whose content begins at a multiple of the alignment; the year is the format's first."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    begins = archive.fp.tell() + 30 + len(entry.filename) + 4  # type: ignore[union-attr]
    padding = -begins % _ALIGNMENT
    entry.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    archive.writestr(entry, data)


def read_torch_file(path: Path) -> Any:
    """The content of a file that ``torch.save`` or :func:`write_torch_file` wrote.

    Raises:
        UnpicklingError: it holds more than tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return _Unpickler(archive.read(name), archive, name.removesuffix("/data.pkl")).load()
