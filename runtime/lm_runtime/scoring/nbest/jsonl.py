"""Lists in JSON Lines: an object for each hypothesis, or for each list with its hypotheses inside."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_runtime.scoring.nbest.hypothesis import Hypothesis, Source
from lm_runtime.settings import short
from lm_runtime.wire import Record, parse

if TYPE_CHECKING:
    from lm_runtime.scoring.rescoring import Rescored

FIELDS = {"id": "id", "score": "score", "text": "text"}
"""The fields' names unless others are given."""


def fits(source: Source) -> bool:
    """Whether the first line begins an object."""
    return source.first.lstrip().startswith("{")


def read(source: Source) -> Iterator[Hypothesis]:
    """The hypotheses; whatever else an object has is passed on."""
    names = FIELDS | dict(source.fields)

    def of_line(line: str) -> list[Hypothesis]:
        record = parse(line)
        id_ = id_of(record, names["id"])
        if "list" not in names:
            return [_hypothesis(id_, record, names, None)]
        items = _value(record, names["list"])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f'"{names["list"]}" is no list of objects, but {short(items)}')
        return [_hypothesis(id_, item, names, (names["list"], record)) for item in items]

    return itertools.chain.from_iterable(source.parsed(of_line))


def id_of(record: Record, name: str) -> str:
    """The id of an object: a string of one line, or a whole number.

    Raises:
        ValueError: it is missing or something else.
    """
    value = _value(record, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or set(value) & set("\t\n\r"):
        raise ValueError(f'"{name}" is neither a string of one line nor a whole number, but {short(value)}')
    return _encodable(value, name)


def text_of(record: Record, name: str) -> str:
    """The text of an object, which is a line.

    Raises:
        ValueError: it is missing or something else.
    """
    value = _value(record, name)
    if not isinstance(value, str) or "\n" in value or "\r" in value:
        raise ValueError(f'"{name}" is no line of text, but {short(value)}')
    return _encodable(value, name)


def _encodable(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{name}" has half a surrogate pair') from None
    return value


def _hypothesis(id_: str, record: Record, names: Mapping[str, str], parent: Any) -> Hypothesis:
    score = _value(record, names["score"])
    try:
        value = float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None
    except OverflowError:
        value = None
    if value is None:
        raise ValueError(f"the score is no number: {short(score)}")
    return Hypothesis(id_, value, text_of(record, names["text"]), (record, parent))


def _value(record: Record, name: str) -> Any:
    """What the object has under a name; null is as good as nothing."""
    if (value := record.get(name)) is None:
        raise ValueError(f'"{name}" is missing')
    return value


def write(rows: Sequence[Rescored]) -> Mapping[str, Iterator[str]]:
    """The objects as they were, with ``combined`` and ``log_probability``."""
    return {"": map(_line, _records(rows))}


def _records(rows: Sequence[Rescored]) -> Iterator[Record]:
    for _, group in itertools.groupby(rows, key=lambda row: row.hypothesis.id):
        scored = list(group)
        records = [
            row.hypothesis.extra[0] | {"combined": row.combined, "log_probability": row.lm.log_probability}
            for row in scored
        ]
        parent = scored[0].hypothesis.extra[1]
        if parent is None:
            yield from records
        else:
            name, record = parent
            yield record | {name: records}


def _line(record: Record) -> str:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair in what is passed on
        return json.dumps(record)
    return json.dumps(record, ensure_ascii=False)
