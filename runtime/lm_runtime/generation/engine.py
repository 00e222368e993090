"""The engine: one batch that sessions enter and leave at any step.

Each session brings its own parameters and draws from its own generator, and no choice looks at another
session: whatever the others do, its tokens are those it has alone (exact in fp32). A server is a loop
around :meth:`Engine.step`.
"""

from __future__ import annotations

from collections import deque
from threading import RLock
from typing import TYPE_CHECKING

from lm_runtime.generation.rows import Group, Piece, Row
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.models.state import check_state, join_states, state_of
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.settings import check_number

if TYPE_CHECKING:
    from lm_runtime.models.protocol import Stepper


class Engine:
    """Runs sessions as one batch.

    >>> engine = Engine(model)
    >>> engine.add(Session.start(model, "Once"), SamplingParams(max_tokens=20))
    0
    >>> while len(engine):
    ...     for piece in engine.step():
    ...         print(piece.index, piece.text)

    A session is where its text ends when its last piece has come, or after :meth:`cancel` or :meth:`close`;
    in between it belongs to the engine. What it holds back of an unfinished character or of the beginning of
    a stop string stays in it, for :meth:`Session.flush`.

    One thread steps; others may add and cancel, and wait while a step runs.

    Args:
        model: from :func:`lm_runtime.load`.
        max_batch: the most sessions in one step; more wait, first come, first served.

    Raises:
        ValueError: max_batch is out of its range.
    """

    def __init__(self, model: StepModel, *, max_batch: int = 64) -> None:
        check_number("max_batch", max_batch, int, low=1)
        self._model = model
        self._max_batch = max_batch
        self._added = 0
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._groups: list[Group] = []
        self._stepper: Stepper | None = None  # None: the sessions hold their states themselves
        self._lock = RLock()  # of all that is above
        self._stepping = False

    def __len__(self) -> int:
        """How many sessions run or wait."""
        return len(self._running) + len(self._waiting)

    def __repr__(self) -> str:
        return f"Engine({len(self._running)} running, {len(self._waiting)} waiting of {self._max_batch})"

    def add(self, session: Session, params: SamplingParams | None = None) -> int:
        """Let a session enter at the next step, or as soon as there is room.

        One that is asked for no tokens at all never enters.

        Returns:
            the index that its pieces have: 0 for the first session added, and so on.

        Raises:
            ValueError: the parameters do not fit the vocabulary, the regular expression cannot be used, the
                session is in an engine already, or it is another model's.
        """
        session.require_rest()
        check_state(self._model, session.state)
        row = Row(session, params or SamplingParams(), self._model.tokenizer)
        with self._lock:
            session.require_rest()
            row.index = self._added
            self._added += 1
            if row.left:
                session.running = True
                self._waiting.append(row)
        return row.index

    def cancel(self, index: int) -> None:
        """Let a session leave where it is; one that is not here any more is no error."""
        with self._lock:
            self._settle()
            for row in (*self._running, *self._waiting):
                row.session.running &= row.index != index
            self._waiting = deque(row for row in self._waiting if row.index != index)
            self._running = [row for row in self._running if row.index != index]

    def step(self) -> list[Piece]:
        """Add one token to each running session.

        Should it be interrupted (Ctrl-C), each session is whole, with the token or without it.

        Returns:
            a piece for each; those with equal parameters in the order in which they were added.

        Raises:
            NotFiniteError: the model's logits for one session are NaN or infinite. It leaves without the
                token; the others are where they were, and the next step goes on with them.
            RuntimeError: another thread is stepping.
        """
        if self._stepping:
            raise RuntimeError("another thread is stepping this engine; the others may add and cancel")
        with self._lock:
            try:
                self._stepping = True
                return self._step()
            finally:
                self._stepping = False

    def close(self) -> None:
        """Let every session leave where it is."""
        with self._lock:
            self._settle()
            for row in (*self._running, *self._waiting):
                row.session.running = False
            self._waiting.clear()
            self._running.clear()

    def _step(self) -> list[Piece]:
        if self._stepper is None or (self._waiting and len(self._running) < self._max_batch):
            self._settle()
            self._stepper = self._regroup()
        if self._stepper is None:
            return []
        pieces: list[Piece] = []
        stepped = False
        try:
            logits = self._stepper.step([row.session.token for row in self._running])
            stepped = True
            for group in self._groups:  # all before any generator draws: a failure changes no other text
                group.weigh(logits)
            tokens = [token for group in self._groups for token in group.choose()]
            # All sessions first, so that each is whole should the reader of the pieces break off.
            for row, token in zip(self._running, tokens, strict=True):
                pieces.append(row.take(token))
        except BaseException:
            for row in self._running[len(pieces) :]:
                row.rewinds = stepped
            self._settle()
            self._running = [row for row in self._running if not row.finished]
            raise
        for group in self._groups:
            group.add_log_probabilities(pieces, logits)
        if any(row.finished for row in self._running):
            self._settle()
            self._running = [row for row in self._running if not row.finished]
        return pieces

    def _settle(self) -> None:
        """Give the sessions their states; some did not take the token of the last step."""
        if self._stepper is None:
            return
        after = before = self._stepper.state()
        if any(row.rewinds for row in self._running):
            self._stepper.undo()
            before = self._stepper.state()
        for number, row in enumerate(self._running):
            row.session.state = state_of(self._model, before if row.rewinds else after, number)
            row.session.running = not row.finished
            row.rewinds = False
        self._stepper = None

    def _regroup(self) -> Stepper | None:
        """Let waiting sessions enter; rows of equal parameters stand together."""
        while self._waiting and len(self._running) < self._max_batch:
            self._running.append(self._waiting.popleft())
        by_params: dict[SamplingParams, list[Row]] = {}
        for row in self._running:
            by_params.setdefault(row.params, []).append(row)
        self._running, self._groups = [], []
        for rows in by_params.values():
            self._groups.append(Group(rows, len(self._running), self._model.tokenizer))
            self._running += rows
        if not self._running:
            return None
        return self._model.stepper(join_states(self._model, [row.session.state for row in self._running]))
