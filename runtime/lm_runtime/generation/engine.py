"""The engine: one batch that sessions enter and leave at any step.

Each session brings its own parameters and draws from its own generator, and no choice looks at another
session: whatever the others do, its tokens are those that it has alone (exact in fp32). A server is a loop
around :meth:`Engine.step`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.models.state import check_state, join_states, state_of
from lm_runtime.sampling.filters import Logits
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.sampler import Sampler, look_back
from lm_runtime.softmax import log_softmax

if TYPE_CHECKING:
    from lm_runtime.models.protocol import Stepper
    from lm_runtime.sampling.constraint import Matcher, Pattern
    from lm_runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to one sequence."""

    index: int
    """Which sequence, counted from 0."""
    text: str
    """The text that became certain; may be empty."""
    token: int | None
    """The token's id; None where the text ended without one more."""
    finish: str | None = None
    """Why the sequence ended, on its last piece: ``length``, ``stop``, ``regex`` (the text matches and ends),
    or ``stuck`` (no token is allowed, or the regular expression became too complex)."""
    log_probability: float | None = None
    """The model's, before temperature and penalties; None where it was not asked for."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most probable tokens and their log-probabilities, best first."""


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

    Args:
        model: from :func:`lm_runtime.load`.
        max_batch: the most sessions in one step; more wait, first come, first served.
    """

    def __init__(self, model: StepModel, *, max_batch: int = 64) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self._model = model
        self._max_batch = max_batch
        self._added = 0
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._groups: list[_Group] = []
        self._stepper: Stepper | None = None  # None: the sessions hold their states themselves

    def __len__(self) -> int:
        """How many sessions run or wait."""
        return len(self._running) + len(self._waiting)

    def add(self, session: Session, params: SamplingParams | None = None) -> int:
        """Let a session enter at the next step, or as soon as there is room.

        One that is asked for no tokens at all never enters.

        Returns:
            the index that its pieces have: 0 for the first session added, and so on.

        Raises:
            ValueError: the parameters do not fit the vocabulary, the regular expression is none, the session
                is in an engine already, or it is another model's.
        """
        session.require_rest()
        check_state(self._model, session.state)
        row = _Row(self._added, session, params or SamplingParams(), self._model.tokenizer)
        self._added += 1
        if row.left:
            session.running = True
            self._waiting.append(row)
        return row.index

    def cancel(self, index: int) -> None:
        """Let a session leave where it is; one that is not here any more is no error."""
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
        """
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
            tokens = [token for group in self._groups for token in group.choose(logits)]
            # All sessions first, so that each is whole should the reader of the pieces break off.
            for row, token in zip(self._running, tokens, strict=True):
                pieces.append(row.take(token))
        except BaseException:
            for row in self._running[len(pieces) :]:
                row.rewinds = stepped
            self._settle()
            raise
        for group in self._groups:
            group.report(pieces, logits)
        if any(row.finished for row in self._running):
            self._settle()
            self._running = [row for row in self._running if not row.finished]
        return pieces

    def close(self) -> None:
        """Let every session leave where it is."""
        self._settle()
        for row in (*self._running, *self._waiting):
            row.session.running = False
        self._waiting.clear()
        self._running.clear()

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
        by_params: dict[SamplingParams, list[_Row]] = {}
        for row in self._running:
            by_params.setdefault(row.params, []).append(row)
        self._running, self._groups = [], []
        for rows in by_params.values():
            self._groups.append(_Group(rows, len(self._running), self._model.tokenizer))
            self._running += rows
        if not self._running:
            return None
        return self._model.stepper(join_states(self._model, [row.session.state for row in self._running]))


class _Group:
    """The rows of a batch that have the same parameters, one after the other."""

    def __init__(self, rows: list[_Row], start: int, tokenizer: Tokenizer) -> None:
        self._rows = rows
        self._slice = slice(start, start + len(rows))
        self._params = params = rows[0].params
        unk_id = None if params.allow_unk else tokenizer.unk_id
        self._sampler = Sampler(params, tokenizer.vocab_size, len(rows), unk_id)
        self._generators = [row.session.generator for row in rows]
        self._looks_back = params.looks_back
        pairs = np.array(params.logit_bias, dtype=np.float64).reshape(-1, 2)
        self._bias = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.float32)

    def choose(self, logits: Logits) -> list[int]:
        """A token for each row, of the logits ``(batch, vocab)`` of the whole batch."""
        own = logits[self._slice]
        if self._looks_back:
            rows = zip(self._rows, own, strict=True)
            own = np.stack([row.look_back(values, self._bias) for row, values in rows])
        self._sampler.weigh(own)
        return self._sampler.choose(self._generators)

    def report(self, pieces: list[Piece], logits: Logits) -> None:
        """Set log-probabilities into the group's own of ``pieces``, if they were asked for."""
        if self._params.logprobs is None:
            return
        for number in range(self._slice.start, self._slice.stop):
            token = pieces[number].token
            if token is not None:
                values = log_softmax(logits[number])
                order = np.argsort(-values, kind="stable")[: self._params.logprobs].tolist()
                pieces[number] = replace(
                    pieces[number],
                    log_probability=float(values[token]),
                    alternatives=tuple((other, float(values[other])) for other in order),
                )


class _Row:
    """A session in the batch, and how much of its text is still to come."""

    def __init__(self, index: int, session: Session, params: SamplingParams, tokenizer: Tokenizer) -> None:
        params.check_ids(tokenizer.vocab_size)
        self.index = index
        self.session = session
        self.params = params
        self.left = params.max_tokens
        self.finished = False
        self.rewinds = False  # does not take the token of this step
        self._vocab_size, self._eos_id = tokenizer.vocab_size, tokenizer.eos_id
        self._unk_id = None if params.allow_unk else tokenizer.unk_id
        self._banned = spellings(params.banned, tokenizer)
        self._matcher = None
        if params.regex is not None:
            self._matcher = compiled(params.regex, tokenizer).matcher(session.token == tokenizer.eos_id)
        self._end: int | None = None  # the token that would end a text that matches
        self._stuck = False
        self._matched = False  # the text matches, and no longer one does
        self._is_bounded = bool(params.stop or session.stops.held) or params.looks_back

    def look_back(self, logits: Logits, bias: tuple[NDArray[np.int64], NDArray[np.float32]]) -> Logits:
        """The row's logits ``(vocab,)`` by all that depends on its text."""
        allowed = None
        if self._matcher is not None:
            allowed = self._allowed(self._matcher)
        history = self.session.history
        result = look_back(logits, history, self.params, bias=bias, banned=self._banned, allowed=allowed)
        if self._unk_id is not None:
            result[self._unk_id] = -np.inf
        self._stuck = bool(np.isneginf(result).all())
        if self._stuck:
            result[self._eos_id] = 0  # something to choose, which is not taken
        return result

    def _allowed(self, matcher: Matcher) -> NDArray[np.bool_]:
        try:
            allowed = matcher.allowed().copy()
        except ValueError:  # too complex by now
            return np.zeros(self._vocab_size, dtype=np.bool_)
        # A line's end is the model's own sign that a text ends.
        self._end = self._eos_id if matcher.complete and not allowed[self._eos_id] else None
        allowed[self._eos_id] |= self._end is not None
        return allowed

    def take(self, token: int) -> Piece:
        """Add ``token`` to the text, or end the text without it."""
        if self._is_bounded and (why := self._ends_without(token)):
            self.finished = self.rewinds = True
            return Piece(self.index, "", None, why)
        session = self.session
        session.token = token
        session.position += 1
        session.history.push(token)
        text = session.decoder.push(token)
        self.left -= 1
        finish = None if self.left else "length"
        if self._is_bounded:
            finish = "regex" if self._matched else finish
            if self.params.stop or session.stops.held:
                text, stopped = session.stops.push(text, self.params.stop)
                finish = "stop" if stopped else finish
        self.finished = finish is not None
        return Piece(self.index, text, token, finish)

    def _ends_without(self, token: int) -> str | None:
        """Why the text ends before ``token``; else the constraint follows it."""
        if self._stuck:
            return "stuck"
        if self._matcher is None:
            return None
        if token == self._end:
            return "regex"
        try:
            self._matcher.push(token)
            self._matched = self._matcher.finished
        except ValueError:
            return "stuck"
        return None


@lru_cache(maxsize=8)
def compiled(regex: str, tokenizer: Tokenizer) -> Pattern:
    """The regular expression, compiled for the tokenizer.

    Raises:
        ValueError: it is none.
    """
    from lm_runtime.sampling.constraint import Pattern  # needs an extra, and is not always needed

    return Pattern(regex, tokenizer)


def spellings(texts: Iterable[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The sequences of ids that spell ``texts``, within a line and behind a space.

    A text that the vocabulary cannot spell is never generated anyway.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for text in texts:
        for spelled in (text, f" {text}") if tokenizer.kind in ("bpe", "other") else (text,):
            ids = tuple(tokenizer.encode(spelled))
            if ids and (tokenizer.unk_id not in ids or text == tokenizer.tokens[tokenizer.unk_id or 0]):
                sequences[ids] = None
    return list(sequences)
