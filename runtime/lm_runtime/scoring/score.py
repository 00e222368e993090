"""Scoring: the probability that a model gives to a text.

Perplexity is ``exp`` of the mean natural-log loss over every token, ``<eos>`` included. The first token
is predicted from a zero state that has read one ``<eos>``; the state is carried through the whole text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError
from lm_runtime.models.protocol import DirectModel, StepModel
from lm_runtime.models.state import READ_TOKENS, initial_state
from lm_runtime.softmax import log_softmax_at
from lm_runtime.text_files import Fragments, read_fragments, whole_lines
from lm_runtime.tokenizer import count_words

_LARGEST_WORD_LOSS = 50.0
"""Nats: of a text whose words cost more on average, what stands between spaces is no words."""


def perplexity(loss: float) -> float:
    """``exp`` of a mean loss in nats; a loss whose ``exp`` is out of a float's range is taken as 700."""
    return math.exp(min(loss, 700.0))


@dataclass(frozen=True)
class Score:
    """The score that a model gives to a text."""

    log_probability: float
    """The sum over all tokens, natural logarithm."""
    tokens: int
    """How many tokens were predicted, ``<eos>`` included."""
    unknown: int
    """How many of them were ``<unk>``."""
    bytes: int
    """The text's length in UTF-8, a byte for each line break."""
    words: int
    """The words (:func:`lm_runtime.tokenizer.count_words`), and one more for each line's end."""

    def __add__(self, other: Score) -> Score:
        """The score of both texts, scored apart."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Score(*(mine + others for mine, others in pairs))

    @property
    def perplexity(self) -> float:
        """Per token."""
        return perplexity(-self.log_probability / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, where no token is ``<unk>``."""
        return -self.log_probability / math.log(2) / self.bytes

    @property
    def perplexity_per_word(self) -> float | None:
        """Comparable between tokenizers, where no token is ``<unk>``; None for a text without word breaks."""
        loss = -self.log_probability / self.words
        return perplexity(loss) if loss <= _LARGEST_WORD_LOSS else None


@dataclass
class TextCount:
    """Bytes and words of the fragments that pass through :meth:`count`."""

    bytes: int = 0
    words: int = 0

    def count(self, fragments: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """Pass ``fragments`` on and count them."""
        for text, ends in fragments:
            self.bytes += len(text.encode()) + ends
            self.words += count_words(text) + ends
            yield text, ends


def read_texts(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, each a text of its own.

    Raises:
        UnusableFileError: the file is missing, empty, or not UTF-8 text.
    """
    return text_lines(read_fragments(Path(path)), str(path))


def text_lines(fragments: Fragments, name: str) -> Iterator[str]:
    """The lines of the text ``name`` that comes in fragments, each a text of its own.

    Raises:
        UnusableFileError: there is none, or they cannot be read.
    """
    empty = True
    for line in whole_lines(fragments):
        empty = False
        yield line
    if empty:
        raise UnusableFileError(name, "empty: there is nothing to score")


TokenScores = Callable[[NDArray[np.int64], NDArray[np.float32]], None]


def score_file(model: StepModel, path: str | Path, *, each: TokenScores | None = None) -> Score:
    """Score a text file, in bounded memory.

    Args:
        model: from :func:`lm_runtime.load`.
        path: a UTF-8 text.
        each: called with ids ``(tokens,)`` and their log-probabilities, a part of the text at a time.

    Raises:
        UnusableFileError: the file is missing, empty, or not UTF-8 text.
    """
    return score_fragments(model, read_fragments(Path(path)), str(path), each=each)


def score_fragments(
    model: StepModel, fragments: Fragments, name: str, *, each: TokenScores | None = None
) -> Score:
    """Score a text that comes in fragments, as :func:`score_file` does.

    Args:
        model: from :func:`lm_runtime.load`.
        fragments: the text.
        name: of the text, for messages.
        each: as for :func:`score_file`.

    Raises:
        UnusableFileError: the text is empty, or cannot be read.
    """
    total, tokens, unknown = 0.0, 0, 0
    count = TextCount()
    for ids, log_probabilities in token_log_probabilities(model, count.count(fragments)):
        if each is not None:
            each(ids, log_probabilities)
        total = add_up(log_probabilities, total)
        tokens += ids.size
        unknown += unknown_tokens(model, ids)
    if not tokens:
        raise UnusableFileError(name, "empty: there is nothing to score")
    return Score(total, tokens, unknown, count.bytes, count.words)


def token_log_probabilities(
    model: StepModel, fragments: Iterable[tuple[str, bool]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The natural-log probability of each token of a text.

    Args:
        model: the model.
        fragments: the text, as :func:`lm_runtime.text_files.read_fragments` gives it.

    Yields:
        ids ``(tokens,)`` and their log-probabilities ``(tokens,)``, a part of the text at a time.
    """
    return id_log_probabilities(model, model.tokenizer.encode_fragments(fragments))


def id_log_probabilities(
    model: StepModel, parts: Iterable[NDArray[np.int64]], *, call: int = READ_TOKENS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """:func:`token_log_probabilities` of a text that is given as ids.

    Args:
        model: the model.
        parts: the text, ``(tokens,)`` in each part.
        call: the most tokens in one call of the model.
    """
    if not isinstance(model, DirectModel):
        for targets, logits in predictions(model, parts, call=call):
            yield targets, log_softmax_at(logits, targets)
        return
    state = initial_state(model, 1)
    previous = model.tokenizer.eos_id
    for ids in parts:
        read = np.append(previous, ids)
        values, state = model.score(read[None], state)
        previous = int(read[-1])
        yield ids, values[0]


def predictions(
    model: StepModel, parts: Iterable[NDArray[np.int64]], *, call: int = READ_TOKENS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The logits by which each id of a text is predicted.

    Args:
        model: the model.
        parts: the text, ``(tokens,)`` in each part.
        call: the most tokens in one call of the model.

    Yields:
        ids ``(tokens,)`` and logits ``(tokens, vocab)``, a part of the text at a time.
    """
    state = initial_state(model, 1)
    previous = model.tokenizer.eos_id
    for ids in parts:
        for start in range(0, ids.size, call):
            targets = ids[start : start + call]
            token = np.concatenate([[previous], targets[:-1]])
            logits, state = model.step(token[None], state)
            previous = int(targets[-1])
            yield targets, logits[0]


def add_up(log_probabilities: NDArray[np.float32], total: float = 0.0) -> float:
    """``total`` and each of ``log_probabilities``, added one after the other in float64.

    A sum in pairs would depend on where a long text is cut into parts.
    """
    return float(np.add.accumulate(np.append(total, log_probabilities), dtype=np.float64)[-1])


def unknown_tokens(model: StepModel, ids: NDArray[np.int64]) -> int:
    """How many of ``ids`` are ``<unk>``."""
    return int((ids == model.tokenizer.unk_id).sum()) if model.tokenizer.unk_id is not None else 0
