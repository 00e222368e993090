"""The bundle: the folder that the exporter writes and the runtime reads; FORMAT.md describes it for others.

Holds the names of its files and tensors and the records of its configuration, once, for both sides;
checks a bundle before it is trusted. Knows nothing about onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lm_runtime.files import UnusableFileError, read_regular
from lm_runtime.settings import short

FORMAT_VERSION = 2
_VERSIONS = (1, FORMAT_VERSION)
CONFIG_FILE = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS_FILE = "tokens.txt"
MODEL_CARD = "README.md"
MODELS = {"fp32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
"""The graph's file for each precision."""
HIGHEST_ORDER = 32
"""Of an n-gram model."""
TABLES = "ngram/model.ngram"
"""The file of an n-gram model's tables."""
ARPA = "ngram/model.arpa"
"""The tables once more, as other tools read them, where the exporter was asked for it."""

TOKEN = "token"
LOGITS = "logits"
HIDDEN = "hidden"
"""The last output of a graph that has it, float32 ``[batch, time, width]``: what the output layer reads."""
LOGITS_FROM = "logits_from"
"""An optional input of some graphs, int64 ``[1]``, by default 0: the place from which logits are wanted."""

Precision = Literal["fp32", "int8"]

_VOCABULARY = (TOKENIZER, TOKENS_FILE)
_EDITABLE = (GENERATION_CONFIG, TOKENIZER_CONFIG, MODEL_CARD)

_LARGEST_CONFIG = 1 << 24
_LARGEST_TABLES = 1 << 37
_LARGEST_GRAPH = (1 << 31) - 1  # what one file of ONNX can hold
_LARGEST_STATE = 1 << 26  # numbers a sequence
_MOST_AXES = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
STATE_TYPES = ("float32", "int64")


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the state, as it goes into the graph and comes out of it."""

    name: str
    """The graph's input."""
    output: str
    """The graph's output that is fed back to ``name``."""
    dtype: str
    """numpy's name of the element type: float32 or int64."""
    shape: tuple[int | None, ...]
    """The shape; None stands for the batch."""

    @property
    def batch_axis(self) -> int:
        """Which axis of the shape is the batch."""
        return self.shape.index(None)

    def sizes(self, batch: int) -> tuple[int, ...]:
        """The shape at a batch size."""
        sizes: list[Any] = list(self.shape)
        sizes[sizes.index(None)] = batch
        return tuple(sizes)


def recurrent_states(names: tuple[str, ...], num_layers: int, hidden_size: int) -> tuple[StateTensor, ...]:
    """The states ``(layers, batch, hidden)`` of a recurrent network, float32."""
    return tuple(
        StateTensor(name, f"{name}_out", "float32", (num_layers, None, hidden_size)) for name in names
    )


def window_states(window: int) -> tuple[StateTensor, ...]:
    """The state of a model that sees the last ``window`` tokens: those before the one that is read.

    ``context`` ``(batch, window - 1)``, int64, holds id + 1 of each, the newest last; 0 stands for none,
    so that the zero state has read nothing.
    """
    return (StateTensor("context", "context_out", "int64", (None, window - 1)),)


@dataclass(frozen=True)
class BundleConfig:
    """What ``config.json`` says. A reader ignores fields that it does not know."""

    model_type: str
    """The family, such as ``lstm``: for the reader's information, since nothing depends on it."""
    vocab_size: int
    """The number of tokens."""
    embedding_dim: int
    """The width of the embedding; 0 in a family without one."""
    hidden_size: int
    """The width of each hidden layer; 0 in a family without one."""
    num_hidden_layers: int
    """How many hidden layers are stacked: of a recurrent model, its recurrent layers."""
    tie_word_embeddings: bool
    """Whether the output layer shares its weights with the embedding."""
    tokenizer: str
    """The tokenizer's kind: word, char, bpe or other."""
    eos_token_id: int
    """The id that ends a line."""
    bos_token_id: int
    """The id that is read from a zero state before the first token: that of ``<eos>``."""
    unk_token_id: int | None
    """The id of unknown words, if there is one."""
    states: tuple[StateTensor, ...] = field(repr=False)
    """The state's tensors, in the order of the graph's inputs."""
    opset: int
    """The ONNX operator set of ``onnx/model.onnx``; 0 where there is none."""
    vocabulary_sha256: str = field(repr=False)
    """The sha256 of the tokens in order of id, as tokens.txt names them, each followed by a line break."""
    window: int = 0
    """How many tokens a ``window`` model predicts the next one from; 0 in the other families."""
    order: int = 0
    """The length of the longest n-grams of an ``ngram`` model; 0 in the other families."""
    projection: int = 0
    """The width to which the last hidden layer is brought for the output layer; 0 where it is not."""
    training: dict[str, Any] = field(default_factory=dict, repr=False)
    """Facts about the training: corpus, steps, perplexities."""
    parity: dict[str, Any] = field(default_factory=dict, repr=False)
    """The exporter's proof that the graph equals the torch model."""
    quantization: dict[str, Any] = field(default_factory=dict, repr=False)
    """What int8 costs; empty where the bundle has no int8 graph."""
    files: dict[str, str] = field(default_factory=dict, repr=False)
    """The sha256 of every other file of the bundle, as it was written."""
    format_version: int = FORMAT_VERSION
    """The version of this format; additional fields do not raise it."""

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def metadata(self, precision: Precision) -> dict[str, str]:
        """What identifies a graph file by itself: its ``metadata_props``.

        Other readers of such files look for ``num_layers``, ``sos_id`` and ``eos_id``, which are
        ``num_hidden_layers``, ``bos_token_id`` and ``eos_token_id`` here.
        """
        facts = {
            "precision": precision,
            "format_version": self.format_version,
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "num_layers": self.num_hidden_layers,
            "hidden_size": self.hidden_size,
            "embedding_dim": self.embedding_dim,
            "sos_id": self.bos_token_id,
            "eos_id": self.eos_token_id,
            "vocabulary_sha256": self.vocabulary_sha256,
        }
        if self.window:
            facts["window"] = self.window
        return {name: str(value) for name, value in facts.items()}

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that the bundle has a graph of; none where it has tables."""
        known: tuple[Precision, ...] = typing.get_args(Precision)
        return tuple(precision for precision in known if MODELS[precision] in self.files)


def read_bundle_config(folder: Path) -> BundleConfig:
    """Read ``config.json``.

    Raises:
        UnusableFileError: the folder is no bundle, or one of another format.
    """
    return parse_bundle_config(folder / CONFIG_FILE, read_config_file(folder))


def read_config_file(folder: Path) -> bytes:
    """The bytes of a bundle's ``config.json``.

    Raises:
        UnusableFileError: the folder is no bundle.
    """
    if not folder.is_dir():
        raise UnusableFileError(
            folder, "no such bundle" if not folder.exists() else "a file, where a bundle's folder is needed"
        )
    if not (folder / CONFIG_FILE).exists():
        raise UnusableFileError(folder, f"not a bundle: no {CONFIG_FILE} in it")
    return read_regular(folder / CONFIG_FILE, _LARGEST_CONFIG)


def parse_bundle_config(path: Path, content: bytes) -> BundleConfig:
    """The configuration in the ``content`` of the file ``path``.

    Raises:
        UnusableFileError: it is none, or one of another format.
    """
    data = parse_json_object(path, content)
    version = data.get("format_version")
    if type(version) is not int or version not in _VERSIONS:
        raise UnusableFileError(
            path,
            f"bundle format {short(version)}, where this version of steplm reads "
            f"{' and '.join(map(str, _VERSIONS))}",
        )
    try:
        values = {name: data[name] for name in _kinds(BundleConfig) if name in data}
        _require(BundleConfig, values, "")
        states = [_state(number, state) for number, state in enumerate(values.pop("states"))]
        config = BundleConfig(states=tuple(states), **values)
        _check_ranges(config)
    except ValueError as error:
        raise UnusableFileError(path, f"not a bundle's configuration ({error})") from None
    return config


def parse_json_object(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in the ``content`` of the file ``path``.

    Raises:
        UnusableFileError: it is none.
    """
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UnusableFileError(path, "not JSON") from None
    if not isinstance(data, dict):
        raise UnusableFileError(path, "not a JSON object")
    return data


def read_files(folder: Path, config: BundleConfig, names: Iterable[str]) -> dict[str, bytes]:
    """The content of each of the files ``names``.

    Graphs, tables and vocabularies must be what the exporter wrote; a vocabulary may have other line ends, as
    version control converts them. The other files are their owner's to edit.

    Raises:
        UnusableFileError: a file is missing, no regular file, or its sha256 is another.
    """
    contents = {}
    for name in names:
        path = folder / name
        if name not in config.files:
            raise UnusableFileError(folder / CONFIG_FILE, f"lists no {name}")
        most = _LARGEST_TABLES if name == TABLES else _LARGEST_GRAPH
        content = read_regular(path, most, "the bundle's file is missing")
        if name in _VOCABULARY and not _is_of(content, config.files[name]):
            content = content.replace(b"\r\n", b"\n")
        if name not in _EDITABLE and not _is_of(content, config.files[name]):
            raise UnusableFileError(
                path, f"changed since the export (its sha256 is not that of {CONFIG_FILE})"
            )
        contents[name] = content
    return contents


def _is_of(content: bytes, digest: str) -> bool:
    return hashlib.sha256(content).hexdigest() == digest


@cache
def _kinds(record: type) -> dict[str, tuple[type, ...]]:
    """The types that each field of a record may have in JSON, by its name."""
    kinds = {}
    for name, hint in typing.get_type_hints(record).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = (typing.get_origin(option) or option for option in options)
        kinds[name] = tuple(list if kind is tuple else kind for kind in plain)
    return kinds


_CALLED = {int: "a number", str: "a text", bool: "true or false", dict: "an object", list: "a list"}


def _require(record: type, values: dict[str, Any], of: str) -> None:
    """Check that ``values`` has every field of a record that has no default, each of its type.

    Raises:
        ValueError: with the field's name.
    """
    for entry in dataclasses.fields(record):
        has_default = not (
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        )
        if entry.name not in values and not has_default:
            raise ValueError(f"{of}{entry.name} is missing")
    for name, value in values.items():
        kinds = _kinds(record)[name]
        if type(value) not in kinds:
            raise ValueError(f"{of}{name} is {short(value)}, not {_CALLED[kinds[0]]}")


def _state(number: int, state: object) -> StateTensor:
    if not isinstance(state, dict):
        raise ValueError(f"state {number} is {short(state)}, not an object")
    values = {name: state[name] for name in _kinds(StateTensor) if name in state}
    _require(StateTensor, values, f"state {number}: ")
    tensor = StateTensor(shape=tuple(values.pop("shape")), **values)
    if not _NAME.fullmatch(tensor.name) or tensor.name in (TOKEN, LOGITS, LOGITS_FROM, HIDDEN):
        raise ValueError(f"a state has the name {short(tensor.name)}")
    if tensor.output != f"{tensor.name}_out":
        raise ValueError(f"{tensor.name} comes out as {short(tensor.output)}")
    if tensor.dtype not in STATE_TYPES:
        raise ValueError(f"{tensor.name} is {short(tensor.dtype)}, not {' or '.join(STATE_TYPES)}")
    sizes = [size for size in tensor.shape if size is not None]
    if not (
        len(sizes) == len(tensor.shape) - 1 <= _MOST_AXES
        and all(type(size) is int and 0 <= size <= _LARGEST_STATE for size in sizes)
        and math.prod(sizes) <= _LARGEST_STATE
    ):
        raise ValueError(f"{tensor.name} has the shape {short(tensor.shape)}")
    return tensor


def _check_ranges(config: BundleConfig) -> None:
    """Check what the types do not say.

    Raises:
        ValueError: with the field's name.
    """
    if not config.states:
        raise ValueError("no state")
    names = [tensor.name for tensor in config.states]
    if len(set(names)) < len(names):
        raise ValueError(f"two states have the name {next(name for name in names if names.count(name) > 1)}")
    if config.vocab_size < 1:
        raise ValueError(f"vocab_size is {short(config.vocab_size)}")
    for name in ("eos_token_id", "bos_token_id", "unk_token_id"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < config.vocab_size:
            raise ValueError(f"{name} is {short(value)}, where ids are 0 to {config.vocab_size - 1}")
    for name, digest in config.files.items():
        if type(digest) is not str:
            raise ValueError(f"the sha256 of {short(name)} is {short(digest)}")
