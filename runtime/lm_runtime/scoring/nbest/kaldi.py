"""Lists of Kaldi: a text with the keys ``utterance-n``, and costs by these keys in files of their own.

A score is minus the sum of the costs, each times its file's scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.nbest import plain
from lm_runtime.scoring.nbest.hypothesis import Hypothesis, Source, keyed, number, table
from lm_runtime.settings import short

if TYPE_CHECKING:
    from lm_runtime.scoring.rescoring import Rescored

_KEY = re.compile(r"(.+)-[0-9]+")


def fits(source: Source) -> bool:
    """Whether costs are given, or the first line has a key with a number, and no score after it."""
    if source.costs:
        return True
    try:
        plain.parse(source.first)
    except ValueError:
        return _KEY.fullmatch(source.first.split(" ")[0]) is not None
    return False


def read(source: Source) -> Iterator[Hypothesis]:
    """The hypotheses; each must have a cost in every file."""
    if not source.costs:
        raise UnusableFileError(source.path, "a text of Kaldi's; give its files of costs with --costs")
    costs = [
        (path.name, scale, table(path, lambda text: number(text, "cost"), "a cost"))
        for path, scale in source.costs
    ]

    def parse(line: str) -> Hypothesis:
        key, text = keyed(line)
        if (found := _KEY.fullmatch(key)) is None:
            raise ValueError(f"the key has no -number at its end: {short(key)}")
        score = 0.0
        for name, scale, by_key in costs:
            if key not in by_key:
                raise ValueError(f"{name} has no cost of {short(key)}")
            score -= scale * by_key[key]
        if not math.isfinite(score):
            raise ValueError(f"the costs of {short(key)} are beyond a number's range")
        return Hypothesis(found[1], score, text, key)

    return source.parsed(parse)


def write(rows: Sequence[Rescored]) -> Mapping[str, Iterator[str]]:
    """A text and its costs, by the keys as they were, best first."""
    return {
        "text": (f"{row.hypothesis.extra} {row.hypothesis.text}".rstrip(" ") for row in rows),
        "cost": (f"{row.hypothesis.extra} {-row.combined!r}" for row in rows),
    }
