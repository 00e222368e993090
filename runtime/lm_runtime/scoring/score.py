"""Scoring: the probability that a model gives to a text.

Perplexity is ``exp`` of the mean natural-log loss over every token, ``<eos>`` included. The first token
is predicted from a zero state that has read one ``<eos>``; the state is carried through the whole text.
"""

from __future__ import annotations

import math
import re
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
_MOST_UNKNOWN = 0.001
"""The largest share of unknown tokens at which bits a byte are given: to spell these words in bytes would add
about a hundredth of a bit."""
_FEWEST_ORDINARY = 0.75
"""The share of ordinary words of a text that is made of words: prose has 0.85 to 1, code 0.5 to 0.7."""
_FEWEST_IN_A_LINE = 2
"""Words a line of a text that is made of words; a list of names has one."""

_NO_SPACES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts that are written without spaces: Thai to Lao, Burmese, Khmer, Japanese, Chinese."""
_LETTER = rf"[^\x00-\x40\x5b-\x60\x7b-\x7f\s{_NO_SPACES}]"
_ORDINARY = re.compile(
    rf"(?<!\S)[^\w\s]{{0,3}}{_LETTER}(?:{_LETTER}|['.-](?={_LETTER})){{0,23}}[^\w\s]{{0,4}}(?!\S)"
)
"""Up to 24 letters, also with a dot, hyphen or apostrophe between two of them, and punctuation around."""


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
    lines: int = 0
    """How many lines it has; 0 where that was not counted."""
    ordinary: int = 0
    """How many of the words look like words of prose."""

    def __add__(self, other: Score) -> Score:
        """The score of both texts, scored apart."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Score(*(mine + others for mine, others in pairs))

    @property
    def perplexity(self) -> float:
        """Per token."""
        return perplexity(-self.log_probability / self.tokens)

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable between tokenizers; None where more than 0.1 % of the tokens are ``<unk>``.

        Those are not told apart, so their spelling costs nothing, and the figure would be too low.
        """
        if not_comparable(self.unknown, self.tokens):
            return None
        return -self.log_probability / math.log(2) / self.bytes

    @property
    def perplexity_per_word(self) -> float | None:
        """Comparable between tokenizers, where no token is ``<unk>``; None where the text has no words.

        It has none where they cost more than 50 nats on average, where there are fewer than two in a line
        (names), or where less than three quarters look like words of prose (code, DNA, Chinese).
        """
        loss = -self.log_probability / self.words
        if loss > _LARGEST_WORD_LOSS or not self._has_words:
            return None
        return perplexity(loss)

    @property
    def _has_words(self) -> bool:
        words = self.words - self.lines
        return not self.lines or (
            words >= _FEWEST_IN_A_LINE * self.lines and self.ordinary >= _FEWEST_ORDINARY * words
        )


def not_comparable(unknown: int, tokens: int) -> str:
    """Why a text's figures do not compare with those of other tokenizers, in words; empty where they do.

    Args:
        unknown: how many of its tokens are ``<unk>``.
        tokens: how many there are.
    """
    return (
        f"not comparable: {unknown / tokens * 100:.1f} % unknown" if unknown > _MOST_UNKNOWN * tokens else ""
    )


def bits_in_words(bits_per_byte: float | None, unknown: int, tokens: int, places: int = 3) -> str:
    """Bits a byte for a reader, or why there is no such figure.

    Args:
        bits_per_byte: of a :class:`Score`.
        unknown: how many of its tokens were ``<unk>``.
        tokens: how many there were.
        places: decimals.
    """
    if bits_per_byte is None:
        return f"bits a byte {not_comparable(unknown, tokens)}"
    return f"{bits_per_byte:.{places}f} bits a byte"


@dataclass
class TextCount:
    """Bytes, words and lines of the fragments that pass through :meth:`count`."""

    bytes: int = 0
    words: int = 0
    lines: int = 0
    ordinary: int = 0

    def count(self, fragments: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """Pass ``fragments`` on and count them."""
        for text, ends in fragments:
            self.bytes += len(text.encode()) + ends
            self.words += count_words(text) + ends
            self.lines += ends
            self.ordinary += len(_ORDINARY.findall(text))
            yield text, ends

    def score(self, log_probability: float, tokens: int, unknown: int) -> Score:
        """The score of the text that was counted."""
        counted = self.bytes, self.words, self.lines, self.ordinary
        return Score(log_probability, tokens, unknown, *counted)


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
    return count.score(total, tokens, unknown)


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
        for start in range(0, ids.size, call):  # in the parts of every other model
            yield ids[start : start + call], values[0, start : start + call]


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
