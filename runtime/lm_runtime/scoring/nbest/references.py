"""The right texts of n-best lists, by the lists' ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lm_runtime.scoring.nbest import jsonl
from lm_runtime.scoring.nbest.hypothesis import keyed, parsed
from lm_runtime.scoring.nbest.registry import FORMATS
from lm_runtime.scoring.score import read_texts
from lm_runtime.settings import short
from lm_runtime.wire import parse


def read_references(
    path: str | Path, format: str = "plain", *, fields: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The right text of each list.

    Args:
        path: lines ``id text``; objects with the fields of ``id`` and ``text`` if the first line begins one;
            for Moses, whose ids are numbers of lines from 0, plain lines.
        format: the format of the lists.
        fields: the names of the fields, if they are others.

    Raises:
        UnusableFileError: the file cannot be used, or a line is wrong; the message names it.
    """
    path = Path(path)
    lines = list(read_texts(path))
    if FORMATS[format].numbered:
        return dict(zip(map(str, range(len(lines))), lines, strict=True))
    names = jsonl.FIELDS | dict(fields or {})
    is_json = lines[0].lstrip().startswith("{")
    found: dict[str, str] = {}

    def of_line(line: str) -> None:
        if is_json:
            record = parse(line)
            id_, text = jsonl.id_of(record, names["id"]), jsonl.text_of(record, names["text"])
        else:
            id_, text = keyed(line)
        if id_ in found:
            raise ValueError(f"{short(id_)} comes a second time")
        found[id_] = text

    for _ in parsed(path, lines, of_line):
        pass
    return found
