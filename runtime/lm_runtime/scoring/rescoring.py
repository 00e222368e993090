"""N-best lists of a first pass, such as a recognizer's, put in a new order by a language model.

Knows nothing about what is printed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_runtime.files import UnusableFileError
from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.score import Score, read_texts
from lm_runtime.scoring.texts import score_texts
from lm_runtime.settings import check_number, short

_LARGEST_WEIGHT = 1_000_000
_SPACES = " \t"
_SEPARATOR = re.compile(r"[ \t]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Hypothesis:
    """One of the texts that a first pass (a recognizer, a translator) holds possible."""

    id: str
    """What it is a hypothesis of: all of one id are a list."""
    score: float
    """The first pass's score, natural logarithm."""
    text: str
    """The text."""


@dataclass(frozen=True)
class Rescored:
    """A hypothesis and its score by the language model."""

    hypothesis: Hypothesis
    """As it was given."""
    lm: Score
    """The language model's score of its text."""
    combined: float
    """The first pass's score plus the weighted log-probability."""


def rescore(model: StepModel, hypotheses: Iterable[Hypothesis], weight: float = 1.0) -> list[Rescored]:
    """Put n-best lists in the order of ``score + weight * log-probability``.

    Args:
        model: from :func:`lm_runtime.load`.
        hypotheses: of any number of ids, in any order.
        weight: of the language model's log-probability (natural logarithm) of a text.

    Returns:
        the ids in the order of their first hypotheses, of each the best hypothesis first; equal ones keep
        their order.

    Raises:
        ValueError: the weight is out of its range.
    """
    check_number("weight", weight, float, low=-_LARGEST_WEIGHT, high=_LARGEST_WEIGHT)
    lists: dict[str, list[Rescored]] = {}
    given, scored = itertools.tee(hypotheses)
    scores = score_texts(model, (hypothesis.text for hypothesis in scored))
    for hypothesis, lm in zip(given, scores, strict=True):
        combined = hypothesis.score + weight * lm.log_probability
        lists.setdefault(hypothesis.id, []).append(Rescored(hypothesis, lm, combined))
    return [one for rows in lists.values() for one in sorted(rows, key=lambda row: -row.combined)]


def read_hypotheses(path: str | Path) -> Iterator[Hypothesis]:
    """The n-best lists of a text file, a line for each hypothesis: id, score, text.

    Spaces and tabs separate the three, and no other white space does; around the text they are no part of it.
    The score is a decimal number, such as -12.5 or 1e-3. The text may be empty.

    Raises:
        UnusableFileError: as :func:`read_texts`, or a line has no id or no score.
    """
    for number, line in enumerate(read_texts(path), start=1):
        id_, score, text = (*_SEPARATOR.split(line.strip(_SPACES), maxsplit=2), "", "")[:3]
        if not score:
            raise UnusableFileError(path, f"line {number}: not an id, a score and a text: {short(line)}")
        value = float(score) if _NUMBER.fullmatch(score) else math.nan
        if not math.isfinite(value):
            raise UnusableFileError(path, f"line {number}: the score is no number: {short(score)}")
        yield Hypothesis(id_, value, text)
