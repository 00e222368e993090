"""The step graph in onnxruntime: ``logits, state = model.step(token, state)``.

The state is a value that goes in and comes out; the model keeps none. Knows nothing about sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lm_runtime.bundle import (
    GENERATION_CONFIG,
    LOGITS,
    LOGITS_FROM,
    MODELS,
    NGRAM_TYPE,
    TOKEN,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENS,
    BundleConfig,
    Precision,
    StateTensor,
    check_files,
    read_config,
    read_generation_config,
)
from lm_runtime.files import UnusableFileError
from lm_runtime.models.stepper import BoundStepper, State, Stepper
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.tokenizer import Tokenizer

Provider = Literal["auto", "cpu", "cuda"]
READ_TOKENS = 512
"""The most tokens read in one call: it bounds the logits held at a time."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3


class StepModel(Protocol):
    """What generation and scoring need of a model; the torch model has the same form."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""

    @property
    def states(self) -> Sequence[StateTensor]:
        """The state's tensors, in the order of the arrays of a :data:`State`."""

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Read ``token`` ``(batch, time)``; return logits ``(batch, time, vocab)`` and the new state."""

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """Read ``token`` as :meth:`step` does, for the state alone; what can be left out is."""

    def stepper(self, state: State) -> Stepper:
        """Take many single steps from ``state``."""

    @property
    def identity(self) -> str:
        """What tells the weights from all others; a state is of use only with the weights that made it."""


class BundleModel(StepModel, Protocol):
    """A step model that comes from a bundle."""

    folder: Path
    config: BundleConfig
    defaults: SamplingParams
    precision: Precision
    provider: str


def open_bundle(folder: Path, config: BundleConfig, weights: str) -> tuple[Tokenizer, SamplingParams]:
    """Check a bundle's files, the one named ``weights`` among them; read its tokenizer and its defaults.

    Raises:
        UnusableFileError: the bundle is incomplete, damaged, or contradicts itself.
    """
    check_files(folder, config, [GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENS, weights])
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    _check_tokenizer(folder / TOKENIZER, tokenizer, config)
    return tokenizer, _sampling_defaults(folder)


class OnnxModel:
    """A bundle's graph, tokenizer and defaults, ready to step.

    Args:
        folder: the bundle.
        precision: ``fp32`` or ``int8``.
        provider: ``cpu``, ``cuda``, or ``auto``: CUDA where it works, else the CPU.
        threads: onnxruntime's threads within an operator; None lets it choose.

    Raises:
        UnusableFileError: the bundle is incomplete, damaged, of another format, or contradicts itself.
        ValueError: the provider is not available here.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: Precision = "fp32",
        provider: Provider = "auto",
        threads: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        graph = MODELS[precision]
        if graph not in self.config.files:
            raise ValueError(
                f"{folder} has no {precision} graph; export it with --quantize {precision}"
                if precision != "fp32"
                else f"{folder} has no {precision} graph"
            )
        self.tokenizer, self.defaults = open_bundle(self.folder, self.config, graph)
        self.precision: Precision = precision
        self.states = self.config.states
        self._session = _open_session(self.folder / graph, provider, threads)
        self.provider = "cuda" if self._session.get_providers()[0] == _PROVIDERS["cuda"] else "cpu"
        """Where the graph runs: ``cpu`` or ``cuda``."""
        _check_graph(self.folder / graph, self._session, self.config, precision)
        self._input_names = [TOKEN, *(state.name for state in self.states)]
        optional = [tensor.name for tensor in self._session.get_overridable_initializers()]
        self._skips_logits = LOGITS_FROM in optional
        self._output_names = [LOGITS, *(state.output for state in self.states)]

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Read ``token``, ids of shape ``(batch, time)``, from ``state``.

        Returns:
            logits float32 ``(batch, time, vocab)`` and the state behind the last token.
        """
        feeds = dict(zip(self._input_names, (token, *state), strict=True))
        logits, *after = self._session.run(self._output_names, feeds)
        return logits, tuple(after)

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`StepModel.advance`."""
        feeds = dict(zip(self._input_names, (token, *state), strict=True))
        if self._skips_logits:
            feeds[LOGITS_FROM] = np.array([token.shape[1]])
        return tuple(self._session.run(self._output_names[1:], feeds))

    def stepper(self, state: State) -> Stepper:
        """Take many single steps from ``state``, faster than by :meth:`step`."""
        return BoundStepper(self._session, self.states, state, self.config.vocab_size, self.provider)

    @property
    def identity(self) -> str:
        """The sha256 of the graph's file."""
        return self.config.files[MODELS[self.precision]]


def load(
    folder: str | Path,
    *,
    precision: Precision = "fp32",
    provider: Provider = "auto",
    threads: int | None = None,
) -> BundleModel:
    """Load a bundle; the arguments and errors are those of :class:`OnnxModel`.

    An n-gram model's tables have one precision, ``fp32``, and run on the CPU.
    """
    if read_config(Path(folder)).model_type != NGRAM_TYPE:
        return OnnxModel(folder, precision=precision, provider=provider, threads=threads)
    if precision != "fp32":
        raise ValueError(f"{folder} is an n-gram model, which has no {precision} graph")
    if provider == "cuda":
        raise ValueError(f"{folder} is an n-gram model, which runs on the CPU")
    from lm_runtime.models.ngram import NgramBundle  # graphs do without it

    return NgramBundle(Path(folder))


def initial_state(model: StepModel, batch: int) -> State:
    """The zero state of ``batch`` sequences that have read nothing yet."""
    return tuple(
        np.zeros([batch if size is None else size for size in state.shape], state.dtype)
        for state in model.states
    )


def join_states(model: StepModel, states: Sequence[State]) -> State:
    """The state of the batch that has the sequences of ``states`` one after the other."""
    return tuple(
        np.concatenate(arrays, axis=tensor.batch_axis)
        for tensor, arrays in zip(model.states, zip(*states, strict=True), strict=True)
    )


def state_of(model: StepModel, state: State, row: int) -> State:
    """The state of one sequence of a batch, as a batch of 1."""
    return tuple(
        array[(slice(None),) * tensor.batch_axis + (slice(row, row + 1),)].copy()
        for tensor, array in zip(model.states, state, strict=True)
    )


def check_state(model: StepModel, state: State) -> None:
    """Check that ``state`` is one of a batch of 1 of the model.

    Raises:
        ValueError: it is another model's.
    """
    wanted = [
        (tuple(1 if size is None else size for size in tensor.shape), tensor.dtype) for tensor in model.states
    ]
    found = [(array.shape, str(array.dtype)) for array in state]
    if found != wanted:
        raise ValueError(f"the state is not this model's: it is {found}, not {wanted}")


def take_states(model: StepModel, state: State, rows: Sequence[int] | NDArray[np.int64]) -> State:
    """The state of the batch that has the sequences ``rows`` of a batch, each as often as it is named."""
    return tuple(
        np.take(array, rows, axis=tensor.batch_axis)
        for tensor, array in zip(model.states, state, strict=True)
    )


def read(model: StepModel, ids: Sequence[int], state: State) -> State:
    """Read ``ids`` into a state of batch 1, up to :data:`READ_TOKENS` in one call."""
    token = np.array(ids, dtype=np.int64)[None]
    for start in range(0, token.shape[1], READ_TOKENS):
        state = model.advance(token[:, start : start + READ_TOKENS], state)
    return state


def _open_session(path: Path, provider: Provider, threads: int | None) -> ort.InferenceSession:
    available = ort.get_available_providers()
    if provider != "auto" and _PROVIDERS[provider] not in available:
        raise ValueError(
            f"provider {provider} is not available: this onnxruntime {ort.__version__} has "
            + ", ".join(name for name, long in _PROVIDERS.items() if long in available)
        )
    wanted = ["cuda", "cpu"] if provider == "auto" else [provider]
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY + (provider == "auto")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(
            path, options, providers=[_PROVIDERS[name] for name in wanted if _PROVIDERS[name] in available]
        )
    except Exception as error:  # onnxruntime's exceptions have no public base class
        raise UnusableFileError(path, f"onnxruntime cannot load it: {str(error).splitlines()[0]}") from None
    if provider == "cuda" and session.get_providers()[0] != _PROVIDERS["cuda"]:
        raise ValueError("provider cuda is not available: onnxruntime has it, but could not start it here")
    return session


def _check_graph(
    path: Path, session: ort.InferenceSession, config: BundleConfig, precision: Precision
) -> None:
    """Check that the graph is the one that the configuration describes."""
    metadata = session.get_modelmeta().custom_metadata_map
    for name, value in config.metadata(precision).items():
        if metadata.get(name) != value:
            raise UnusableFileError(
                path, f"does not fit config.json: {name} is {metadata.get(name)}, not {value}"
            )
    wanted: dict[str, tuple[str, list[int | None]]] = {TOKEN: ("tensor(int64)", [None, None])}
    wanted |= {LOGITS: ("tensor(float)", [None, None, config.vocab_size])}
    for state in config.states:
        type_ = {"float32": "tensor(float)", "int64": "tensor(int64)"}[state.dtype]
        wanted[state.name] = wanted[state.output] = type_, list(state.shape)
    tensors = {tensor.name: tensor for tensor in (*session.get_inputs(), *session.get_outputs())}
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise UnusableFileError(path, f"has the tensor {extra[0]}, which config.json does not list")
    for name, (dtype, shape) in wanted.items():
        if name not in tensors:
            raise UnusableFileError(path, f"has no tensor {name}")
        found = [size if isinstance(size, int) else None for size in tensors[name].shape]
        if (tensors[name].type, found) != (dtype, shape):
            raise UnusableFileError(
                path, f"{name} is {tensors[name].type} {found}, where config.json says {dtype} {shape}"
            )


def _check_tokenizer(path: Path, tokenizer: Tokenizer, config: BundleConfig) -> None:
    for name, found, wanted in (
        ("vocab_size", tokenizer.vocab_size, config.vocab_size),
        ("vocabulary_sha256", tokenizer.vocabulary_sha256, config.vocabulary_sha256),
        ("eos_token_id", tokenizer.eos_id, config.eos_token_id),
        ("unk_token_id", tokenizer.unk_id, config.unk_token_id),
    ):
        if found != wanted:
            raise UnusableFileError(path, f"does not fit the model: {name} is {found}, not {wanted}")


def _sampling_defaults(folder: Path) -> SamplingParams:
    path = folder / GENERATION_CONFIG
    try:
        return SamplingParams(**read_generation_config(folder))
    except (TypeError, ValueError) as error:
        raise UnusableFileError(path, f"not usable as sampling parameters ({error})") from None
