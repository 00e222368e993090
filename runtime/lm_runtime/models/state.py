"""The states of several sequences as one: made, joined, taken apart, and read into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_runtime.models.protocol import State, StepModel

READ_TOKENS = 512
"""The most tokens read in one call: it bounds the logits held at a time."""


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
