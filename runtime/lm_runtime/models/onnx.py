"""The step graph in onnxruntime: ``logits, state = model.step(token, state)``.

The state is a value that goes in and comes out; the model keeps none. Knows nothing about sampling.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lm_runtime.bundle import HIDDEN, LOGITS, LOGITS_FROM, MODELS, TOKEN, BundleConfig, Precision
from lm_runtime.files import UnusableFileError, first_line, reading
from lm_runtime.models.graph_file import check_graph_file
from lm_runtime.models.opened import open_bundle, open_same
from lm_runtime.models.protocol import HiddenStepper, Provider, State, Stepper
from lm_runtime.models.state import check_input, check_state, initial_state
from lm_runtime.models.stepper import BoundStepper
from lm_runtime.settings import check_number

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3
_NOTHING_BUT_FATAL = 4
_MOST_THREADS = 1024
_SMALLEST_FOLDING_LIMIT = 1 << 20
_FOLDING_FACTOR = 4
"""Weights that are computed as a graph is loaded, such as int8 ones in fp32, may be 4 times its file."""


class OnnxModel:
    """A bundle's graph, tokenizer and defaults, ready to step.

    Threads may share it: nothing in it changes. A pickle names the folder, and opens it anew.

    Args:
        folder: the bundle.
        precision: ``fp32`` or ``int8``.
        provider: ``cpu``, ``cuda``, or ``auto``: CUDA where it works, else the CPU.
        threads: onnxruntime's threads within an operator; None lets it choose.

    Raises:
        UnusableFileError: the bundle is incomplete, damaged, of another format, or contradicts itself.
        ValueError: the bundle has no such graph, an argument is out of its range, or the provider is not
            available here.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: Precision = "fp32",
        provider: Provider = "auto",
        threads: int | None = None,
    ) -> None:
        if precision not in MODELS:
            raise ValueError(f"precision must be {' or '.join(MODELS)}, got {precision!r}")
        bundle = open_bundle(Path(folder), MODELS[precision])
        path = bundle.folder / MODELS[precision]
        self.folder = bundle.folder
        self.config = bundle.config
        self.tokenizer = bundle.tokenizer
        self.defaults = bundle.defaults
        self.adaptation = bundle.adaptation
        self.precision: Precision = precision
        self.states = bundle.config.states
        self._session = _open_session(path, bundle.weights, provider, threads)
        self.provider = "cuda" if self._session.get_providers()[0] == _PROVIDERS["cuda"] else "cpu"
        """Where the graph runs: ``cpu`` or ``cuda``."""
        _check_graph(path, self._session, self.config, precision)
        self._file_size = len(bundle.weights)
        self._make = functools.partial(
            OnnxModel, self.folder.absolute(), precision=precision, provider=provider, threads=threads
        )
        self._input_names = [TOKEN, *(state.name for state in self.states)]
        optional = [tensor.name for tensor in self._session.get_overridable_initializers()]
        self._skips_logits = LOGITS_FROM in optional
        last = self._session.get_outputs()[-1]
        self.hidden_width: int | None = last.shape[2] if last.name == HIDDEN else None
        self._output_names = [LOGITS, *(state.output for state in self.states)]
        self._try(path)

    def _try(self, path: Path) -> None:
        """Take one step: what onnxruntime finds wrong with a graph only as it runs is found here.

        Raises:
            UnusableFileError: the graph cannot take a step, or gives something else than it should.
        """
        try:
            logits, after = self.step(np.array([[self.tokenizer.eos_id]]), initial_state(self, 1))
            check_state(self, after)
        except Exception as error:
            raise UnusableFileError(path, f"cannot take a step: {first_line(error)}") from None
        if logits.shape != (1, 1, self.config.vocab_size):
            raise UnusableFileError(path, f"gives logits of the shape {logits.shape}")

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Read ``token``, ids of shape ``(batch, time)``, from ``state``.

        Returns:
            logits float32 ``(batch, time, vocab)`` and the state after the last token.

        Raises:
            ValueError: the ids or the state are not the model's.
        """
        check_input(self, token, state)
        if not token.shape[1]:
            return np.empty((*token.shape, self.config.vocab_size), dtype=np.float32), state
        feeds = dict(zip(self._input_names, (token, *state), strict=True))
        logits, *after = self._session.run(self._output_names, feeds)
        return logits, tuple(after)

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`StepModel.advance`."""
        check_input(self, token, state)
        if not token.shape[1]:
            return state
        feeds = dict(zip(self._input_names, (token, *state), strict=True))
        if self._skips_logits:
            feeds[LOGITS_FROM] = np.array([token.shape[1]])
        return tuple(self._session.run(self._output_names[1:], feeds))

    def step_hidden(
        self, token: NDArray[np.int64], state: State
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], State]:
        """As :meth:`HiddenModel.step_hidden`."""
        check_input(self, token, state)
        if not token.shape[1]:
            none = np.empty((*token.shape, self.config.vocab_size), dtype=np.float32)
            return none, none[..., : self.hidden_width], state
        feeds = dict(zip(self._input_names, (token, *state), strict=True))
        logits, *after, hidden = self._session.run([*self._output_names, HIDDEN], feeds)
        return logits, hidden, tuple(after)

    def advance_hidden(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`HiddenModel.advance_hidden`."""
        check_input(self, token, state)
        if not token.shape[1]:
            return np.empty((*token.shape, self.hidden_width or 0), dtype=np.float32), state
        feeds = dict(zip(self._input_names, (token, *state), strict=True))
        if self._skips_logits:
            feeds[LOGITS_FROM] = np.array([token.shape[1]])
        *after, hidden = self._session.run([*self._output_names[1:], HIDDEN], feeds)
        return hidden, tuple(after)

    def stepper(self, state: State) -> Stepper:
        """As :meth:`StepModel.stepper`."""
        return BoundStepper(self._session, self.states, state, self.config.vocab_size, self.provider)

    def hidden_stepper(self, state: State) -> HiddenStepper:
        """As :meth:`HiddenModel.hidden_stepper`."""
        vocab_size, width = self.config.vocab_size, self.hidden_width
        return BoundStepper(self._session, self.states, state, vocab_size, self.provider, width)

    @property
    def identity(self) -> str:
        """The sha256 of the graph's file."""
        return self.config.files[MODELS[self.precision]]

    @property
    def step_bytes(self) -> int | None:
        """As :attr:`BundleModel.step_bytes`: the file without the embedding, of which it reads a row."""
        width = 4 if self.precision == "fp32" else 1
        tied = self.config.tie_word_embeddings and self.precision == "fp32"
        return self._file_size - (0 if tied else width * self.config.vocab_size * self.config.embedding_dim)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open_same, (self._make, self.identity)

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.folder)!r}, precision={self.precision!r}, provider={self.provider!r})"


def _open_session(
    path: Path, content: bytes, provider: Provider, threads: int | None
) -> ort.InferenceSession:
    """A session of the graph in ``content``, the bytes that were checked, whatever is at ``path`` by now.

    With 480 MB of weights that took 0.46 GB more at its peak than by the path (1.84 GB for 1.38), and no
    more afterwards.
    """
    available = ort.get_available_providers()
    if provider != "auto" and _PROVIDERS.get(provider) not in available:
        raise ValueError(
            f"provider {provider} is not available: this onnxruntime {ort.__version__} has "
            + ", ".join(name for name, long in _PROVIDERS.items() if long in available)
        )
    if threads is not None:
        check_number("threads", threads, int, low=1, high=_MOST_THREADS)
    check_graph_file(path, content)
    wanted = ["cuda", "cpu"] if provider == "auto" else [provider]
    options = ort.SessionOptions()
    # Errors come as exceptions, but for the reason why CUDA does not start.
    options.log_severity_level = _ERRORS_ONLY if provider == "cuda" else _NOTHING_BUT_FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that wait sleep: beside other programs a spinning one takes the time of the one it waits for.
    spins = os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE"
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    # Else onnxruntime's own format would pass for ONNX, and a few operators could fill the memory.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    most = max(_SMALLEST_FOLDING_LIMIT, _FOLDING_FACTOR * len(content))
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(most))
    providers = [_PROVIDERS[name] for name in wanted if _PROVIDERS[name] in available]
    session = _make_session(path, content, options, providers)
    if provider == "cuda" and session.get_providers()[0] != _PROVIDERS["cuda"]:
        raise ValueError("provider cuda is not available: onnxruntime has it, but could not start it here")
    _forget_content(session)
    return session


def _make_session(
    path: Path, content: bytes, options: ort.SessionOptions, providers: list[str]
) -> ort.InferenceSession:
    """A session by the first of ``providers`` that works; onnxruntime itself would print what fails."""
    try:
        return ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no public base class
        if len(providers) > 1:
            return _make_session(path, content, options, providers[1:])
        raise UnusableFileError(path, f"onnxruntime cannot load it: {first_line(error)}") from None


def _forget_content(session: ort.InferenceSession) -> None:
    """Let the file's bytes go, which a session keeps to load them once more should its provider fail."""
    if getattr(session, "_model_bytes", None) is not None:
        session._model_bytes = None


def _check_graph(
    path: Path, session: ort.InferenceSession, config: BundleConfig, precision: Precision
) -> None:
    """Check that the graph is the one that the configuration describes."""
    with reading(path, "not the graph of a bundle"):
        metadata = session.get_modelmeta().custom_metadata_map
        inputs_and_outputs = [*session.get_inputs(), *session.get_outputs()]
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
    tensors = {tensor.name: tensor for tensor in inputs_and_outputs}
    hidden = inputs_and_outputs[-1]
    if (hidden.name, hidden.type, len(hidden.shape)) == (HIDDEN, "tensor(float)", 3):
        wanted[HIDDEN] = hidden.type, [None, None, hidden.shape[2]]
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
