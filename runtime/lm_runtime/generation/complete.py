"""Completions: many prompts, or many texts of one prompt, each as one value, in order.

Knows nothing about files or JSON: see :mod:`lm_runtime.wire`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lm_runtime.generation.engine import Engine
from lm_runtime.generation.rows import Piece
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.settings import check, setting, short

_PROMPTS_KEPT = 16
_AHEAD = 16  # batches that may be finished before the first text that is not


@dataclass(frozen=True)
class Request:
    """One text that is asked for.

    Raises:
        ValueError: a value has the wrong type or range.
    """

    prompt: str = setting("", help="What it continues.")
    params: SamplingParams = field(default_factory=SamplingParams)
    """How its tokens are chosen, and when it ends."""
    seed: int = setting(0, help="Of its generator.", low=0)
    index: int = setting(0, help="Which of the samples of that seed.", low=0)

    def __post_init__(self) -> None:
        check(self)

    def __repr__(self) -> str:
        return f"Request({short(self.prompt)}, {self.params}, seed={self.seed}, index={self.index})"


@dataclass(frozen=True)
class Completion:
    """One text."""

    text: str
    """The text, without its prompt."""
    pieces: tuple[Piece, ...]
    """Its tokens, with log-probabilities where they were asked for."""
    finish: str
    """Why it ended, as :attr:`lm_runtime.generation.rows.Piece.finish`."""

    def __repr__(self) -> str:
        return f"Completion({short(self.text)}, {len(self.pieces)} tokens, finish={self.finish!r})"


def complete(model: StepModel, requests: Iterable[Request], *, max_batch: int = 32) -> Iterator[Completion]:
    """Complete many requests, as one batch that the next ones enter as others end.

    Requests are taken as there is room for them, and a prompt that comes again soon is read once. A text has
    the tokens that it has alone (in fp32).

    Args:
        model: from :func:`lm_runtime.load`.
        requests: may be endless.
        max_batch: the most texts side by side; they are what takes memory.

    Yields:
        the completions, in the order of the requests.

    Raises:
        ValueError: a request's parameters do not fit the model's vocabulary.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    engine = Engine(model, max_batch=max_batch)
    prompts: OrderedDict[str, Session] = OrderedDict()
    open_: OrderedDict[int, _Open] = OrderedDict()  # in the order of the requests
    source, more = iter(requests), True
    while more or open_:
        while more and len(engine) < max_batch and len(open_) < _AHEAD * max_batch:
            request = next(source, None)
            if request is None:
                more = False
                break
            session = _read_prompt(model, prompts, request.prompt).fork(
                seed=request.seed, index=request.index
            )
            open_[engine.add(session, request.params)] = _Open(session, request.params.max_tokens)
        for piece in engine.step():
            open_[piece.index].take(piece)
        while open_ and (first := next(iter(open_.values()))).finish:
            open_.popitem(last=False)
            yield Completion("".join(first.text), tuple(first.pieces), first.finish)


def _read_prompt(model: StepModel, prompts: OrderedDict[str, Session], prompt: str) -> Session:
    if prompt not in prompts:
        prompts[prompt] = Session.start(model, prompt)
        if len(prompts) > _PROMPTS_KEPT:
            prompts.popitem(last=False)
    prompts.move_to_end(prompt)
    return prompts[prompt]


class _Open:
    """A text that is not finished."""

    def __init__(self, session: Session, max_tokens: int) -> None:
        self.session = session
        self.text: list[str] = []
        self.pieces: list[Piece] = []
        self.finish = "" if max_tokens else "length"

    def take(self, piece: Piece) -> None:
        if piece.token is not None:
            self.pieces.append(piece)
        self.text.append(piece.text + self.session.last_words(piece.finish))
        self.finish = piece.finish or ""
