"""Checkpoints: plain dictionaries of tensors, numbers and strings, written whole or not at all.

Loading one executes nothing: ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from lm_runtime.files import UnusableFileError, open_regular, write_whole
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import BEST, LAST, ModelConfig
from lm_trainer.networks.registry import Model, restore

FORMAT = "steplm checkpoint"
FORMAT_VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, strings, and dictionaries and lists of them) to ``path``.

    Raises:
        OSError: the file could not be written; what was there before is untouched.
    """
    with write_whole(path) as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
        except RuntimeError as error:
            # torch's writer hides the reason that the file object gave it.
            reason = error.__cause__ or error.__context__
            raise (
                reason if isinstance(reason, OSError) else OSError(f"{path}: could not be written")
            ) from None


def is_checkpoint(path: Path) -> bool:
    """Whether a file says of itself that it is a checkpoint of this project; nothing of it is loaded."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return any(
                FORMAT.encode() in archive.read(name)
                for name in archive.namelist()
                if name.endswith("/data.pkl")
            )
    except (OSError, UnusableFileError, zipfile.BadZipFile, zlib.error):
        return False


def load_checkpoint(path: Path, mapped: bool = True) -> dict[str, Any]:
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
    try:
        # torch reads over a changed byte; the archive's checksums do not.
        if path.exists():
            open_regular(path, "checkpoint").close()
            if not zipfile.is_zipfile(path):
                raise UnusableFileError(path, "not a checkpoint, or damaged")
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise UnusableFileError(path, "not a checkpoint, or damaged")
                stored = all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
            mapped = mapped and stored  # torch would map what another tool has compressed, too
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        if path.name == BEST and path.with_name(LAST).exists():
            raise UnusableFileError(
                path, "missing: an epoch's end writes it; lm-train --resume goes on with the run"
            ) from None
        raise UnusableFileError(path, "no such checkpoint; lm-train makes one") from None
    except pickle.UnpicklingError:
        raise UnusableFileError(
            path, "refused: it holds more than tensors, numbers and strings, and loading it could run code"
        ) from None
    except (
        RuntimeError,
        EOFError,
        ArithmeticError,
        zlib.error,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        raise UnusableFileError(
            path, f"not a checkpoint, or damaged ({str(error).splitlines()[0][:80]})"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UnusableFileError(path, "not a checkpoint of steplm")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UnusableFileError(
            path, f"checkpoint format {version}, where this version of steplm reads {FORMAT_VERSION}"
        )
    _check_content(path, content)
    return content


def training_settings(content: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a checkpoint's training, without what a fine-tuned run had no use for."""
    unused = ("initial_weights",) if "init" in content else ()
    return {name: value for name, value in content["training_config"].items() if name not in unused}


_CONTENT = {
    "corpus": dict,
    "tokenizer": str,
    "tokenizer_config": dict,
    "held_out": torch.Tensor,
    "threads": int,
    "device": str,
    "training_config": dict,
    "model_config": dict,
    "model": dict,
    "optimizer": dict,
    "generator": torch.Tensor,
    "hidden": list,
    "progress": dict,
    "metrics_bytes": int,
}
_SPLIT = {"tokens": int, "unknown": int, "bytes": int, "words": int, "dtype": str, "sha256": str}
_PROGRESS = {"epoch": int, "window": int, "step": int, "seconds": float, "valid_loss": float}


def _check_content(path: Path, content: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks something, or has it in another form."""

    def check(where: str, values: Any, types: dict[str, Any]) -> None:
        for name, type_ in types.items():
            if not isinstance(values, dict) or not isinstance(values.get(name), type_):
                raise UnusableFileError(path, f"damaged: {where}{name} is missing or not what it should be")

    check("", content, _CONTENT)
    check("progress ", content["progress"], _PROGRESS)
    check("corpus ", content["corpus"], {"name": str, "argument": str, "splits": dict})
    if "init" in content:
        check("init ", content["init"], {"path": str, "sha256": str})
    for split in ("train", "valid"):
        check(f"{split} ", content["corpus"]["splits"].get(split), _SPLIT)
    held_out, size = content["held_out"], content["model_config"].get("vocab_size")
    if not (
        held_out.dtype == torch.int64 and held_out.dim() == 1 and held_out.numel() and isinstance(size, int)
    ):
        raise UnusableFileError(path, "damaged: the held-out text is empty or not what it should be")
    if not 0 <= int(held_out.min()) <= int(held_out.max()) < size:
        raise UnusableFileError(path, "damaged: the held-out text has tokens that are not in the vocabulary")


def restore_config(path: Path, content: dict[str, Any]) -> tuple[ModelConfig, Tokenizer]:
    """The model's configuration and the tokenizer of a checkpoint.

    Raises:
        UnusableFileError: they do not fit each other.
    """
    try:
        config = ModelConfig(**content["model_config"])
        tokenizer = Tokenizer(content["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableFileError(path, f"damaged: {str(error).splitlines()[0]}") from None
    if tokenizer.vocab_size != config.vocab_size:
        raise UnusableFileError(
            path, f"damaged: {tokenizer.vocab_size} tokens, where the model has {config.vocab_size}"
        )
    return config, tokenizer


def restore_model(path: Path, content: dict[str, Any]) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer of a checkpoint.

    Raises:
        UnusableFileError: the weights do not fit the configuration.
    """
    config, tokenizer = restore_config(path, content)
    try:
        return restore(config, content["model"]), tokenizer
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnusableFileError(path, f"damaged: {str(error).splitlines()[0]}") from None
