"""N-best lists of a first pass, such as a recognizer's, put in a new order by a language model.

Knows nothing about files or about what is printed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.nbest.hypothesis import Hypothesis
from lm_runtime.scoring.nbest.lists import read_hypotheses
from lm_runtime.scoring.score import Score
from lm_runtime.scoring.texts import score_texts
from lm_runtime.scoring.weights import NAMES, Weights
from lm_runtime.tokenizer import count_words

__all__ = ["Hypothesis", "Rescored", "Scored", "rank", "read_hypotheses", "rescore", "score_hypotheses"]


@dataclass(frozen=True)
class Scored:
    """A hypothesis with all that weights apply to."""

    hypothesis: Hypothesis
    """As it was given."""
    lm: Score
    """The language model's score of its text."""
    second: Score | None
    """The second model's, if there is one."""
    words: int
    """The words of its text (:func:`lm_runtime.tokenizer.count_words`)."""

    @property
    def features(self) -> tuple[float, ...]:
        """What each weight is multiplied with, in the order of :data:`lm_runtime.scoring.weights.NAMES`."""
        second = 0.0 if self.second is None else self.second.log_probability
        return (
            self.lm.log_probability,
            second,
            float(self.words),
            float(self.lm.tokens),
            -float(self.lm.unknown),
        )


@dataclass(frozen=True)
class Rescored(Scored):
    """A hypothesis and its score by the language model."""

    combined: float
    """The sum of the parts."""
    parts: dict[str, float]
    """The first pass's ``score``, and what each weight adds to it, by its name."""


def rescore(
    model: StepModel,
    hypotheses: Iterable[Hypothesis],
    weight: float | Weights,
    *,
    second: StepModel | None = None,
) -> list[Rescored]:
    """Put n-best lists in the order of the first pass's score plus the weighted parts of each text.

    Args:
        model: from :func:`lm_runtime.load`.
        hypotheses: of any number of ids, in any order.
        weight: all weights; or that of the model's log-probability (natural logarithm) of a text alone.
        second: a second model, of any tokenizer, for ``second_weight``.

    Returns:
        the ids in the order of their first hypotheses, of each the best hypothesis first; equal ones keep
        their order.

    Raises:
        ValueError: a weight is out of its range, or ``second`` and its weight are not given together.
    """
    weights = weight if isinstance(weight, Weights) else Weights(lm_weight=weight)
    if second is None and weights.second_weight:
        raise ValueError(f"second_weight is {weights.second_weight:g}, and there is no second model")
    return rank(score_hypotheses(model, hypotheses, second), weights)


def score_hypotheses(
    model: StepModel, hypotheses: Iterable[Hypothesis], second: StepModel | None = None
) -> list[Scored]:
    """Score the texts of n-best lists by one model or two, in their order; arguments as :func:`rescore`."""
    given, *texts = itertools.tee(hypotheses, 2 if second is None else 3)
    models = [model] if second is None else [model, second]
    scores = [
        score_texts(one, (hypothesis.text for hypothesis in own))
        for one, own in zip(models, texts, strict=True)
    ]
    return [
        Scored(hypothesis, lm, rest[0] if rest else None, count_words(hypothesis.text))
        for hypothesis, lm, *rest in zip(given, *scores, strict=True)
    ]


def rank(scored: Sequence[Scored], weights: Weights) -> list[Rescored]:
    """Combine the parts of each hypothesis and sort every list, as :func:`rescore` does."""
    lists: dict[str, list[Rescored]] = {}
    for one in scored:
        parts = {"score": one.hypothesis.score}
        for name, value, feature in zip(NAMES, astuple(weights), one.features, strict=True):
            parts[name] = value * feature + 0.0  # which is not -0.0
        row = Rescored(one.hypothesis, one.lm, one.second, one.words, sum(parts.values()), parts)
        lists.setdefault(one.hypothesis.id, []).append(row)
    return [one for rows in lists.values() for one in sorted(rows, key=lambda row: -row.combined)]
