"""Beam search: the most probable continuations that a search of fixed width finds.

Every step reads one token of each live beam in one call of the model. The probabilities are the model's own:
no temperature, filter or penalty applies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.models.state import take_states
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.settings import check_number
from lm_runtime.softmax import log_softmax

_MOST_PENALTY = 10


@dataclass(frozen=True)
class BeamHypothesis:
    """One text that the search has found."""

    text: str
    """What continues the prompt, without the line break that ends it."""
    tokens: tuple[int, ...]
    """The ids; the last one is ``<eos>``, unless the text was cut at ``max_tokens``."""
    log_probability: float
    """Of all ``tokens`` after the prompt, natural logarithm."""
    score: float
    """``log_probability / len(tokens) ** length_penalty``."""


@dataclass(frozen=True)
class _Beam:
    tokens: tuple[int, ...]
    log_probability: float


def beam_search(
    model: StepModel,
    prompt: str | Session = "",
    *,
    beams: int = 4,
    max_tokens: int = 50,
    length_penalty: float = 1.0,
    allow_unk: bool = False,
) -> list[BeamHypothesis]:
    """Search for the continuations of the highest score, up to the line's end.

    The meaning is that of Hugging Face ``transformers`` with ``early_stopping=False``. Each step ranks all
    continuations of the live beams by probability. Of the best ``beams``, those that end with ``<eos>`` are
    finished; the best ``beams`` of the others live on. At ``max_tokens`` the best ``beams`` are finished as
    they are. Among equals the beam that ranked higher comes first, then the token of smaller id.

    The search ends when ``beams`` texts are finished and the most probable live beam, scored at the length
    that it has, is no better than the worst of them. Up to a ``length_penalty`` of 0 no later text could
    have been better; above, a longer text might have been, since its score is divided by more.

    With one beam the text is the greedy one. More beams usually find a text of a better score, but not
    always.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: what the texts continue; a session stays as it is.
        beams: the number that live on at each step, and the most that are returned.
        max_tokens: the most tokens of a text, ``<eos>`` included.
        length_penalty: above 0 it favours long texts, below 0 short ones.
        allow_unk: whether ``<unk>`` may come in a text.

    Returns:
        the texts found, best first.

    Raises:
        ValueError: an argument is out of its range.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    check_number("beams", beams, int, low=1)
    check_number("max_tokens", max_tokens, int, low=1)
    check_number("length_penalty", length_penalty, float, low=-_MOST_PENALTY, high=_MOST_PENALTY)
    session = prompt if isinstance(prompt, Session) else Session.start(model, prompt)
    session.require_rest()
    eos_id = model.tokenizer.eos_id
    unk_id = None if allow_unk else model.tokenizer.unk_id
    state = session.state
    read = [session.token]
    live = [_Beam((), 0.0)]
    finished: list[BeamHypothesis] = []
    for length in range(1, max_tokens + 1):
        logits, state = model.step(np.array(read, dtype=np.int64)[:, None], state)
        scores = log_softmax(logits[:, 0])  # (beams, vocab)
        if np.isnan(scores).any():
            raise NotFiniteError(0)
        if unk_id is not None:
            scores[:, unk_id] = -math.inf
        scores += np.array([beam.log_probability for beam in live])[:, None]
        # Each beam has one <eos>, so the best `beams` that do not end are among these.
        ranked = _best(scores.ravel(), beams + len(live))
        rows: list[int] = []
        survivors: list[_Beam] = []
        for rank, candidate in enumerate(ranked):
            row, token = divmod(candidate, scores.shape[1])
            beam = _Beam((*live[row].tokens, token), float(scores[row, token]))
            if rank < beams and (token == eos_id or length == max_tokens):
                finished.append(_hypothesis(session, beam, eos_id, length_penalty))
            elif token != eos_id and len(survivors) < beams:
                rows.append(row)
                survivors.append(beam)
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]
        if not survivors:
            break
        best_live = survivors[0].log_probability / length**length_penalty
        if len(finished) == beams and best_live <= finished[-1].score:
            break
        live, read = survivors, [beam.tokens[-1] for beam in survivors]
        state = take_states(model, state, rows)
    return finished


def _hypothesis(session: Session, beam: _Beam, eos_id: int, length_penalty: float) -> BeamHypothesis:
    decoder = session.decoder.copy()
    shown = beam.tokens[:-1] if beam.tokens[-1] == eos_id else beam.tokens
    text = "".join(decoder.push(token) for token in shown) + decoder.flush()
    score = beam.log_probability / len(beam.tokens) ** length_penalty
    return BeamHypothesis(text, beam.tokens, beam.log_probability, score)


def _best(scores: NDArray[np.float64], count: int) -> list[int]:
    """The indices of the ``count`` largest ``scores`` that are possible, among equals the smaller first."""
    if count < scores.size:
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    else:
        candidates = np.arange(scores.size)
    candidates = candidates[scores[candidates] > -math.inf]
    order = np.argsort(-scores[candidates], kind="stable")[:count]
    return [int(candidate) for candidate in candidates[order]]
