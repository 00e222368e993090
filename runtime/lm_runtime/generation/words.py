"""Whole words for what is being typed: ``I do not kn`` goes on as *know*, *known* ...

A word may be spelled by several sequences of tokens; its probability is the sum over those that were found.
"""

from __future__ import annotations

import heapq
import itertools
import math
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import State, StepModel
from lm_runtime.models.state import join_states, state_of
from lm_runtime.settings import check_number
from lm_runtime.softmax import log_softmax
from lm_runtime.tokenizer import Tokenizer

_ROWS = 16
"""The most beginnings of words that are read in one call."""
_CALLS = 12
_NEGLIGIBLE = 1e-3
"""Words this much less probable than the best one are not looked for."""
_LONGEST = 64
"""Bytes of a word; what is longer is none."""


def split_typed(text: str) -> tuple[str, str]:
    """Cut a text before the word that is being typed, which takes the space before it along.

    >>> split_typed("I do not kn")
    ('I do not', ' kn')
    """
    start = len(text)
    while start and _is_of_a_word(text[start - 1]):
        start -= 1
    if start and text[start - 1].isspace() and text[start - 1] != "\n":
        start -= 1
    return text[:start], text[start:]


def complete_word(
    model: StepModel,
    prompt: str | Session,
    typed: str | None = None,
    k: int = 5,
    *,
    line_breaks: bool = False,
) -> list[tuple[str, float]]:
    """The most probable words that begin as typed.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: the text so far; a session stays as it is.
        typed: the beginning of the word. A session's word has a space before it, except at a line's start
            and where ``typed`` brings its own. Without it, a text's own last word is completed, or the next
            one suggested where the text ends in white space.
        k: how many words, at least 1.
        line_breaks: whether the end of the line may be one of them, as ``"\\n"``, where nothing is typed yet.

    Returns:
        each word, without white space, and the probability that it comes next as a whole, the most probable
        first. There may be fewer than k.

    Raises:
        ValueError: k is out of its range.
    """
    check_number("k", k, int, low=1, high=1000)
    search = _Search(model, k, line_breaks=line_breaks)
    if isinstance(prompt, Session):
        session, spelled = prompt, typed or ""
        session.require_rest()
        in_line = session.token != model.tokenizer.eos_id
    else:
        context, spelled = (prompt, typed) if typed is not None else split_typed(prompt)
        session, in_line = Session.start(model, context), False
    if model.tokenizer.lowercases:
        spelled = spelled.lower()
    begins_line = session.token == model.tokenizer.eos_id and search.spaces_lines
    if (in_line or begins_line) and not spelled[:1].isspace():
        spelled = f" {spelled}"
    search.begin(session, spelled)
    for _ in range(_CALLS):
        if search.is_decided:
            break
        search.read()
    return search.best()


class _Search:
    """A best-first search over the tokens that spell words."""

    def __init__(self, model: StepModel, k: int, *, line_breaks: bool) -> None:
        self._model = model
        self._k = k
        self._line_breaks = line_breaks
        self._vocabulary = _vocabulary(model.tokenizer)
        self._words: defaultdict[str, float] = defaultdict(float)
        self._order = itertools.count()
        # What is to be read, the most probable first: -log p, order, bytes, what is left of the typed text,
        # the token, and the state before it.
        self._open: list[tuple[float, int, bytes, bytes, int, State]] = []

    @property
    def spaces_lines(self) -> bool:
        """Whether the tokenizer puts a space before the first word of a line, as SentencePiece does."""
        return self._vocabulary.spaces_lines

    def begin(self, session: Session, spelled: str) -> None:
        """Read the session's last token; go on with every token that may spell the text."""
        logits, state = self._model.step(np.array([[session.token]]), session.state)
        implied = self._model.tokenizer.kind == "word"  # its words have their spaces between them
        rest = (spelled.lstrip() if implied else spelled).encode()
        values = log_softmax(logits[0, 0])
        if self._line_breaks and not rest.strip():
            self._words["\n"] = math.exp(values[self._model.tokenizer.eos_id])
        self._spell(values, 0.0, b"", rest, state)

    @property
    def is_decided(self) -> bool:
        """Whether no word that is still to be read can come among the best."""
        if not self._open:
            return True
        best = heapq.nlargest(self._k, self._words.values())
        likeliest = math.exp(-self._open[0][0])
        found = len(best) == self._k and best[-1] >= likeliest
        return found or bool(best and likeliest < _NEGLIGIBLE * best[0])

    def best(self) -> list[tuple[str, float]]:
        """The most probable words so far."""
        return heapq.nlargest(self._k, self._words.items(), key=lambda item: item[1])

    def read(self) -> None:
        """Read the most probable beginnings, all in one call."""
        nodes = [heapq.heappop(self._open) for _ in range(min(_ROWS, len(self._open)))]
        token = np.array([[node[4]] for node in nodes])
        logits, state = self._model.step(token, join_states(self._model, [node[5] for node in nodes]))
        values = log_softmax(logits[:, 0])
        for row, (cost, _, spelled, rest, _, _) in enumerate(nodes):
            own = state_of(self._model, state, row)
            if rest:
                self._spell(values[row], -cost, spelled, rest, own)
            else:
                self._go_on(values[row], -cost, spelled, own)

    def _spell(
        self, values: NDArray[np.float64], so_far: float, spelled: bytes, rest: bytes, state: State
    ) -> None:
        """Go on with the tokens that spell what is left of the typed text, or begin as it does."""
        vocabulary = self._vocabulary
        ids = vocabulary.beginning_with(rest)
        for token in self._likeliest(values, ids):
            text = spelled + vocabulary.bytes[token]
            if vocabulary.kind == "word":
                self._add(text, so_far + values[token])
            else:
                self._push(so_far + values[token], text, b"", token, state)
        for token in vocabulary.beginning_of(rest):
            part = vocabulary.bytes[token]
            self._push(so_far + values[token], spelled + part, rest[len(part) :], token, state)

    def _go_on(self, values: NDArray[np.float64], so_far: float, spelled: bytes, state: State) -> None:
        """Take the word as it stands, as far as it may end here, and go on with what makes it longer."""
        vocabulary = self._vocabulary
        self._add(spelled, so_far + math.log(max(float(np.exp(values[vocabulary.ends]).sum()), 1e-300)))
        if len(spelled) < _LONGEST:
            for token in self._likeliest(values, vocabulary.within):
                self._push(so_far + values[token], spelled + vocabulary.bytes[token], b"", token, state)

    def _likeliest(self, values: NDArray[np.float64], ids: NDArray[np.int64]) -> list[int]:
        """The most probable of the tokens ``ids``."""
        most = max(2 * self._k, _ROWS)
        if ids.size > most:
            ids = ids[np.argpartition(-values[ids], most)[:most]]
        likeliest: list[int] = ids.tolist()
        return likeliest

    def _push(self, so_far: float, spelled: bytes, rest: bytes, token: int, state: State) -> None:
        heapq.heappush(self._open, (-float(so_far), next(self._order), spelled, rest, token, state))

    def _add(self, spelled: bytes, log_probability: float) -> None:
        word = spelled.decode("utf-8", "ignore").strip()
        if word and all(map(_is_of_a_word, word)):
            self._words[word] += math.exp(log_probability)


class _Vocabulary:
    """A tokenizer's tokens by their bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kind = tokenizer.kind
        self.bytes = tokenizer.token_bytes
        if tokenizer.kind == "other":  # SentencePiece and its like spell a space so
            self.bytes = [spelled.replace("▁".encode(), b" ") for spelled in self.bytes]
        self.spaces_lines = tokenizer.kind == "other" and _spaces_lines(tokenizer, self.bytes)
        silent = {tokenizer.eos_id, tokenizer.unk_id}
        spelling = [
            token for token in range(tokenizer.vocab_size) if token not in silent and self.bytes[token]
        ]
        self._ids = np.array(sorted(spelling, key=self.bytes.__getitem__), dtype=np.int64)
        self._sorted = [self.bytes[token] for token in self._ids.tolist()]
        self._by_bytes = {part: token for token, part in enumerate(self.bytes) if token not in silent}
        goes_on = np.array([_goes_on(part) for part in self.bytes])
        goes_on[[token for token in silent if token is not None]] = False
        self.within = np.flatnonzero(goes_on)
        """The tokens that make a word longer."""
        self.ends = np.flatnonzero(~goes_on)
        """The tokens before which a word has ended."""

    def beginning_with(self, prefix: bytes) -> NDArray[np.int64]:
        """The tokens that begin with ``prefix``."""
        start = bisect_left(self._sorted, prefix)
        end = bisect_left(self._sorted, prefix + b"\xff" * _LONGEST)
        return self._ids[start:end]

    def beginning_of(self, text: bytes) -> list[int]:
        """The tokens that ``text`` begins with and goes on after."""
        parts = (text[:length] for length in range(1, len(text)))
        return [self._by_bytes[part] for part in parts if part in self._by_bytes]


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    return _Vocabulary(tokenizer)


def _spaces_lines(tokenizer: Tokenizer, spelled: list[bytes]) -> bool:
    """Whether a line's first word is the token of a word after a space."""
    words = (part.decode("utf-8", "ignore")[1:] for part in spelled if part[:1] == b" ")
    word = next((word for word in words if word.isalpha()), None)
    return word is not None and spelled[tokenizer.encode(word)[0]][:1] == b" "


def _goes_on(spelled: bytes) -> bool:
    """Whether a token that stands after a word's letters belongs to the word; part of a character does."""
    first = spelled.decode("utf-8", "ignore")[:1]
    return _is_of_a_word(first) if first else bool(spelled)


def _is_of_a_word(character: str) -> bool:
    # Marks are parts of letters: most vowels of Indian scripts are.
    return character.isalnum() or character in "_'’" or unicodedata.category(character)[0] == "M"
