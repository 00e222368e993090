"""The step graph in onnxruntime: ``logits, state = model.step(token, state)``.

The state is a value that goes in and comes out; the model keeps none. Knows nothing about sampling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lm_runtime.bundle import (
    LOGITS,
    LOGITS_FROM,
    MODELS,
    TOKEN,
    BundleConfig,
    Precision,
    read_config,
)
from lm_runtime.files import UnusableFileError
from lm_runtime.models.opened import open_bundle
from lm_runtime.models.protocol import Provider, State, Stepper
from lm_runtime.models.stepper import BoundStepper

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3


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
