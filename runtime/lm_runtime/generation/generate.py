"""Generation: texts from a prompt, as :class:`lm_runtime.generation.engine.Engine` runs them.

Every sequence draws from a generator of its own, made from (seed, index): sample 3 of a batch of 8 has the
tokens that it has alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lm_runtime.generation.engine import Engine
from lm_runtime.generation.rows import Piece
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.settings import check_number
from lm_runtime.softmax import log_softmax


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
        prompt: what the text continues; the text does not repeat it. A session goes on where it is, with
            its own generator, and is where the text ends afterwards.
        params: how to choose; by default as :class:`SamplingParams`.
        seed: of the generator, at least 0.
        index: which of the samples of that seed.

    Yields:
        text as it becomes certain.

    Raises:
        ValueError: an argument is out of its range.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    check_number("seed", seed, int, low=0)
    check_number("index", index, int, low=0)
    session = prompt if isinstance(prompt, Session) else Session.start(model, prompt, seed=seed, index=index)
    for piece in generate_batch(model, [session], params):
        text = piece.text + (session.last_words(piece.finish) if session is not prompt else "")
        if text:
            yield text


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
    check_number("seed", seed, int, low=0)
    for index in indices:
        check_number("index", index, int, low=0)
    first = prompt if isinstance(prompt, Session) else Session.start(model, prompt, seed=seed)
    sessions = [first.fork(seed=seed, index=index) for index in indices]
    for piece in generate_batch(model, sessions, params):
        text = piece.text + sessions[piece.index].last_words(piece.finish)
        yield replace(piece, index=indices[piece.index], text=text)


def generate_batch(
    model: StepModel, sessions: Sequence[Session], params: SamplingParams | None = None
) -> Iterator[Piece]:
    """Continue several sessions at once, whatever their prompts and lengths.

    A session that has ended leaves the batch, and the others go on without it. Each session is where its
    text ends afterwards, also when the iteration is broken off. What it holds back of an unfinished
    character or of the beginning of a stop string stays in it, for the next piece or for
    :meth:`Session.flush`.

    Yields:
        a piece for each session and step, in the order of ``sessions``.
    """
    if not sessions:
        return
    engine = Engine(model, max_batch=len(sessions))
    for session in sessions:
        engine.add(session, params)
    try:
        while len(engine):
            yield from engine.step()
    finally:
        engine.close()


def suggest(
    model: StepModel,
    prompt: str | Session = "",
    k: int = 5,
    *,
    allow_unk: bool = False,
    line_breaks: bool = True,
) -> list[tuple[str, float]]:
    """The most probable next tokens.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: the text so far; a session stays as it is.
        k: how many, from 1 to the vocabulary's size.
        allow_unk: whether ``<unk>`` may be one of them.
        line_breaks: whether ``<eos>`` may be.

    Returns:
        what each would add to the text (a line break for ``<eos>``) and its probability, the most probable
        first. The probabilities are the model's, those of the tokens left out included in their sum of 1.

    Raises:
        ValueError: k is out of its range.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    check_number("k", k, int, low=1, high=model.tokenizer.vocab_size)
    session = prompt if isinstance(prompt, Session) else Session.start(model, prompt)
    session.require_rest()
    probabilities = np.exp(log_softmax(model.stepper(session.state).step([session.token])[0]))
    if not np.isfinite(probabilities).all():
        raise NotFiniteError(0)
    order = np.argsort(-probabilities, kind="stable")
    left_out = {
        None if allow_unk else model.tokenizer.unk_id,
        None if line_breaks else model.tokenizer.eos_id,
    }
    best = [token for token in order.tolist() if token not in left_out][:k]

    def text(token: int) -> str:
        decoder = session.decoder.copy()
        return decoder.push(token) + decoder.flush()

    return [(text(token), float(probabilities[token])) for token in best]
