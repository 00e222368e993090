"""Measuring a bundle on this machine: rates, the share of time outside the graph, the limit of memory.

Every figure is a median of several runs. Knows nothing about the command line.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_runtime.generation.generate import generate_batch
from lm_runtime.generation.session import Session
from lm_runtime.models.load import load
from lm_runtime.models.protocol import BundleModel
from lm_runtime.models.state import initial_state
from lm_runtime.sampling.params import SamplingParams

_RUNS = 5
_BANDWIDTH_BYTES = 1 << 28
_THREADS = 2


@dataclass(frozen=True)
class StepRate:
    """Single steps of one batch."""

    precision: str
    """fp32 or int8."""
    batch: int
    """Sequences in one batch."""
    graph: float
    """Tokens a second of the model's steps alone, all sequences together."""
    generation: float
    """Tokens a second of text, sampling (top-p 0.95) and decoding included."""

    @property
    def outside(self) -> float:
        """Microseconds a token outside the graph's run."""
        return 1e6 / self.generation - 1e6 / self.graph


@dataclass(frozen=True)
class PromptRate:
    """Reading a prompt of 512 tokens."""

    precision: str
    """fp32 or int8."""
    one_call: float
    """Tokens a second in one call."""
    stepping: float
    """Tokens a second step by step."""


def memory_bandwidth() -> float:
    """Bytes a second that two threads read from memory, far more than a cache holds."""
    return _BANDWIDTH_BYTES / _median_time(reader(_BANDWIDTH_BYTES))


def reader(size: int) -> Callable[[], object]:
    """A function that reads ``size`` bytes from memory by two threads."""
    parts = np.array_split(np.ones(size // 4, dtype=np.float32), _THREADS)
    pool = ThreadPoolExecutor(_THREADS)
    return lambda: list(pool.map(np.max, parts))


def step_rate(model: BundleModel, batch: int, tokens: int) -> StepRate:
    """Measure ``tokens`` steps at a batch size.

    Runs of the graph and of generation alternate, so that both see the same machine.
    """
    stepper = model.stepper(initial_state(model, batch))
    read = [model.tokenizer.eos_id] * batch
    params = SamplingParams(top_p=0.95, max_tokens=tokens)

    def graph() -> None:
        for _ in range(tokens):
            stepper.step(read)

    def text() -> None:
        sessions = [Session.start(model, seed=1, index=index) for index in range(batch)]
        for _ in generate_batch(model, sessions, params):
            pass

    times = [(_time(graph), _time(text)) for _ in range(_RUNS + 1)][1:]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return StepRate(model.precision, batch, *(batch * tokens / median for median in medians))


def prompt_rate(model: BundleModel, tokens: int = 512) -> PromptRate:
    """Measure reading a prompt in one call and step by step."""
    ids = np.arange(tokens)[None] % model.config.vocab_size
    stepper = model.stepper(initial_state(model, 1))
    state = initial_state(model, 1)

    def stepping() -> None:
        for token in ids[0].tolist():
            stepper.step([token])

    return PromptRate(
        model.precision,
        tokens / _median_time(lambda: model.step(ids, state)),
        tokens / _median_time(stepping),
    )


def load_seconds(folder: Path, **options: Any) -> float:
    """Seconds to load a bundle, every check included; the options are those of :func:`lm_runtime.load`."""
    return _median_time(lambda: load(folder, **options))


def _median_time(work: Callable[[], object]) -> float:
    work()
    return statistics.median(_time(work) for _ in range(_RUNS))


def _time(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
