"""Generation: the loop that steps a model and chooses tokens.

Every sequence draws from a generator of its own, made from (seed, index), and no choice looks at
another sequence: sample 3 of a batch of 8 is, token for token, what it would be alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lm_runtime.model import StepModel, join_states, state_of
from lm_runtime.sampling import Sampler, SamplingParams
from lm_runtime.session import Session


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
    """Why the sequence ended, on its last piece: ``length`` or ``stop``."""


def generate(
    model: StepModel,
    prompt: str | Session = "",
    params: SamplingParams | None = None,
    *,
    seed: int = 0,
    index: int = 0,
) -> Iterator[str]:
    """Generate one text, piece by piece.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: what the text continues; the pieces do not repeat it. A session goes on where it is, with
            its own generator, and is where the text ends afterwards.
        params: how to choose; by default as :class:`SamplingParams`.
        seed: of the generator, at least 0.
        index: which of the samples of that seed.
    """
    session = prompt if isinstance(prompt, Session) else Session.start(model, prompt, seed=seed, index=index)
    for piece in generate_batch(model, [session], params):
        if piece.finish == "length" and session is not prompt:
            piece.text += session.flush()
        if piece.text:
            yield piece.text


def generate_samples(
    model: StepModel,
    prompt: str | Session = "",
    params: SamplingParams | None = None,
    *,
    seed: int = 0,
    indices: Sequence[int] = (0,),
) -> Iterator[Piece]:
    """Generate several texts from one prompt, as one batch; the prompt is read once.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: what the texts continue; a session that has read it is forked and stays as it is.
        params: how to choose.
        seed: of the generators.
        indices: which of the samples of that seed.

    Yields:
        a piece for each sample and step, in the order of ``indices``; its index is that of the sample.
    """
    first = prompt if isinstance(prompt, Session) else Session.start(model, prompt, seed=seed)
    sessions = [first.fork(seed=seed, index=index) for index in indices]
    for piece in generate_batch(model, sessions, params):
        if piece.finish == "length":
            piece.text += sessions[piece.index].flush()
        piece.index = indices[piece.index]
        yield piece


def generate_batch(
    model: StepModel, sessions: Sequence[Session], params: SamplingParams | None = None
) -> Iterator[Piece]:
    """Go on with several sessions at once, of whatever prompts and lengths.

    A session that has ended leaves the batch, and the others go on without it. Each session is where its
    text ends afterwards, also when the iteration is broken off. What it holds back of an unfinished
    character or of the beginning of a stop string stays in it, for the next piece or for
    :meth:`Session.flush`.

    Yields:
        a piece for each session and step, in the order of ``sessions``.
    """
    params = params or SamplingParams()
    unk_id = None if params.allow_unk else model.tokenizer.unk_id
    running = [_Row(number, session, params) for number, session in enumerate(sessions)]
    if not params.max_tokens:
        return
    while running:
        stepper = model.stepper(join_states(model, [row.session.state for row in running]))
        sampler = Sampler(params, model.tokenizer.vocab_size, len(running), unk_id)
        penalized = [row.session.seen for row in running] if params.repetition_penalty != 1 else []
        tokens = [row.session.token for row in running]
        generators = [row.session.generator for row in running]
        ended = False
        try:
            while not ended:
                sampler.weigh(stepper.step(tokens), penalized)
                tokens = sampler.choose(generators)
                # All sessions first, so that each is whole should the reader break off.
                pieces = [row.take(token) for row, token in zip(running, tokens, strict=True)]
                ended = any(row.finished for row in running)
                yield from pieces
        finally:
            state = stepper.state()
            for number, row in enumerate(running):
                row.session.state = state_of(model, state, number)
        running = [row for row in running if not row.finished]


def suggest(
    model: StepModel, prompt: str | Session = "", k: int = 5, *, allow_unk: bool = False
) -> list[tuple[str, float]]:
    """The most probable next tokens.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: the text so far; a session stays as it is.
        k: how many, from 1 to the vocabulary's size.
        allow_unk: whether ``<unk>`` may be one of them.

    Returns:
        what each would add to the text (a line break for ``<eos>``) and its probability, the most probable
        first. The probabilities are the model's, those of the tokens left out included in their sum of 1.

    Raises:
        ValueError: k is out of its range.
    """
    if not 1 <= k <= model.tokenizer.vocab_size:
        raise ValueError(f"k must be from 1 to {model.tokenizer.vocab_size}, got {k}")
    session = prompt if isinstance(prompt, Session) else Session.start(model, prompt)
    logits = model.stepper(session.state).step([session.token])[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    unk_id = None if allow_unk else model.tokenizer.unk_id
    best = [int(token) for token in order if token != unk_id][:k]

    def text(token: int) -> str:
        decoder = session.decoder.copy()
        return decoder.push(token) + decoder.flush()

    return [(text(token), float(probabilities[token])) for token in best]


class _Row:
    """A session in a batch, and how much of its text is still to come."""

    def __init__(self, number: int, session: Session, params: SamplingParams) -> None:
        self.number = number
        self.session = session
        self.finished = False
        self._left = params.max_tokens
        self._stops = params.stop

    def take(self, token: int) -> Piece:
        """Add ``token`` to the text."""
        session = self.session
        session.token = token
        session.position += 1
        session.seen.add(token)
        text = session.decoder.push(token)
        finish = None
        if self._stops:
            text, stopped = session.stops.push(text, self._stops)
            finish = "stop" if stopped else None
        self._left -= 1
        if not self._left and not finish:
            finish = "length"
        self.finished = finish is not None
        return Piece(self.number, text, token, finish)
