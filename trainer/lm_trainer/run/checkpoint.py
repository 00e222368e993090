"""Checkpoints: the records that a run goes on from, in one file, written atomically.

The file holds plain dictionaries of tensors, numbers and strings. Reading one executes nothing
(``torch.load(weights_only=True)``), checks every value and each tensor's checksum, and raises nothing but
:class:`UnusableFileError` for what is wrong with the file.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lm_runtime.commands import machine_fault
from lm_runtime.files import UnusableFileError, open_regular, write_whole
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig, TrainingConfig
from lm_trainer.families import Model, implementation
from lm_trainer.run.content import from_content, to_content
from lm_trainer.run.folder import BEST, LAST
from lm_trainer.run.records import Checkpoint, RunFacts
from lm_trainer.run.torch_file import read_torch_file, write_torch_file
from lm_trainer.tensors import HAS_TORCH, TENSORS, array_of
from lm_trainer.training.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "steplm checkpoint"
FORMAT_VERSION = 2
"""Version 1 had no checksums, and empty values where version 2 has none."""
_VERSIONS = (1, FORMAT_VERSION)

_FOLDER = 0x10
"""The attribute of a folder in an archive's directory."""


class CheckpointStore:
    """Keeps a run's snapshots as the two checkpoints of its folder.

    Args:
        run: the folder.
        facts: what stays the same over the run.
        model_config: the model's sizes.
        training_config: the recipe.
    """

    def __init__(
        self, run: Path, facts: RunFacts, model_config: ModelConfig, training_config: TrainingConfig | None
    ) -> None:
        self._run = run
        self._of_run = facts, model_config, training_config

    def save(self, snapshot: Snapshot, *, best: bool = False) -> None:
        """As :meth:`lm_trainer.training.snapshot.Store.save`."""
        save_checkpoint(Checkpoint(self._run / (BEST if best else LAST), *self._of_run, snapshot))

    @property
    def kept(self) -> str:
        """As :attr:`lm_trainer.training.snapshot.Store.kept`."""
        last = self._run / LAST
        return str(last) if last.exists() else ""


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to its path.

    Raises:
        OSError: the file could not be written; what was there before is untouched.
    """
    content = to_content(checkpoint)
    checksums = {name: _checksum(tensor) for name, tensor in _tensors(content)}
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "checksums": checksums}
    with write_whole(checkpoint.path) as file:
        try:
            if HAS_TORCH:
                import torch

                torch.save({**header, **content}, file)
            else:
                write_torch_file({**header, **content}, file)
        except RuntimeError as error:
            # torch's writer hides the reason that the file object gave it.
            reason = error.__cause__ or error.__context__
            unknown = OSError(f"{checkpoint.path}: could not be written")
            raise (reason if isinstance(reason, OSError) else unknown) from None


def is_checkpoint(path: Path) -> bool:
    """Whether a file says of itself that it is a checkpoint of this project; nothing of it is loaded."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return any(
                FORMAT.encode() in archive.read(name)
                for name in archive.namelist()
                if name.endswith("/data.pkl")
            )
    except Exception:  # whatever zipfile says of a damaged one
        return False


def load_checkpoint(path: Path, mapped: bool = True) -> Checkpoint:
    """Read a checkpoint, or a run's folder's best one; its tensors are on the CPU.

    Args:
        path: its file, or the folder.
        mapped: tensors are read from the file as they are used, so that the optimizer's take no memory. They
            hold the file, even when another has taken its name.

    Raises:
        UnusableFileError: there is none, it is damaged, of a newer format, or not of this project.
    """
    if path.is_dir():
        path = path / BEST
    with reading_checkpoint(path, "not a checkpoint, or damaged"):
        content = _load(path, mapped)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UnusableFileError(path, "not a checkpoint of steplm")
        version = content.get("format_version")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise UnusableFileError(
                path, f"checkpoint format {version}, where this version of steplm reads {known}"
            )
    with reading_checkpoint(path, "damaged"):
        tensors = dict(_tensors(content))
        for name, tensor in tensors.items():
            _check_plain(name, tensor)
        checkpoint = from_content(path, content, version)
        if version > 1:
            _check_sums(tensors, content.get("checksums"))
    return checkpoint


@contextmanager
def reading_checkpoint(path: Path, problem: str) -> Iterator[None]:
    """Within, whatever is raised because of the file becomes an :class:`UnusableFileError`."""
    try:
        yield
    except (UnusableFileError, MemoryError, ModuleNotFoundError):
        raise
    except FileNotFoundError:
        if path.name == BEST and path.with_name(LAST).exists():
            raise UnusableFileError(
                path, "missing: an epoch's end writes it; lm-train --resume goes on with the run"
            ) from None
        raise UnusableFileError(path, "no such checkpoint; lm-train makes one") from None
    except OSError as error:
        raise UnusableFileError(path, error.strerror or str(error)) from None
    except pickle.UnpicklingError:
        raise UnusableFileError(
            path, "refused: it holds more than tensors, numbers and strings, and loading it could run code"
        ) from None
    except Exception as error:
        if machine_fault(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableFileError(path, f"{problem}: {reason[:200]}") from None


def _load(path: Path, mapped: bool) -> Any:
    """The content of the file, after the checks of its archive that torch leaves out."""
    if path.exists():
        open_regular(path, "checkpoint").close()
        if not zipfile.is_zipfile(path):
            raise UnusableFileError(path, "not a checkpoint, or damaged")
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise UnusableFileError(path, "not a checkpoint, or damaged")
            entries = archive.infolist()
            # torch reads nothing of an entry that is marked as a folder, and returns what the memory held.
            if any(entry.external_attr & _FOLDER and not entry.is_dir() for entry in entries):
                raise UnusableFileError(path, "not a checkpoint, or damaged")
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        mapped = mapped and stored  # torch would map what another tool has compressed, too
    if not HAS_TORCH:
        return read_torch_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _tensors(values: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a content, each with the names on the way to it; a shared part is visited once."""
    seen = set() if seen is None else seen
    if isinstance(values, TENSORS):
        yield name, cast("Tensor", values)
    elif id(values) not in seen and isinstance(values, Mapping | list | tuple):
        seen.add(id(values))
        entries = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in entries:
            yield from _tensors(value, f"{name}.{key}" if name else str(key), seen)


def _checksum(tensor: Tensor) -> int:
    """The CRC-32 of a tensor's bytes."""
    if not HAS_TORCH:
        return zlib.crc32(np.ascontiguousarray(array_of(tensor)).tobytes())
    import torch

    plain = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(plain.view(torch.uint8).numpy().data) if plain.numel() else 0


def _check_plain(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that has no values, as on the device ``meta``, or fewer than it has elements."""
    if not HAS_TORCH:
        return
    import torch

    if tensor.device.type != "cpu" or tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError(f"{name} is not a plain tensor")


def _check_sums(tensors: dict[str, Tensor], checksums: Any) -> None:
    """Compare all tensors with their checksums: torch does not notice every change of the archive."""
    if not isinstance(checksums, dict):
        raise ValueError("it has no checksums")
    if missing := checksums.keys() - tensors.keys():
        raise ValueError(f"{min(missing)} is missing")
    for name, tensor in tensors.items():
        if checksums.get(name) != _checksum(tensor):
            raise ValueError(f"{name} has another checksum than when it was written")


def restore_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        UnusableFileError: it is damaged, or does not fit the model.
    """
    with reading_checkpoint(checkpoint.path, "damaged"):
        tokenizer = Tokenizer(checkpoint.facts.tokenizer)
        expected = checkpoint.model_config.vocab_size
        if tokenizer.vocab_size != expected:
            raise ValueError(f"{tokenizer.vocab_size} tokens, where the model has {expected}")
    return tokenizer


def restore_model(checkpoint: Checkpoint) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer of a checkpoint.

    Raises:
        UnusableFileError: the weights do not fit the configuration.
    """
    tokenizer = restore_tokenizer(checkpoint)
    config = checkpoint.model_config
    with reading_checkpoint(checkpoint.path, "damaged"):
        return implementation(config.model_type).restore(config, checkpoint.weights), tokenizer
