"""Lists of ESPnet: a folder with ``1best_recog/text`` and ``1best_recog/score``, ``2best_recog/...`` and on.

Parallel jobs leave them in ``output.1``, ``output.2`` ... of the folder, or of its ``logdir``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.nbest.hypothesis import Hypothesis, Source, keyed, number, parsed, table
from lm_runtime.scoring.score import read_texts
from lm_runtime.settings import short

if TYPE_CHECKING:
    from lm_runtime.scoring.rescoring import Rescored

_TENSOR = re.compile(r"tensor\((\S+?)(, .*)?\)")
"""How torch prints a number."""


def fits(source: Source) -> bool:
    """Whether it is a folder of that kind."""
    return source.path.is_dir() and any(_jobs(source.path))


def read(source: Source) -> Iterator[Hypothesis]:
    """The hypotheses of all jobs."""
    jobs = _jobs(source.path)
    if not jobs:
        raise UnusableFileError(source.path, "no list of ESPnet's: there is no folder 1best_recog")
    for job in jobs:
        rank = 1
        while (folder := job / _name(rank)).is_dir():
            yield from _read_rank(folder)
            rank += 1


def _jobs(path: Path) -> list[Path]:
    """The folders with lists, jobs by their numbers."""
    numbered = sorted(
        (folder for parent in (path, path / "logdir") for folder in parent.glob("output.*")),
        key=lambda folder: (folder.suffix[1:].zfill(9), folder),
    )
    return [folder for folder in (path, *numbered) if (folder / _name(1)).is_dir()]


def _name(rank: int) -> str:
    return f"{rank}best_recog"


def _read_rank(folder: Path) -> Iterator[Hypothesis]:
    scores = table(folder / "score", lambda text: number(_TENSOR.sub(r"\1", text)), "a score")

    def parse(line: str) -> Hypothesis:
        key, text = keyed(line)
        if key not in scores:
            raise ValueError(f"the file score has no {short(key)}")
        return Hypothesis(key, scores[key], text)

    path = folder / "text"
    return parsed(path, read_texts(path), parse)


def write(rows: Sequence[Rescored]) -> Mapping[str, Iterable[str]]:
    """The same files with the combined scores, ``1best_recog`` the new best."""
    files: dict[str, list[str]] = defaultdict(list)
    ranks: dict[str, int] = defaultdict(int)
    for row in rows:
        id_ = row.hypothesis.id
        ranks[id_] += 1
        folder = _name(ranks[id_])
        files[f"{folder}/text"].append(f"{id_} {row.hypothesis.text}".rstrip(" "))
        files[f"{folder}/score"].append(f"{id_} {row.combined!r}")
    return files
