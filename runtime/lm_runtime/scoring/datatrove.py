"""Steps of datatrove's pipelines that score documents: a filter by perplexity, and an annotator.

They run on its local, Slurm and Ray executors; each process loads the model at its first document. The extra
``datatrove`` brings the library, which only this module imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from lm_runtime.scoring.documents import DocumentScorer

_BATCH = 256


class PerplexityFilter(BaseFilter):  # type: ignore[misc]
    """Keeps the documents whose perplexity is within bounds; the scores stand in their metadata.

    Args:
        bundle: the model's folder, which every process must find.
        min_perplexity: documents below it are dropped, for the reason ``low_perplexity``.
        max_perplexity: documents above it are dropped, for the reason ``high_perplexity``.
        exclusion_writer: takes the documents that are dropped.
        batch_size: documents scored together.
        options: as for :class:`lm_runtime.scoring.documents.DocumentScorer`.

    Raises:
        ValueError: there is no bound, or the lower one is above the other.
    """

    name = "🧮 Perplexity"

    def __init__(
        self,
        bundle: str | Path,
        min_perplexity: float | None = None,
        max_perplexity: float | None = None,
        exclusion_writer: DiskWriter | None = None,
        batch_size: int = _BATCH,
        **options: Any,
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        if min_perplexity is None and max_perplexity is None:
            raise ValueError("a filter needs min_perplexity or max_perplexity; PerplexityAnnotator keeps all")
        if None not in (min_perplexity, max_perplexity) and min_perplexity > max_perplexity:  # type: ignore[operator]
            raise ValueError(
                f"min_perplexity must be at most max_perplexity, got {min_perplexity} and {max_perplexity}"
            )
        self.min_perplexity = min_perplexity
        self.max_perplexity = max_perplexity
        self.scorer = DocumentScorer(bundle, **options)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether one document is kept, or the reason why not."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """The same for several, which are scored together."""
        _annotate(self.scorer, batch)
        return [self._verdict(document.metadata[f"{self.scorer.prefix}perplexity"]) for document in batch]

    def _verdict(self, perplexity: float) -> bool | tuple[bool, str]:
        if self.min_perplexity is not None and perplexity < self.min_perplexity:
            return False, "low_perplexity"
        if self.max_perplexity is not None and perplexity > self.max_perplexity:
            return False, "high_perplexity"
        return True


class PerplexityAnnotator(PipelineStep):  # type: ignore[misc]
    """Adds the scores to each document's metadata, and keeps all of them.

    Args:
        bundle: the model's folder, which every process must find.
        batch_size: documents scored together.
        options: as for :class:`lm_runtime.scoring.documents.DocumentScorer`.
    """

    type = "✍️ - ANNOTATOR"
    name = "🧮 Perplexity"

    def __init__(self, bundle: str | Path, batch_size: int = _BATCH, **options: Any) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.scorer = DocumentScorer(bundle, **options)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of ``data`` with their scores."""
        documents = iter(data)
        while batch := list(islice(documents, self.batch_size)):
            with self.track_time("batch"):
                _annotate(self.scorer, batch)
            yield from self._counted(batch)

    def _counted(self, batch: list[Document]) -> Iterator[Document]:
        for document in batch:
            self.stat_update("total")
            self.update_doc_stats(document)
            yield document


def _annotate(scorer: DocumentScorer, batch: Sequence[Document]) -> None:
    """Add the scores to the metadata of documents.

    Raises:
        ValueError: one has a score's name there already.
    """
    columns = scorer.score([document.text for document in batch])
    for number, document in enumerate(batch):
        for name, values in columns.items():
            if name in document.metadata:
                raise ValueError(f"document {document.id} has the metadata {name} already; give a prefix")
            document.metadata[name] = values[number]
