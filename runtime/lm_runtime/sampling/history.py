"""The history: the last tokens of a text, which penalties and bans look back at.

It is a window, so that neither a session's size nor a token's cost grows with the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

WINDOW = 1024
"""The number of the last tokens, of prompt and text, that penalties see."""


class History:
    """The last :data:`WINDOW` tokens, and how often each occurs among them.

    Tokens are counted only when a penalty asks.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._counts: Counter[int] = Counter()
        self._counted = slice(0, 0)  # which of the tokens are counted
        self.extend(tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens, oldest first."""
        return self._tokens[-WINDOW:]

    @property
    def counts(self) -> Mapping[int, int]:
        """How often each token occurs."""
        before, now = self._counted, slice(max(0, len(self._tokens) - WINDOW), len(self._tokens))
        self._counts.update(self._tokens[before.stop :])
        for token in self._tokens[before.start : now.start]:
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]
        self._counted = now
        return self._counts

    def push(self, token: int) -> None:
        """Add one token."""
        self._tokens.append(token)
        if len(self._tokens) == 4 * WINDOW:
            self._forget()

    def extend(self, tokens: Iterable[int]) -> None:
        """Add several tokens."""
        self._tokens.extend(tokens)
        if len(self._tokens) >= 4 * WINDOW:
            self._forget()

    def copy(self) -> History:
        """A second history from here; neither changes the other."""
        return History(self.tokens)

    def _forget(self) -> None:
        """Drop what is out of the window."""
        del self._tokens[:-WINDOW]
        self._counts.clear()
        self._counted = slice(0, 0)
