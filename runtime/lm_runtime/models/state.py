"""The states of several sequences as one: made, checked, joined, taken apart, and read into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import STATE_TYPES, StateTensor
from lm_runtime.models.protocol import State, StepModel

_TYPES = {
    name: np.dtype(name) for name in (*STATE_TYPES, "float16")
}  # to make one takes as long as the other checks
READ_TOKENS = 512
"""The most tokens read in one call: it bounds the logits held at a time."""


def initial_state(model: StepModel, batch: int) -> State:
    """The zero state of ``batch`` sequences that have read nothing yet.

    Raises:
        ValueError: the batch is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return tuple(np.zeros(tensor.sizes(batch), tensor.dtype) for tensor in model.states)


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
    check_tensors(model.states, state, 1)


def check_tensors(states: Sequence[StateTensor], state: State, batch: int) -> None:
    """Check that ``state`` has the tensors ``states`` of ``batch`` sequences.

    Raises:
        ValueError: it has not, or the batch is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if len(state) != len(states) or any(
        array.shape != tensor.sizes(batch) or array.dtype != _TYPES[tensor.dtype]
        for array, tensor in zip(state, states, strict=True)
    ):
        wanted = [(tensor.sizes(batch), tensor.dtype) for tensor in states]
        found = [(array.shape, array.dtype.name) for array in state]
        raise ValueError(f"the state is not this model's: it is {found}, not {wanted}")


def batch_of(states: Sequence[StateTensor], state: State) -> int:
    """How many sequences ``state`` is of.

    Raises:
        ValueError: it has not the tensors ``states``, or is of no sequence.
    """
    axis = states[0].batch_axis
    batch = state[0].shape[axis] if state and state[0].ndim > axis else 1
    check_tensors(states, state, batch)
    return batch


def check_input(model: StepModel, token: NDArray[np.int64], state: State) -> None:
    """Check what a model is given to read: ids ``(batch, time)`` and a state of that batch.

    Raises:
        ValueError: a shape, a type or an id is wrong.
    """
    if token.ndim != 2 or token.dtype != np.int64:
        raise ValueError(f"token must be int64 (batch, time), got {token.dtype} {token.shape}")
    check_tensors(model.states, state, len(token))
    if token.size:
        # As unsigned numbers, ids below 0 are the largest. To look for the largest of one id takes 3 us.
        ids = token.view(np.uint64)
        largest = ids.item() if ids.size == 1 else ids.max()
        if largest >= model.tokenizer.vocab_size:
            raise wrong_ids(token.ravel().tolist(), token.size, model.tokenizer.vocab_size)


def wrong_ids(tokens: Sequence[int], count: int, vocab_size: int) -> ValueError:
    """The error for ids that are not ``count`` of the vocabulary."""
    if len(tokens) != count:
        return ValueError(f"a step reads {count} tokens, one for each sequence, got {len(tokens)}")
    wrong = next(token for token in tokens if not 0 <= token < vocab_size)
    return ValueError(f"a token must be from 0 to {vocab_size - 1}, got {wrong}")


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
