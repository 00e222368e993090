"""The history: the tokens of a text as far back as penalties look.

They look back over a window, so that a session's size and a token's cost never grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

WINDOW = 1024
"""How many of the last tokens, prompt and text, penalties see."""


class History:
    """The last :data:`WINDOW` tokens, and how often each comes among them."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: deque[int] = deque()
        self._counts: dict[int, int] = {}
        self.extend(tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens, oldest first."""
        return list(self._tokens)

    @property
    def counts(self) -> Mapping[int, int]:
        """How often each token comes."""
        return self._counts

    def push(self, token: int) -> None:
        """Add one token; the oldest leaves a full window."""
        self._tokens.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if len(self._tokens) > WINDOW:
            oldest = self._tokens.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def extend(self, tokens: Iterable[int]) -> None:
        """Add several tokens."""
        for token in tokens:
            self.push(token)

    def copy(self) -> History:
        """A second history from here; neither changes the other."""
        return History(self._tokens)
