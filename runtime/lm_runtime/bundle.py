"""The bundle: the folder that the exporter writes and the runtime reads.

Holds the names of its files and tensors and the records of its configuration, once, for both sides;
checks a bundle before it is trusted. Knows nothing about onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lm_runtime.files import UnusableFileError

FORMAT_VERSION = 1
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS = "tokens.txt"
MODEL_CARD = "README.md"
MODELS = {"fp32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
"""The graph's file for each precision."""
NGRAM_TYPE = "ngram"
"""The ``model_type`` of a bundle that has tables in place of a graph."""
HIGHEST_ORDER = 32
"""Of an n-gram model."""
TABLES = "ngram/model.ngram"
"""The file of the tables."""
ARPA = "ngram/model.arpa"
"""The tables once more, as other tools read them, where the exporter was asked for it."""

TOKEN = "token"
LOGITS = "logits"
LOGITS_FROM = "logits_from"
"""An optional input of some graphs, int64 ``[1]``, by default 0: the place from which logits are wanted."""

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the state, as it goes into the graph and comes out of it."""

    name: str
    """The graph's input."""
    output: str
    """The graph's output that is fed back to ``name``."""
    dtype: str
    """numpy's name of the element type."""
    shape: tuple[int | None, ...]
    """The shape; None stands for the batch."""

    @property
    def batch_axis(self) -> int:
        """Which axis of the shape is the batch."""
        return self.shape.index(None)


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
    """What ``config.json`` says."""

    model_type: str
    """The family: ``lstm``, ``gru``, ``rnn``, ``window`` or ``ngram``, of which the last has no layers."""
    vocab_size: int
    """The number of tokens."""
    embedding_dim: int
    """The width of the embedding."""
    hidden_size: int
    """The width of each hidden layer."""
    num_hidden_layers: int
    """How many hidden layers are stacked: of a recurrent model, its recurrent layers."""
    tie_word_embeddings: bool
    """Whether the output layer shares its weights with the embedding."""
    tokenizer: str
    """The tokenizer's kind: word, char, bpe or other."""
    eos_token_id: int
    """The id that ends a line."""
    bos_token_id: int
    """The id that a zero state has read before the first token: that of ``<eos>``."""
    unk_token_id: int | None
    """The id of unknown words, if there is one."""
    states: tuple[StateTensor, ...]
    """The state's tensors, in the order of the graph's inputs."""
    opset: int
    """The ONNX operator set of ``onnx/model.onnx``; 0 where there is none."""
    vocabulary_sha256: str
    """The sha256 of the tokens in order of id, each ended by a line break."""
    window: int = 0
    """How many tokens a ``window`` model predicts the next one from; 0 in the other families."""
    order: int = 0
    """The length of the longest n-grams of an ``ngram`` model; 0 in the other families."""
    projection: int = 0
    """The width to which the last hidden layer is brought for the output layer; 0 where it is not."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts about the training: corpus, steps, perplexities."""
    parity: dict[str, Any] = field(default_factory=dict)
    """The exporter's proof that the graph equals the torch model."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """What int8 costs; empty where the bundle has no int8 graph."""
    files: dict[str, str] = field(default_factory=dict)
    """The sha256 of every other file of the bundle."""
    format_version: int = FORMAT_VERSION
    """The version of this format."""

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def metadata(self, precision: Precision) -> dict[str, str]:
        """What identifies a graph file by itself: its ``metadata_props``."""
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


def read_config(folder: Path) -> BundleConfig:
    """Read ``config.json``.

    Raises:
        UnusableFileError: the folder is no bundle, or one of another format.
    """
    path = folder / CONFIG
    data = _read_json(folder, CONFIG)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise UnusableFileError(
            path, f"bundle format {version}, where this version of steplm reads {FORMAT_VERSION}"
        )
    try:
        states = tuple(
            StateTensor(state["name"], state["output"], state["dtype"], tuple(state["shape"]))
            for state in data.pop("states")
        )
        config = BundleConfig(states=states, **data)
        _check_records(config)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UnusableFileError(path, f"not a bundle's configuration ({error})") from None
    kinds = {"int": (int, "a number"), "str": (str, "a text"), "bool": (bool, "true or false")}
    for field_ in dataclasses.fields(config):
        kind, called = kinds.get(str(field_.type), (None, ""))
        if kind is not None and type(getattr(config, field_.name)) is not kind:
            raise UnusableFileError(path, f"{field_.name} is {getattr(config, field_.name)!r}, not {called}")
    return config


def _check_records(config: BundleConfig) -> None:
    """Raise ValueError for states or files of a form that no exporter writes."""
    if not config.states:
        raise ValueError("no state")
    for state in config.states:
        if state.output != f"{state.name}_out":
            raise ValueError(f"{state.name} comes out as {state.output}")
        if state.dtype not in ("float32", "int64"):
            raise ValueError(f"{state.name} is {state.dtype}")
        if state.shape.count(None) != 1 or not all(type(size) in (int, type(None)) for size in state.shape):
            raise ValueError(f"{state.name} has the shape {state.shape}")
    if not isinstance(config.files, dict):
        raise ValueError("no list of files")


def check_files(folder: Path, config: BundleConfig, names: list[str]) -> None:
    """Check that each of the files ``names`` is there, and is the one that the exporter wrote.

    Raises:
        UnusableFileError: a file is missing or its sha256 is another.
    """
    for name in names:
        path = folder / name
        if name not in config.files:
            raise UnusableFileError(folder / CONFIG, f"lists no {name}")
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise UnusableFileError(path, "the bundle's file is missing") from None
        if digest != config.files[name]:
            raise UnusableFileError(path, f"changed since the export (its sha256 is not that of {CONFIG})")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The default sampling parameters that the bundle carries."""
    return _read_json(folder, GENERATION_CONFIG)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise UnusableFileError(
            folder, "no such bundle" if not folder.exists() else "a file, where a bundle's folder is needed"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnusableFileError(folder, f"not a bundle: no {name} in it") from None
    except (ValueError, RecursionError):
        raise UnusableFileError(path, "not JSON") from None
    if not isinstance(data, dict):
        raise UnusableFileError(path, "not a JSON object")
    return data
