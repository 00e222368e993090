"""Lists of this project: a hypothesis a line, ``id score text``, with spaces or tabs between the three."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lm_runtime.scoring.nbest.hypothesis import SEPARATOR, SPACES, Hypothesis, Source, number
from lm_runtime.settings import short

if TYPE_CHECKING:
    from lm_runtime.scoring.rescoring import Rescored


def fits(source: Source) -> bool:
    """Whether the first line looks like it: every file that is nothing else is taken for it."""
    return not source.path.is_dir()


def read(source: Source) -> Iterator[Hypothesis]:
    """The hypotheses; the text may be empty."""
    return source.parsed(parse)


def parse(line: str) -> Hypothesis:
    """The hypothesis of a line.

    Raises:
        ValueError: it has no id or no score.
    """
    id_, score, text = (*SEPARATOR.split(line.strip(SPACES), maxsplit=2), "", "")[:3]
    if not score:
        raise ValueError(f"not an id, a score and a text: {short(line)}")
    return Hypothesis(id_, number(score), text)


def write(rows: Sequence[Rescored]) -> Mapping[str, Iterator[str]]:
    """The lists with the combined scores."""
    return {"": (f"{row.hypothesis.id}\t{row.combined!r}\t{row.hypothesis.text}" for row in rows)}
