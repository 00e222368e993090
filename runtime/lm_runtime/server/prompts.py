"""The prompts of a request, read; they become the texts to generate. Knows nothing about HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lm_runtime.generation.complete import Request
from lm_runtime.generation.rows import most_probable
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import State, StepModel
from lm_runtime.models.state import READ_TOKENS
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.server.errors import ApiError, invalid, refusing
from lm_runtime.server.lane import Text
from lm_runtime.server.limits import Limits
from lm_runtime.server.states import States
from lm_runtime.server.wanted import FIELDS, MOST_LOGPROBS, Prompt, Wanted
from lm_runtime.softmax import log_softmax
from lm_runtime.wire import check_fits

_SCORED_LOGITS = 1 << 21
"""The most logits of a prompt that are held at a time, where they are asked for."""


@dataclass
class Scores:
    """Tokens with their log-probabilities, as they come."""

    tokens: list[int] = field(default_factory=list)
    """The ids."""
    values: list[float | None] = field(default_factory=list)
    """Of each its log-probability; None for the one that every text begins after."""
    tops: list[list[tuple[int, float]] | None] = field(default_factory=list)
    """Of each the most probable ones in its place."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that has been read."""

    session: Session
    """After it."""
    ids: Sequence[int]
    """Its tokens, as they were given."""
    text: str
    """Its text."""
    scores: Scores | None
    """Its log-probabilities, if they were asked for."""


def read_prompts(model: StepModel, wanted: Wanted, states: States, limits: Limits) -> list[ReadPrompt]:
    """Read the prompts of a request; takes as long as that takes.

    Raises:
        ApiError: a prompt or the state cannot be used.
    """
    tokenizer = model.tokenizer
    start = Session.start(model) if wanted.state is None else states.read(wanted.state, model)
    with refusing(FIELDS):
        ids = [
            tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
            for prompt in wanted.prompts
        ]
        total = sum(map(len, ids))
        if total > limits.max_prompt:
            raise ApiError(
                400,
                f"prompt must have at most {limits.max_prompt} tokens, got {total}",
                param="prompt",
                code="context_length_exceeded",
            )
        if wanted.params.regex is not None:
            for prompt in wanted.prompts:
                text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
                check_fits(Request(text, wanted.params), tokenizer)
    scored = sum(map(len, ids)) * ((wanted.params.logprobs or 0) + 1)
    if wanted.echo and wanted.params.logprobs is not None and scored > MOST_LOGPROBS:
        raise invalid(f"logprobs ask for {scored} numbers, more than {MOST_LOGPROBS}", "logprobs")
    return [
        _read(model, start.copy(), prompt, own, wanted)
        for prompt, own in zip(wanted.prompts, ids, strict=True)
    ]


def _read(
    model: StepModel, session: Session, prompt: Prompt, ids: Sequence[int], wanted: Wanted
) -> ReadPrompt:
    fresh = session.position == 0 and wanted.state is None
    # A session has read one <eos>; ids may begin with it, as other programs expect of a first token.
    begins = fresh and not isinstance(prompt, str) and ids[:1] == (model.tokenizer.eos_id,)
    rest = ids[1:] if begins else ids
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(rest) if wanted.echo else ""
    scores = None
    if wanted.echo and wanted.params.logprobs is not None:
        scores = Scores([ids[0]], [None], [None]) if begins else Scores()
        if rest:
            session.place(model, rest, _score(model, session, rest, wanted.params.logprobs, scores))
    else:
        session.read(model, rest)
    return ReadPrompt(session, ids, text, scores)


def _score(model: StepModel, session: Session, ids: Sequence[int], k: int, scores: Scores) -> State:
    """Add the log-probabilities of ``ids`` to ``scores``; return the state after all but the last."""
    state, previous = session.state, session.token
    size = max(1, min(READ_TOKENS, _SCORED_LOGITS // model.tokenizer.vocab_size))
    for start in range(0, len(ids), size):
        targets = ids[start : start + size]
        logits, state = model.step(np.array([[previous, *targets[:-1]]], dtype=np.int64), state)
        previous = targets[-1]
        for token, values in zip(targets, log_softmax(logits[0]), strict=True):
            if not np.isfinite(values[token]):
                raise NotFiniteError(0)
            scores.tokens.append(token)
            scores.values.append(float(values[token]))
            scores.tops.append(_top(values, k))
    return state


def _top(values: NDArray[np.float64], k: int) -> list[tuple[int, float]]:
    return [(token, float(values[token])) for token in most_probable(values, k)]


def seed_of(wanted: Wanted) -> int | None:
    """The seed of a request's texts, drawn if it has none; None where a state brings its generator."""
    return secrets.randbelow(1 << 32) if wanted.seed is None and wanted.state is None else wanted.seed


def texts_of(prompts: Sequence[ReadPrompt], wanted: Wanted, seed: int | None) -> Iterator[Text]:
    """The texts of a request, in the order of its choices: prompt by prompt."""
    for prompt in prompts:
        for index in range(wanted.n):
            # A state without a seed brings its own generator.
            session = prompt.session.copy() if seed is None else prompt.session.fork(seed=seed, index=index)
            yield Text(session, wanted.params, keeps=wanted.return_state)
