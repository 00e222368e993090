"""A scored text in passages: the most surprising ones, and as much of the text as a page can show."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lm_runtime.scoring.tokens import TokenScore

_SHORTEST = 32
"""Tokens from which on a passage ends with its line."""
_LONGEST = 128
_SURPRISING = 20


@dataclass(frozen=True)
class Passage:
    """A stretch of a text: whole lines, or part of a long one."""

    start: int
    """The number of its first token, from 0."""
    tokens: tuple[TokenScore, ...]
    """What stands there."""

    @property
    def surprisal(self) -> float:
        """Bits a token, the mean."""
        return sum(token.surprisal for token in self.tokens) / len(self.tokens)


@dataclass
class Passages:
    """What is kept of a text of any length."""

    most: int
    """The most tokens of the text that are shown."""
    shown: list[Passage] = field(default_factory=list)
    """Passages spread evenly over the text, all of them where they fit."""
    stride: int = 1
    """One of how many passages is shown."""
    tokens: int = 0
    """How many the whole text has."""
    _count: int = 0
    _kept: int = 0
    _surprising: list[tuple[float, int, Passage]] = field(default_factory=list)

    @property
    def surprising(self) -> list[Passage]:
        """The most surprising passages, the most surprising first; a short end of the text is none."""
        return [passage for *_, passage in sorted(self._surprising, reverse=True)]

    def read(self, scores: Iterable[TokenScore]) -> None:
        """Take the scores of a text."""
        for passage in _passages(scores):
            self._take(passage)

    def _take(self, passage: Passage) -> None:
        if self._count % self.stride == 0:
            self.shown.append(passage)
            self._kept += len(passage.tokens)
            if self._kept > self.most and len(self.shown) > 1:
                self.shown, self.stride = self.shown[::2], 2 * self.stride
                self._kept = sum(len(one.tokens) for one in self.shown)
        self._count += 1
        self.tokens += len(passage.tokens)
        if len(passage.tokens) >= _SHORTEST or passage.start == 0:
            heapq.heappush(self._surprising, (passage.surprisal, -passage.start, passage))
            if len(self._surprising) > _SURPRISING:
                heapq.heappop(self._surprising)


def _passages(scores: Iterable[TokenScore]) -> Iterator[Passage]:
    start = 0
    tokens: list[TokenScore] = []
    for score in scores:
        tokens.append(score)
        ends = score.text.endswith("\n") and len(tokens) >= _SHORTEST
        if ends or len(tokens) == _LONGEST:
            yield Passage(start, tuple(tokens))
            start, tokens = start + len(tokens), []
    if tokens:
        yield Passage(start, tuple(tokens))
