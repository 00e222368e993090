"""The engine: one batch that sessions enter and leave at any step.

Each session brings its own parameters and draws from its own generator, and no choice looks at another
session: whatever the others do, its tokens are those that it has alone (exact in fp32). A server is a loop
around :meth:`Engine.step`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_runtime.filters import Logits, log_probabilities
from lm_runtime.model import StepModel, join_states, state_of
from lm_runtime.sampling import Sampler, SamplingParams, look_back
from lm_runtime.session import Session

if TYPE_CHECKING:
    from lm_runtime.constraint import Pattern
    from lm_runtime.stepper import Stepper
    from lm_runtime.tokenizer import Tokenizer


@dataclass(slots=True)
class Piece:
    """What one step added to one sequence."""

    index: int
    """Which sequence, counted from 0."""
    text: str
    """The text that became certain; may be empty."""
    token: int
    """The token's id."""
    finish: str | None = None
    """Why the sequence ended, on its last piece: ``length``, ``stop``, ``regex`` (the text matches and ends),
    or ``stuck`` (no token is allowed; this one is not part of the text)."""
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

        Returns:
            the index that its pieces have: 0 for the first session added, and so on.

        Raises:
            ValueError: the parameters do not fit the vocabulary, or the regular expression is none.
        """
        row = _Row(self._added, session, params or SamplingParams(), self._model.tokenizer)
        self._added += 1
        if row.left:
            self._waiting.append(row)
        return row.index

    def cancel(self, index: int) -> None:
        """Let a session leave where it is; one that is not here any more is no error."""
        self._settle()
        self._waiting = deque(row for row in self._waiting if row.index != index)
        self._running = [row for row in self._running if row.index != index]

    def step(self) -> list[Piece]:
        """Add one token to each running session.

        Returns:
            a piece for each; those with equal parameters in the order in which they were added.
        """
        if self._stepper is None or (self._waiting and len(self._running) < self._max_batch):
            self._settle()
            self._stepper = self._regroup()
        if self._stepper is None:
            return []
        logits = self._stepper.step([row.session.token for row in self._running])
        # All sessions first, so that each is whole should the reader of the pieces break off.
        pieces = [piece for group in self._groups for piece in group.choose(logits)]
        if any(row.finished for row in self._running):
            self._settle()
            self._running = [row for row in self._running if not row.finished]
        return pieces

    def close(self) -> None:
        """Let every session leave where it is."""
        self._settle()
        self._waiting.clear()
        self._running.clear()

    def _settle(self) -> None:
        """Give the sessions their states."""
        if self._stepper is not None:
            state = self._stepper.state()
            for number, row in enumerate(self._running):
                row.session.state = state_of(self._model, state, number)
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

    def choose(self, logits: Logits) -> list[Piece]:
        """A token for each row, of the logits ``(batch, vocab)`` of the whole batch."""
        own = logits[self._slice]
        weighed = own
        if self._looks_back:
            weighed = np.stack([row.look_back(values) for row, values in zip(self._rows, own, strict=True)])
        self._sampler.weigh(weighed)
        tokens = self._sampler.choose(self._generators)
        pieces = [row.take(token) for row, token in zip(self._rows, tokens, strict=True)]
        if self._params.logprobs is not None:
            for piece, values in zip(pieces, own, strict=True):
                _report(piece, log_probabilities(values), self._params.logprobs)
        return pieces


def _report(piece: Piece, values: NDArray[np.float64], alternatives: int) -> None:
    piece.log_probability = float(values[piece.token])
    best = np.argsort(-values, kind="stable")[:alternatives].tolist() if alternatives else []
    piece.alternatives = tuple((token, float(values[token])) for token in best)


class _Row:
    """A session in the batch, and how much of its text is still to come."""

    def __init__(self, index: int, session: Session, params: SamplingParams, tokenizer: Tokenizer) -> None:
        params.check_ids(tokenizer.vocab_size)
        self.index = index
        self.session = session
        self.params = params
        self.left = params.max_tokens
        self.finished = False
        self._tokenizer = tokenizer
        self._banned = _spellings(params.banned, tokenizer)
        self._matcher = None
        if params.regex is not None:
            line_start = session.token == tokenizer.eos_id
            self._matcher = _pattern(params.regex, tokenizer).matcher(line_start)
        self._end: int | None = None  # the token that would end a text that matches
        self._stuck = False
        self._is_bounded = bool(params.stop) or params.looks_back

    def look_back(self, logits: Logits) -> Logits:
        """The row's logits ``(vocab,)`` by all that depends on its text."""
        eos_id, unk_id = self._tokenizer.eos_id, self._tokenizer.unk_id
        allowed = None
        if self._matcher is not None:
            allowed = self._matcher.allowed().copy()
            # A line's end is the model's own sign that a text ends.
            self._end = eos_id if self._matcher.complete and not allowed[eos_id] else None
            allowed[eos_id] |= self._end is not None
        result = look_back(logits, self.session.history, self.params, banned=self._banned, allowed=allowed)
        if unk_id is not None and not self.params.allow_unk:
            result[unk_id] = -np.inf
        self._stuck = bool(np.isneginf(result).all())
        if self._stuck:
            result[eos_id] = 0
        return result

    def take(self, token: int) -> Piece:
        """Add ``token`` to the text."""
        session = self.session
        session.token = token
        session.position += 1
        session.history.push(token)
        text = session.decoder.push(token)
        self.left -= 1
        finish = None if self.left else "length"
        if self._is_bounded:
            text, finish = self._bound(token, text, finish)
        self.finished = finish is not None
        return Piece(self.index, text, token, finish)

    def _bound(self, token: int, text: str, finish: str | None) -> tuple[str, str | None]:
        """What is shown of ``text`` and why it ends, by constraint and stop strings."""
        if self._stuck:
            text, finish = "", "stuck"
        elif self._matcher is not None and token == self._end:
            text, finish = "", "regex"
        elif self._matcher is not None:
            self._matcher.push(token)
            finish = "regex" if self._matcher.finished else finish
        if self.params.stop:
            text, stopped = self.session.stops.push(text, self.params.stop)
            finish = "stop" if stopped else finish
        return text, finish


@lru_cache(maxsize=64)
def _pattern(regex: str, tokenizer: Tokenizer) -> Pattern:
    from lm_runtime.constraint import Pattern  # needs an extra, and is not always needed

    return Pattern(regex, tokenizer)


def _spellings(texts: Iterable[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The sequences of ids that spell ``texts``, within a line and behind a space."""
    spaced = [f" {text}" for text in texts] if tokenizer.kind in ("bpe", "other") else []
    sequences = (tuple(tokenizer.encode(text)) for text in (*texts, *spaced))
    return [sequence for sequence in dict.fromkeys(sequences) if sequence]
