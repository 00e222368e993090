"""``lm-score --html``: scores a text, and writes the page of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lm_runtime.files import UnusableFileError
from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.page import write_page
from lm_runtime.scoring.passages import Passages
from lm_runtime.scoring.score import Score, TextCount, not_comparable
from lm_runtime.scoring.tokens import TokenScore, token_scores
from lm_runtime.text_files import Fragments

_MOST_TOKENS = 100_000
"""On a page: with the best five of each, about 6 MB."""
_BEST = 5


def score_to_page(model: StepModel, fragments: Fragments, name: str, page: Path, title: str) -> Score:
    """Score a text as :func:`lm_runtime.score_file` does, and write what was expected at each place.

    Args:
        model: from :func:`lm_runtime.load`.
        fragments: the text.
        name: of the text, for messages.
        page: the page to write.
        title: its heading.

    Raises:
        UnusableFileError: the text is empty, or cannot be read.
    """
    passages, count = Passages(_MOST_TOKENS), TextCount()
    total, unknown = 0.0, 0

    def added(scores: Iterator[TokenScore]) -> Iterator[TokenScore]:
        nonlocal total, unknown
        for score in scores:
            total += score.log_probability
            unknown += score.token == model.tokenizer.unk_id
            yield score

    best = min(_BEST, model.tokenizer.vocab_size)
    passages.read(added(token_scores(model, count.count(fragments), best)))
    if not passages.tokens:
        raise UnusableFileError(name, "empty: there is nothing to score")
    result = count.score(total, passages.tokens, unknown)
    a_word = result.perplexity_per_word
    facts = [
        ("tokens", f"{result.tokens:,}, {result.unknown:,} of them unknown"),
        (
            "perplexity",
            f"{result.perplexity:,.2f} a token" + ("" if a_word is None else f", {a_word:,.2f} a word"),
        ),
        ("bits", _bits(result)),
    ]
    write_page(page, title, facts, passages)
    return result


def _bits(score: Score) -> str:
    if (bits := score.bits_per_byte) is None:
        return not_comparable(score.unknown, score.tokens)
    return f"{bits:.4f} a byte"
