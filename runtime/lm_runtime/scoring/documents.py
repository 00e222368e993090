"""Scores of documents as columns, for whatever reads and writes them: files, Ray Data, datasets, Dask, Spark.

Knows nothing about files.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_runtime.bundle import Precision
from lm_runtime.models.protocol import BundleModel, Provider
from lm_runtime.settings import short

FIGURES = ("perplexity", "log_probability", "tokens", "unknown", "bits_per_byte")
"""What every document gets; ``bits_per_byte`` is None, in a column NaN, where words are unknown."""
BUCKET = "bucket"
"""What it gets where there are buckets."""
BUCKETS = ("head", "middle", "tail")
"""From the lowest perplexities to the highest, as in CCNet (Wenzek et al. 2020)."""

Columns = dict[str, list[Any]]


class DocumentScorer:
    """Scores batches of documents that come as columns; loads its model at the first one.

    It can be pickled before and after that, and the model stays behind: each process loads its own. So it
    goes as it is into ``map_batches`` of Ray Data and ``map(..., batched=True)`` of Hugging Face's datasets,
    and, by ``frame.to_dict("list")``, into the pandas frames of Dask's ``map_partitions`` and Spark's
    ``mapInPandas``.

    In fp32 a document's score does not depend on its batch; the int8 graph has one scale for the activations
    of a call, so it does a little.

    Args:
        bundle: its folder, which every process must find.
        text_field: the column with the texts.
        prefix: what the new columns' names begin with.
        buckets: two perplexities: below the first is ``head``, from the second on ``tail``.
        precision: which graph.
        provider: where it runs.
        threads: of each process.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        text_field: str = "text",
        prefix: str = "",
        buckets: tuple[float, float] | None = None,
        precision: Precision = "fp32",
        provider: Provider = "cpu",
        threads: int = 1,
    ) -> None:
        if buckets is not None:
            check_buckets(buckets)
        self.bundle = Path(bundle)
        self.text_field = text_field
        self.prefix = prefix
        self.buckets = buckets
        self._options: dict[str, Any] = {"precision": precision, "provider": provider, "threads": threads}
        self._model: BundleModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    @property
    def names(self) -> tuple[str, ...]:
        """The new columns."""
        return tuple(self.prefix + name for name in (*FIGURES, *([BUCKET] if self.buckets else [])))

    def load(self) -> BundleModel:
        """Load the model, if it is not loaded yet."""
        if self._model is None:
            from lm_runtime.models.load import load

            self._model = load(self.bundle, **self._options)
        return self._model

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns and those of the scores, as arrays where the texts are one, else as lists.

        Raises:
            ValueError: there are no texts, one of them is none, or a new column's name is taken.
        """
        if self.text_field not in columns:
            raise ValueError(f"no column {self.text_field}; there are: {', '.join(columns)}")
        for name in self.names:
            if name in columns:
                raise ValueError(taken(name))
        texts = columns[self.text_field]
        scores = self.score([_text(text, number) for number, text in enumerate(texts)])
        if isinstance(texts, np.ndarray):
            return {**columns, **{name: _array(values) for name, values in scores.items()}}
        return {**columns, **{name: _without_none(values) for name, values in scores.items()}}

    def score(self, texts: Sequence[str]) -> Columns:
        """The new columns for ``texts``."""
        from lm_runtime.scoring.texts import score_texts

        columns: Columns = {name: [] for name in self.names}
        for score in score_texts(self.load(), texts):
            for name in FIGURES:
                columns[self.prefix + name].append(getattr(score, name))
            if self.buckets:
                place = bisect.bisect_right(self.buckets, score.perplexity)
                columns[self.prefix + BUCKET].append(BUCKETS[place])
        return columns


def check_buckets(bounds: Sequence[float]) -> None:
    """Check the perplexities that part three buckets.

    Raises:
        ValueError: they are not two ascending numbers above 0.
    """
    if len(bounds) != 2 or not 0 < bounds[0] < bounds[1]:
        raise ValueError(f"buckets must be two perplexities, the lower one first, got {short(list(bounds))}")


def taken(name: str) -> str:
    """What to say of a name that a document has already."""
    return f"the field {name} is there already; a prefix (--score-prefix) gives the score's another name"


def _text(text: Any, number: int) -> str:
    if not isinstance(text, str):
        raise ValueError(f"document {number + 1} of the batch is no text, but {short(text)}")
    return str(text)


def _array(values: list[Any]) -> Any:
    if any(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    return np.array(_without_none(values))


def _without_none(values: list[Any]) -> list[Any]:
    """The values, with NaN in place of those that are missing: a column of None alone has no type."""
    return [math.nan if value is None else value for value in values]
