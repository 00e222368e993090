"""A bundle's folder, opened: every file is read once and checked, and those same bytes are used.

The one path by which all models of bundles come in. Knows nothing about how a model computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lm_runtime.bundle import (
    CONFIG_FILE,
    GENERATION_CONFIG,
    MODELS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENS_FILE,
    BundleConfig,
    parse_bundle_config,
    parse_json_object,
    read_config_file,
    read_files,
)
from lm_runtime.files import UnusableFileError, reading
from lm_runtime.models.adaptation import Adaptation
from lm_runtime.models.protocol import BundleModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.tokenizer import Tokenizer

Model = TypeVar("Model", bound=BundleModel)

NEEDED = (CONFIG_FILE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENS_FILE)
"""The files that are read of every bundle, beside a graph or tables."""
_TRIES = 4
_MAX_NEW_TOKENS = "max_new_tokens"  # what other readers of the file call max_tokens


@dataclass(frozen=True)
class OpenedBundle:
    """What every model of a bundle has beside the way it computes."""

    folder: Path
    """Where it is."""
    config: BundleConfig
    """What ``config.json`` says."""
    tokenizer: Tokenizer
    """Text to ids and back."""
    defaults: SamplingParams
    """The sampling parameters that the bundle proposes."""
    adaptation: Adaptation
    """How much it proposes to follow what was read, where that is asked for."""
    weights: bytes = field(repr=False)
    """The content of the graph's or the tables' file."""


def open_bundle(folder: Path, weights: str) -> OpenedBundle:
    """Read and check a bundle with the file ``weights``, a graph or tables.

    Where an export replaces the bundle in between, the new one is opened.

    Raises:
        UnusableFileError: the bundle is incomplete, damaged, of another format, or contradicts itself.
        ValueError: it has no graph of that precision.
    """
    tries = 0
    while True:
        tries += 1
        found = _look(folder)
        try:
            return _open(folder, found[-1], weights)
        except UnusableFileError:
            if tries == _TRIES or _look(folder) == found:
                raise


def open_same(make: Callable[[], Model], identity: str) -> Model:
    """The model that ``make`` opens, as a pickle of one asks for it in another process.

    Raises:
        UnusableFileError: its weights are not those of ``identity`` any more.
    """
    model = make()
    if model.identity != identity:
        raise UnusableFileError(model.folder, "replaced by another bundle since the model was pickled")
    return model


def _look(folder: Path) -> tuple[int, int, bytes]:
    """Which folder it is, by device and inode, and what its ``config.json`` has."""
    content = read_config_file(folder)
    status = folder.stat()
    return status.st_dev, status.st_ino, content


def _open(folder: Path, content: bytes, weights: str) -> OpenedBundle:
    config = parse_bundle_config(folder / CONFIG_FILE, content)
    if weights == MODELS["int8"] and weights not in config.files:
        raise ValueError(f"{folder} has no int8 graph; export it with --quantize int8")
    if weights == MODELS["fp32"] and config.precisions == ("int8",):
        raise ValueError(f"{folder} has an int8 graph alone; export it without --only")
    contents = read_files(folder, config, (*NEEDED[1:], weights))
    tokenizer = Tokenizer.from_bytes(folder / TOKENIZER, contents[TOKENIZER])
    _check_tokenizer(folder / TOKENIZER, tokenizer, config)
    defaults, adaptation = _proposed(folder / GENERATION_CONFIG, contents[GENERATION_CONFIG])
    return OpenedBundle(folder, config, tokenizer, defaults, adaptation, contents[weights])


def _check_tokenizer(path: Path, tokenizer: Tokenizer, config: BundleConfig) -> None:
    for name, found, wanted in (
        ("vocab_size", tokenizer.vocab_size, config.vocab_size),
        ("vocabulary_sha256", tokenizer.vocabulary_sha256, config.vocabulary_sha256),
        ("eos_token_id", tokenizer.eos_id, config.eos_token_id),
        ("bos_token_id", tokenizer.eos_id, config.bos_token_id),
        ("unk_token_id", tokenizer.unk_id, config.unk_token_id),
    ):
        if found != wanted:
            raise UnusableFileError(path, f"does not fit the model: {name} is {found}, not {wanted}")


def _proposed(path: Path, content: bytes) -> tuple[SamplingParams, Adaptation]:
    data = parse_json_object(path, content)
    if _MAX_NEW_TOKENS in data:
        data["max_tokens"] = data[_MAX_NEW_TOKENS]
    with reading(path, "not usable as sampling parameters"):
        return SamplingParams(**_of_record(SamplingParams, data)), Adaptation(**_of_record(Adaptation, data))


def _of_record(record: type, data: dict[str, Any]) -> dict[str, Any]:
    return {entry.name: data[entry.name] for entry in dataclasses.fields(record) if entry.name in data}
