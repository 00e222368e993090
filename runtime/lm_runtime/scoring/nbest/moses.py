"""Lists of Moses and others: ``id ||| text ||| features ||| score``, and perhaps more after another bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lm_runtime.scoring.nbest.hypothesis import SPACES, Hypothesis, Source, number
from lm_runtime.settings import short

if TYPE_CHECKING:
    from lm_runtime.scoring.rescoring import Rescored

BAR = "|||"


def fits(source: Source) -> bool:
    """Whether the first line has its bars."""
    return BAR in source.first


def read(source: Source) -> Iterator[Hypothesis]:
    """The hypotheses; the features are passed on, the score is the fourth field."""
    return source.parsed(_parse)


def _parse(line: str) -> Hypothesis:
    parts = [part.strip(SPACES) for part in line.split(BAR)]
    if len(parts) < 4 or not parts[0]:
        raise ValueError(f"not id ||| text ||| features ||| score: {short(line)}")
    return Hypothesis(parts[0], number(parts[3]), parts[1], (parts[2], parts[4:]))


def write(rows: Sequence[Rescored]) -> Mapping[str, Iterator[str]]:
    """The lists with the combined scores, and the model's log-probability as one feature more, ``LM=``."""
    return {"": map(_line, rows)}


def _line(row: Rescored) -> str:
    features, rest = row.hypothesis.extra
    more = f"{features} LM= {row.lm.log_probability!r}".lstrip(SPACES)
    return f" {BAR} ".join([row.hypothesis.id, row.hypothesis.text, more, repr(row.combined), *rest])
