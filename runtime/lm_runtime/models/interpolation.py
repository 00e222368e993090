"""Two models as one: the weighted mean of their probabilities, and the weight fitted on a text.

An n-gram model and a neural one err in different places, so the mean is better than either (Mikolov et al.
2011).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import StateTensor
from lm_runtime.files import UnusableFileError
from lm_runtime.models.protocol import State, StepModel, Stepper
from lm_runtime.scoring.score import token_log_probabilities
from lm_runtime.softmax import log_normalizers
from lm_runtime.text_files import read_fragments
from lm_runtime.tokenizer import Tokenizer

_ROUNDS = 200
_CLOSE = 1e-7
_SECOND = "second_"


class InterpolatedModel:
    """``(1 - weight) * p(first) + weight * p(second)``, a model like any other.

    Its logits are log-probabilities; its state is the first model's tensors, then the second's, whose names
    begin with ``second_``. Either may be such a pair itself.

    Args:
        first: a model.
        second: one of the same vocabulary.
        weight: of the second, above 0 and below 1.

    Raises:
        ValueError: the vocabularies are not the same, or the weight is out of its range.
    """

    def __init__(self, first: StepModel, second: StepModel, weight: float) -> None:
        _require_one_vocabulary(first, second)
        if not 0 < weight < 1:
            raise ValueError(f"weight must be above 0 and below 1, got {weight}")
        self.tokenizer: Tokenizer = first.tokenizer
        self.weight = weight
        self.states = _states_of_both(first.states, second.states)
        self._models = first, second
        self._cut = len(first.states)

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.StepModel.step`."""
        first, second = self._models
        ours, after = first.step(token, state[: self._cut])
        theirs, also_after = second.step(token, state[self._cut :])
        return _mix(ours, theirs, self.weight), (*after, *also_after)

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`lm_runtime.models.protocol.StepModel.advance`."""
        first, second = self._models
        return (*first.advance(token, state[: self._cut]), *second.advance(token, state[self._cut :]))

    def stepper(self, state: State) -> Stepper:
        """As :meth:`lm_runtime.models.protocol.StepModel.stepper`."""
        first, second = self._models
        return _InterpolatedStepper(
            first.stepper(state[: self._cut]), second.stepper(state[self._cut :]), self.weight
        )

    @property
    def identity(self) -> str:
        """What tells the pair and its weight from all others."""
        parts = [*(model.identity for model in self._models), repr(self.weight)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def __reduce__(self) -> tuple[type[InterpolatedModel], tuple[StepModel, StepModel, float]]:
        return InterpolatedModel, (*self._models, self.weight)

    def __repr__(self) -> str:
        first, second = self._models
        return f"InterpolatedModel({first}, {second}, {self.weight})"


def _states_of_both(first: Sequence[StateTensor], second: Sequence[StateTensor]) -> tuple[StateTensor, ...]:
    """The tensors of both, every name once: the second's get prefixes until they are free.

    A saved session has tensors by these names, so the same pair gives the same ones each time.
    """
    states = list(first)
    names = {tensor.name for tensor in states}
    for tensor in second:
        prefix = _SECOND
        while prefix + tensor.name in names:
            prefix += _SECOND
        names.add(prefix + tensor.name)
        states.append(dataclasses.replace(tensor, name=prefix + tensor.name, output=prefix + tensor.output))
    return tuple(states)


class _InterpolatedStepper:
    def __init__(self, first: Stepper, second: Stepper, weight: float) -> None:
        self._steppers = first, second
        self._weight = weight

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        first, second = self._steppers
        return _mix(first.step(tokens), second.step(tokens), self._weight)

    def state(self) -> State:
        first, second = self._steppers
        return (*first.state(), *second.state())

    def undo(self) -> None:
        for stepper in self._steppers:
            stepper.undo()


def fit_weight(first: StepModel, second: StepModel, path: str | Path) -> float:
    """The second model's weight at which the text at ``path`` is most probable.

    By expectation maximization, which cannot end at another weight: the log-likelihood is concave.

    Args:
        first: a model.
        second: one of the same vocabulary.
        path: a held-out UTF-8 text, which is read once.

    Returns:
        the weight of the second, above 0 and below 1.

    Raises:
        ValueError: the vocabularies are not the same.
        UnusableFileError: the file cannot be used, or is empty.
    """
    _require_one_vocabulary(first, second)
    texts = itertools.tee(read_fragments(Path(path)))
    both = zip(*map(token_log_probabilities, (first, second), texts), strict=True)
    ratios = [theirs.astype(np.float64) - ours for (_, ours), (_, theirs) in both]
    if not ratios:
        raise UnusableFileError(path, "empty: there is nothing to fit a weight on")
    return likeliest_weight(np.exp(np.concatenate(ratios)))


def likeliest_weight(odds: NDArray[np.float64]) -> float:
    """The weight of the second of two models at which a text is most probable.

    Args:
        odds: the second's probability of each token divided by the first's, ``(tokens,)``.

    Returns:
        a number above 0 and below 1.
    """
    weight = 0.5
    for _ in range(_ROUNDS):
        before, weight = weight, float(np.mean(weight * odds / (1 - weight + weight * odds)))
        if abs(weight - before) < _CLOSE:
            break
    return min(max(weight, _CLOSE), 1 - _CLOSE)


def _require_one_vocabulary(first: StepModel, second: StepModel) -> None:
    one, other = first.tokenizer, second.tokenizer
    # By its tokens: a bundle of format 1 writes the same vocabulary in another way.
    if (one.kind, one.tokens, one.eos_id, one.unk_id) != (
        other.kind,
        other.tokens,
        other.eos_id,
        other.unk_id,
    ):
        raise ValueError("the two models do not have the same tokens, so their probabilities do not mix")


def _mix(ours: NDArray[np.float32], theirs: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Log-probabilities of the mean: logits ``(..., vocab)`` of each -> ``(..., vocab)``."""
    result: NDArray[np.float32] = np.logaddexp(
        _log_softmax(ours) + np.float32(math.log1p(-weight)),
        _log_softmax(theirs) + np.float32(math.log(weight)),
    )
    return result


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = logits - log_normalizers(logits)[..., None]
    return result
