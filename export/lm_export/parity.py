"""The proof that a bundle's model equals the checkpoint's, on held-out text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.models.protocol import State, StepModel
from lm_runtime.models.state import initial_state

TOLERANCE = 1e-4
"""The largest difference allowed in fp32. Rounding gave 1e-6 for logits of about 10; a wrong gate or a
state that is not carried gave 0.1 and more."""

_STEPS = 256
_GREEDY_STEPS = 200
_BATCHES = (1, 8)


@dataclass(frozen=True)
class Parity:
    """The largest differences between the two models, and whether their greedy texts are the same."""

    steps: int
    """The steps compared at each batch size, the state carried."""
    batches: tuple[int, ...]
    """The batch sizes."""
    logits: float
    """Largest absolute difference of a logit."""
    states: float
    """Largest difference of an element of the state, relative where it is above 1: a cell has no bound, and
    at 215 torch itself was 2e-4 from double precision. Integers that differ count as infinite."""
    one_call: float
    """Largest difference between reading the text in one call and step by step (onnxruntime)."""
    greedy_tokens: int
    """Length of the greedy texts."""
    greedy_equal: bool
    """Whether both models wrote the same ids."""
    tolerance: float = TOLERANCE
    """The largest difference allowed."""

    @property
    def holds(self) -> bool:
        """Whether the bundle may be written."""
        return max(self.logits, self.states, self.one_call) < self.tolerance and self.greedy_equal

    def to_dict(self) -> dict[str, object]:
        """Plain values, for the configuration."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        batches = " and ".join(str(batch) for batch in self.batches)
        return (
            f"{self.steps} steps of held-out text at batch {batches}: largest difference {self.logits:.1e} "
            f"in logits, {self.states:.1e} in states, {self.one_call:.1e} in one call; "
            f"{self.greedy_tokens} greedy tokens {'equal' if self.greedy_equal else 'DIFFER'}"
        )


def compare(reference: StepModel, model: StepModel, held_out: NDArray[np.int64]) -> Parity:
    """Compare two models step by step on ``held_out`` ``(tokens,)``, each carrying its own state.

    A text shorter than needed is repeated.
    """
    logits_difference = states_difference = one_call = 0.0
    for batch in _BATCHES:
        text = np.resize(held_out, (batch, _STEPS))
        states = initial_state(reference, batch), initial_state(model, batch)
        logits = np.empty(0, dtype=np.float32)
        for step in range(_STEPS):
            token = np.ascontiguousarray(text[:, step : step + 1])
            expected, expected_state = reference.step(token, states[0])
            logits, state = model.step(token, states[1])
            logits_difference = max(logits_difference, difference(expected, logits))
            states_difference = max(states_difference, *map(relative_difference, expected_state, state))
            states = expected_state, state
        whole, whole_state = model.step(text, initial_state(model, batch))
        one_call = max(one_call, difference(whole[:, -1:], logits), *map(difference, whole_state, states[1]))
    greedy = [_greedy(candidate) for candidate in (reference, model)]
    return Parity(
        _STEPS,
        _BATCHES,
        logits_difference,
        states_difference,
        one_call,
        _GREEDY_STEPS,
        greedy[0] == greedy[1],
    )


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest absolute difference; NaN and integers that differ count as infinite."""
    if a.dtype.kind == "i":
        return 0.0 if np.array_equal(a, b) else np.inf
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max(initial=0.0))


def relative_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """As :func:`difference`, divided by the expected value where that is above 1."""
    if expected.dtype.kind == "i":
        return difference(expected, found)
    scale = np.maximum(np.abs(expected), 1)
    return difference(expected / scale, found / scale)


def _greedy(model: StepModel) -> list[int]:
    """The ids of a greedy text after one ``<eos>``."""
    ids: list[int] = [model.tokenizer.eos_id]
    state: State = initial_state(model, 1)
    for _ in range(_GREEDY_STEPS):
        logits, state = model.step(np.array([[ids[-1]]]), state)
        ids.append(int(logits[0, -1].argmax()))
    return ids[1:]
