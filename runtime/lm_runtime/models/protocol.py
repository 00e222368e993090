"""What generation and scoring need of a model: ``logits, state = model.step(token, state)``.

The state is a value that goes in and comes out. Knows nothing about how a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lm_runtime.bundle import BundleConfig, Precision, StateTensor
    from lm_runtime.models.adaptation import Adaptation
    from lm_runtime.sampling.params import SamplingParams
    from lm_runtime.tokenizer import Tokenizer

Provider = Literal["auto", "cpu", "cuda"]

State = tuple[NDArray[Any], ...]
"""One array for each state tensor; each sequence of the batch has its slice along the batch axis."""

Step = Callable[[NDArray[np.int64], State], tuple[NDArray[np.float32], State]]


class Stepper(Protocol):
    """Steps one batch; the state stays inside until it is asked for."""

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read one token for each row; return logits ``(batch, vocab)``, valid until the next step.

        Raises:
            ValueError: an id is not in the vocabulary, or their number is not the batch's.
        """

    def state(self) -> State:
        """A copy of the state after the last step."""

    def undo(self) -> None:
        """Go back to before the last step; once, and only after a step."""


class HiddenStepper(Stepper, Protocol):
    """The stepper of a :class:`HiddenModel` that shows what its output layer reads."""

    def hidden(self) -> NDArray[np.float32]:
        """What the output layer read in the last step, ``(batch, width)``, valid until the next."""


class StepModel(Protocol):
    """What generation and scoring need of a model; the torch model has the same form."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""

    @property
    def states(self) -> Sequence[StateTensor]:
        """The state's tensors, in the order of the arrays of a :data:`State`."""

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Read ``token`` ``(batch, time)``; return logits ``(batch, time, vocab)`` and the new state.

        A time of 0 gives no logits, and the state as it is.

        Raises:
            ValueError: an id is not in the vocabulary, or a shape is wrong; a batch of 0 is.
        """

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """Read ``token`` as :meth:`step` does, for the state alone; a model skips the logits if it can."""

    def stepper(self, state: State) -> Stepper:
        """Take many single steps from ``state``."""

    @property
    def identity(self) -> str:
        """What tells the weights from all others: a state goes only with the weights that made it."""


@runtime_checkable
class HiddenModel(StepModel, Protocol):
    """A step model that shows what its output layer reads."""

    hidden_width: int | None
    """The width of that; None where a graph does not show it."""

    def step_hidden(
        self, token: NDArray[np.int64], state: State
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], State]:
        """As :meth:`StepModel.step`, with what the output layer read, ``(batch, time, width)``, second."""

    def advance_hidden(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`StepModel.advance`, with what the output layer would read, ``(batch, time, width)``."""

    def hidden_stepper(self, state: State) -> HiddenStepper:
        """As :meth:`StepModel.stepper`."""


@runtime_checkable
class DirectModel(StepModel, Protocol):
    """A step model that finds the probability of one token without those of all others."""

    restarts_at_eos: bool
    """Whether nothing before an ``<eos>`` changes what it gives after it, so that texts are scored as one."""

    def score(self, ids: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Read all of ``ids`` ``(batch, time + 1)`` but the last, which is only predicted.

        Returns:
            the log-probability of each but the first, ``(batch, time)``, and the new state.
        """


class BundleModel(StepModel, Protocol):
    """A step model that comes from a bundle. It can be pickled: by its folder."""

    folder: Path
    """Where the bundle is."""
    config: BundleConfig
    """What its ``config.json`` says."""
    defaults: SamplingParams
    """The sampling parameters that it proposes."""
    adaptation: Adaptation
    """How much it proposes to follow what was read, where that is asked for."""
    precision: Precision
    """Which of its graphs it is; tables are fp32."""
    provider: str
    """Where it runs: cpu or cuda."""

    @property
    def step_bytes(self) -> int | None:
        """The bytes that a step at batch 1 reads of the weights; None where it only looks some up."""


class PlainStepper:
    """Steps any model by its ``step(token, state)``."""

    def __init__(self, step: Step, state: State) -> None:
        self._step = step
        self._state = self._before = state

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As :meth:`Stepper.step`."""
        logits, after = self._step(np.array(tokens, dtype=np.int64)[:, None], self._state)
        self._before, self._state = self._state, after
        return logits[:, 0]

    def state(self) -> State:
        """As :meth:`Stepper.state`."""
        return self._state

    def undo(self) -> None:
        """As :meth:`Stepper.undo`."""
        self._state = self._before
