"""The rows of a batch: one text each, with its parameters, its processors, and where it ends.

Knows nothing about how a batch is run: see :mod:`lm_runtime.generation.engine`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lm_runtime.generation.session import Session
from lm_runtime.sampling.constraint import compiled
from lm_runtime.sampling.filters import Logits
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.processors import Constraint, Processor, processors_of
from lm_runtime.sampling.sampler import NotFiniteError, Sampler
from lm_runtime.settings import short
from lm_runtime.softmax import log_softmax
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
    alternatives: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """The most probable tokens and their log-probabilities, best first."""

    def __repr__(self) -> str:
        finish = f", finish={self.finish!r}" if self.finish else ""
        return f"Piece({short(self.text)}, index={self.index}, token={self.token}{finish})"


def most_probable(values: NDArray[np.float64], k: int) -> list[int]:
    """The ids of the k largest of ``values`` ``(vocab,)``, the largest first, of equal ones the lower id."""
    if 0 < k < values.size:
        least = np.partition(values, -k)[-k]
        ids = np.flatnonzero(values >= least)
    else:
        ids = np.arange(values.size)
    order: list[int] = ids[np.argsort(-values[ids], kind="stable")][:k].tolist()
    return order


class Row:
    """A session in the batch, and how much of its text is still to come."""

    def __init__(self, session: Session, params: SamplingParams, tokenizer: Tokenizer) -> None:
        params.check_ids(tokenizer.vocab_size)
        self.index = 0
        self.session = session
        self.params = params
        self.left = params.max_tokens
        self.finished = False
        self.rewinds = False  # does not take the token of this step
        self._eos_id = tokenizer.eos_id
        self._processors: list[Processor] = processors_of(params, tokenizer)
        self._constraint: Constraint | None = None
        if params.regex is not None:
            matcher = compiled(params.regex, tokenizer).matcher(session.token == tokenizer.eos_id)
            self._constraint = Constraint(matcher, tokenizer.eos_id)
            self._processors.append(self._constraint)
        self._stuck = False
        self._scans_stops = bool(params.stop or session.stops.held)

    @property
    def looks_back(self) -> bool:
        """Whether its logits depend on its text."""
        return bool(self._processors)

    def process(self, logits: Logits) -> Logits:
        """The row's logits ``(vocab,)`` by all that depends on its text."""
        history = self.session.history
        for process in self._processors:
            logits = process(logits, history)
        self._stuck = logits.item(logits.argmax()) == -np.inf
        if self._stuck:
            logits[self._eos_id] = 0  # something to choose, which is not taken
        return logits

    def take(self, token: int) -> Piece:
        """Add ``token`` to the text, or end the text without it."""
        finish = None
        if self._processors:
            ends, finish = self._follow(token)
            if ends:
                self.finished = self.rewinds = True
                return Piece(self.index, "", None, finish)
        session = self.session
        session.token = token
        session.position += 1
        session.history.push(token)
        text = session.decoder.push(token)
        self.left -= 1
        if finish is None and not self.left:
            finish = "length"
        if self._scans_stops:
            text, stopped = session.stops.push(text, self.params.stop)
            finish = "stop" if stopped else finish
        self.finished = finish is not None
        return Piece(self.index, text, token, finish)

    def _follow(self, token: int) -> tuple[bool, str | None]:
        """Whether the text ends before ``token``, and why it ends there or with it."""
        if self._stuck:
            return True, "stuck"
        if self._constraint is None:
            return False, None
        if self._constraint.ends_before(token):
            return True, "regex"
        try:
            return False, "regex" if self._constraint.take(token) else None
        except ValueError:
            return True, "stuck"


class Group:
    """The rows of a batch that have the same parameters, one after the other."""

    def __init__(self, rows: list[Row], start: int, tokenizer: Tokenizer) -> None:
        self._rows = rows
        self._slice = slice(start, start + len(rows))
        self._logprobs = rows[0].params.logprobs
        params = rows[0].params
        unk_id = None if params.allow_unk else tokenizer.unk_id
        self._sampler = Sampler(params, tokenizer.vocab_size, len(rows), unk_id)
        self._generators = [row.session.generator for row in rows]
        self._looks_back = rows[0].looks_back

    def weigh(self, logits: Logits) -> None:
        """Take the logits ``(batch, vocab)`` of the whole batch.

        Raises:
            NotFiniteError: those of a row are NaN or infinite; that row is finished.
        """
        own = logits if len(logits) == len(self._rows) else logits[self._slice]
        if self._looks_back:
            own = np.stack([row.process(values) for row, values in zip(self._rows, own, strict=True)])
        try:
            self._sampler.weigh(own)
        except NotFiniteError as error:
            row = self._rows[error.row]
            row.finished = True
            raise NotFiniteError(row.index, f"text {row.index} ends: {error}") from None

    def choose(self) -> list[int]:
        """A token for each row."""
        return self._sampler.choose(self._generators)

    def add_log_probabilities(self, pieces: list[Piece], logits: Logits) -> None:
        """Set log-probabilities into the group's own of ``pieces``, if they were asked for."""
        if self._logprobs is None:
            return
        for number in range(self._slice.start, self._slice.stop):
            token = pieces[number].token
            if token is not None:
                values = log_softmax(logits[number])
                order = most_probable(values, self._logprobs)
                pieces[number] = replace(
                    pieces[number],
                    log_probability=float(values[token]),
                    alternatives=tuple((other, float(values[other])) for other in order),
                )
