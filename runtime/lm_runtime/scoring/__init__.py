"""Scoring: the probability that a model gives to texts. Knows nothing about what is printed."""

from __future__ import annotations

TYPE_CHECKING = False  # as in the package above
if TYPE_CHECKING:
    from lm_runtime.scoring.documents import DocumentScorer

__all__ = ["DocumentScorer"]


def __getattr__(name: str) -> object:
    if name != "DocumentScorer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lm_runtime.scoring.documents import DocumentScorer  # only who asks waits for it

    return DocumentScorer
