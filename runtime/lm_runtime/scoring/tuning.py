"""Weights of n-best lists, found where the best texts have the fewest errors: minimum error rate training.

Along one weight, the others fixed, each list's best text changes at a few points only, so that the errors are
known for all values at once (Och 2003). Weights are searched so one after the other, from several beginnings.
Knows nothing about files or models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_runtime.scoring.errors import Metric, edit_distances, units_of
from lm_runtime.scoring.rescoring import Scored
from lm_runtime.scoring.weights import LARGEST, NAMES, Weights

_STARTS = 20
_ROUNDS = 20
_NOT_NEGATIVE = ("lm_weight", "unk_penalty")
"""Weights that are searched from 0 up: below, the more probable text would be the worse one."""


@dataclass(frozen=True)
class ErrorRates:
    """The errors of n-best lists against references."""

    length: int
    """Words or characters of the references."""
    lists: int
    """How many lists have a reference."""
    hypotheses: int
    """How many hypotheses these have."""
    first_pass: int
    """Errors of the texts that the first pass holds best."""
    rescored: int
    """Errors of the texts that are best with the weights."""
    oracle: int
    """Errors of the texts that have the fewest: no order is better."""

    def rate(self, errors: int) -> float:
        """Errors for each word or character of the references."""
        return errors / self.length


class Development:
    """N-best lists with references, as arrays.

    Args:
        scored: the hypotheses.
        references: the right text of each list by its id; lists without one, and references without a list,
            have no part.
        metric: whether words or characters are counted.

    Raises:
        ValueError: no list has a reference, or the references have no words.
    """

    def __init__(self, scored: Sequence[Scored], references: Mapping[str, str], metric: Metric) -> None:
        lists: dict[str, list[Scored]] = {}
        for one in scored:
            if one.hypothesis.id in references:
                lists.setdefault(one.hypothesis.id, []).append(one)
        if not lists:
            some = scored[0].hypothesis.id if scored else "none"
            raise ValueError(f"none of the lists has a reference; the first list's id is {some!r}")
        longest = max(map(len, lists.values()))
        # A list's missing hypotheses are never best.
        self.scores = np.full((len(lists), longest), -np.inf)  # (lists, longest)
        self.features = np.zeros((len(lists), longest, len(NAMES)))
        self.errors = np.zeros((len(lists), longest), dtype=np.int64)
        self.present = np.zeros((len(lists), longest), dtype=np.bool_)
        self.length = 0
        for row, (id_, own) in enumerate(lists.items()):
            reference = units_of(references[id_], metric)
            self.length += len(reference)
            self.scores[row, : len(own)] = [one.hypothesis.score for one in own]
            self.features[row, : len(own)] = [one.features for one in own]
            texts = [units_of(one.hypothesis.text, metric) for one in own]
            self.errors[row, : len(own)] = edit_distances(reference, texts)
            self.present[row, : len(own)] = True
        if not self.length:
            raise ValueError("the references have no words")

    def errors_of(self, weights: NDArray[np.float64]) -> int:
        """The errors of the best texts by ``weights`` ``(weights,)``."""
        best = (self.scores + self.features @ weights).argmax(axis=1)
        return int(np.take_along_axis(self.errors, best[:, None], axis=1).sum())

    def rates(self, weights: Weights) -> ErrorRates:
        """What the weights bring."""
        most = np.iinfo(np.int64).max
        return ErrorRates(
            length=self.length,
            lists=len(self.scores),
            hypotheses=int(self.present.sum()),
            first_pass=self.errors_of(np.zeros(len(NAMES))),
            rescored=self.errors_of(np.array(dataclasses.astuple(weights))),
            oracle=int(np.where(self.present, self.errors, most).min(axis=1).sum()),
        )


def tune(lists: Development, weights: Weights, names: Sequence[str]) -> Weights:
    """The weights with the fewest errors, and of equal ones those in the middle of the widest range.

    Args:
        lists: the development lists.
        weights: where the search begins; those that are not in ``names`` stay as they are.
        names: the weights to search.

    Raises:
        ValueError: a name is no weight's, or there is none.
    """
    if not names or set(names) - set(NAMES):
        raise ValueError(
            f"weights to find must be some of {', '.join(NAMES)}, got {', '.join(names) or 'none'}"
        )
    places = [place for place, name in enumerate(NAMES) if name in names]
    start = np.array(dataclasses.astuple(weights), dtype=np.float64)  # (weights,)
    lows = np.array([_lowest(place) for place in places])
    scales = _scales(lists)[places]
    generator = np.random.default_rng(0)
    found = [_descend(lists, start, places)]
    for _ in range(_STARTS - 1):
        point = start.copy()
        point[places] = np.clip(generator.normal(size=len(places)) * scales, lows, LARGEST)
        found.append(_descend(lists, point, places))
    best = min((start, *map(_rounded, found)), key=lists.errors_of)
    return Weights(**dict(zip(NAMES, map(float, best), strict=True)))


def _lowest(place: int) -> float:
    return 0.0 if NAMES[place] in _NOT_NEGATIVE else -float(LARGEST)


def _descend(lists: Development, point: NDArray[np.float64], places: Sequence[int]) -> NDArray[np.float64]:
    """Search one weight after the other until none brings fewer errors."""
    errors = lists.errors_of(point)
    for _ in range(_ROUNDS):
        before = errors
        for place in places:
            fewest, value = _search(lists, point, place)
            if fewest < errors:
                point = point.copy()
                point[place] = value
                errors = lists.errors_of(point)
        if errors >= before:
            break
    return point


def _search(lists: Development, point: NDArray[np.float64], place: int) -> tuple[int, float]:
    """The fewest errors along one weight, and the middle of the widest range of it that has them."""
    low = _lowest(place)
    slopes = lists.features[:, :, place]
    others = point.copy()
    others[place] = 0.0
    heights = lists.scores + lists.features @ others
    rows = np.arange(len(heights))
    best = (heights + slopes * low).argmax(axis=1)
    errors = int(lists.errors[rows, best].sum())
    points, changes = [], []
    while rows.size:
        # For each list, where the next hypothesis becomes best: the first crossing with a steeper line.
        rise = slopes[rows] - slopes[rows, best][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = np.where(
                (rise > 0) & lists.present[rows],
                (heights[rows, best][:, None] - heights[rows]) / rise,
                np.inf,
            )
        following = crossing.argmin(axis=1)
        at = crossing[np.arange(rows.size), following]
        # Of lines that cross at one point the steepest goes on.
        tied = crossing <= at[:, None]
        following = np.where(tied, rise, -np.inf).argmax(axis=1)
        goes_on = at < LARGEST
        rows, best, following, at = rows[goes_on], best[goes_on], following[goes_on], at[goes_on]
        points.append(at)
        changes.append(lists.errors[rows, following] - lists.errors[rows, best])
        best = following
    return _widest(np.concatenate(points), np.concatenate(changes), errors, low)


def _widest(
    points: NDArray[np.float64], changes: NDArray[np.int64], errors: int, low: float
) -> tuple[int, float]:
    """The fewest errors and the middle of their widest range, from the points where errors change."""
    edges, where = np.unique(points[changes != 0], return_inverse=True)
    by_edge = np.bincount(where, weights=changes[changes != 0], minlength=edges.size).astype(np.int64)
    if not edges.size:
        return errors, max(low, 0.0)
    totals = errors + np.append(0, np.cumsum(by_edge))  # (edges + 1,): between the edges, and outside
    # A range without an end is taken a little way; beyond an only edge at 0 any way would do.
    margin = 0.1 * max(float(edges[-1] - edges[0]), float(np.abs(edges).max())) or 1.0
    ends = max(low, edges[0] - margin), min(LARGEST, edges[-1] + margin)
    borders = np.concatenate([ends[:1], edges, ends[1:]])
    widths = np.where(totals == totals.min(), np.diff(borders), -np.inf)
    chosen = int(widths.argmax())
    value = float(borders[chosen] + borders[chosen + 1]) / 2
    while value in points and value < borders[chosen + 1]:  # where two texts are equally good
        value = float(value + borders[chosen + 1]) / 2
    return int(totals[chosen]), value


def _scales(lists: Development) -> NDArray[np.float64]:
    """For each weight, a size at which its part differs within lists as much as the first pass's scores."""
    own = lists.present
    spread = np.std(lists.scores[own] - np.repeat(lists.scores.max(axis=1), own.sum(axis=1)))
    means = lists.features.sum(axis=1) / own.sum(axis=1)[:, None]
    centred = (lists.features - means[:, None])[own]
    sizes = np.sqrt(np.mean(np.square(centred), axis=0))
    result: NDArray[np.float64] = np.where(sizes > 0, spread / np.where(sizes > 0, sizes, 1), 0)
    return result


def _rounded(point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Four digits, which is more than a development text can tell."""
    return np.array([float(f"{value:.4g}") for value in point])
