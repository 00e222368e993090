"""``lm-score --documents``: every record with its scores, in the order of the input, by all cores."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from lm_runtime.bundle import CONFIG_FILE
from lm_runtime.commands import Progress, note
from lm_runtime.commands.documents_options import DocumentsOptions
from lm_runtime.commands.orders import order_note
from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.documents import BUCKET, DocumentScorer, taken
from lm_runtime.scoring.score import perplexity
from lm_runtime.scoring.workers import WorkerDiedError, score_batches, usable_cores
from lm_runtime.texts.reading import Texts
from lm_runtime.texts.records import Document
from lm_runtime.texts.scored import Done, ScoredFile, described

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 18
"""Of a batch, which the output must not depend on: so it is no option."""
_FIRST_TOLD_SECONDS = 60.0

_KINDS = {
    "perplexity": float,
    "log_probability": float,
    "tokens": int,
    "unknown": int,
    "bits_per_byte": float,
}


def score_documents(
    bundle: Path,
    texts: Texts,
    options: DocumentsOptions,
    *,
    precision: Any,
    provider: Any,
    threads: int | None,
) -> None:
    """Score every document of ``texts`` and write it, unless it is left out, to the output.

    Raises:
        UnusableFileError: a text is damaged, or the output cannot be written or gone on with.
        ValueError: a record has a field of a score's name, or does not fit the output.
    """
    scorer = DocumentScorer(
        bundle,
        text_field=texts.text_field,
        prefix=options.score_prefix,
        buckets=options.bounds,
        precision=precision,
        provider="cpu" if provider == "auto" else provider,
        threads=threads or 1,
    )
    model = scorer.load()  # what is wrong with the bundle is said now
    if (text := order_note(model.config, "document")) is not None:
        note(text)
    workers = options.workers or (1 if provider == "cuda" else usable_cores())
    kinds = {options.score_prefix + name: kind for name, kind in (_KINDS | {BUCKET: str}).items()}
    extra = {name: kinds[name] for name in scorer.names}
    path = Path(options.output)
    begun = time.monotonic()
    with ScoredFile(path, _call(bundle, texts, options, precision), texts.sources[0], extra) as out:
        before = out.done.documents
        if before:
            note(f"goes on after {before:,} documents that are scored already")
        for documents, columns in _scored(scorer, texts, out, workers):
            rows = _rows(documents, columns, options)
            prefix = options.score_prefix
            tokens, total = sum(columns[f"{prefix}tokens"]), sum(columns[f"{prefix}log_probability"])
            out.write(rows, len(documents), tokens, total)
        if not out.done.documents:
            raise UnusableFileError(texts.name, "empty: there is nothing to score")
        out.finish()
        done = out.done
    texts.skipped.conclude()
    _conclude(done, done.documents - before, time.monotonic() - begun, workers)
    click.echo(path)


def _call(bundle: Path, texts: Texts, options: DocumentsOptions, precision: str) -> dict[str, Any]:
    """What the output follows from: the same again gives the same bytes."""
    return {
        "bundle": hashlib.sha256((bundle / CONFIG_FILE).read_bytes()).hexdigest(),
        "precision": precision,
        "texts": [described(source) for source in texts.sources],
        "text field": texts.text_field,
        "way with errors": texts.skips,
        "prefix": options.score_prefix,
        "filter": [options.min_perplexity, options.max_perplexity],
        "choice of buckets": options.bounds,
    }


def _scored(
    scorer: DocumentScorer, texts: Texts, out: ScoredFile, workers: int
) -> Iterator[tuple[list[Document], dict[str, list[Any]]]]:
    """The batches of documents that are not done yet, with their scores; shows the progress."""
    progress = Progress(texts.size, alone=True)
    begun, before = time.monotonic(), out.done.documents
    told = begun
    first = None
    try:
        for documents, columns in score_batches(scorer, _batches(texts.documents(), before), workers):
            yield documents, columns
            position = documents[-1].position
            first = position if first is None else first
            now = time.monotonic()
            speed = f"{(out.done.documents - before) / max(now - begun, 1e-9):,.0f} documents/s"
            progress.show(position, first, speed)
            if now - told > _FIRST_TOLD_SECONDS and not progress.shown:
                told = now
                note(f"{out.done.documents:,} documents, {speed}")
    except WorkerDiedError as error:
        raise click.ClickException(str(error)) from None


def _batches(documents: Iterable[Document], skip: int) -> Iterator[tuple[list[Document], list[str]]]:
    """Documents in batches that depend on them alone; the first ``skip``, which are whole batches, are left
    out."""
    batch: list[Document] = []
    characters = 0
    for number, document in enumerate(documents):
        if number < skip:
            continue
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch, [each.text for each in batch]
            batch, characters = [], 0
    if batch:
        yield batch, [each.text for each in batch]


def _rows(
    documents: list[Document], columns: dict[str, list[Any]], options: DocumentsOptions
) -> list[dict[str, Any]]:
    """The records that are kept, with their scores."""
    low, high = options.min_perplexity, options.max_perplexity
    rows = []
    for document, *values in zip(documents, *columns.values(), strict=True):
        for name in columns:
            if name in document.fields:
                raise ValueError(f"{document.place}: {taken(name)}")
        scores = dict(zip(columns, values, strict=True))
        found = scores[f"{options.score_prefix}perplexity"]
        if (low is None or found >= low) and (high is None or found <= high):
            rows.append({**document.fields, **scores})
    return rows


def _conclude(done: Done, new: int, seconds: float, workers: int) -> None:
    kept = "" if done.written == done.documents else f", {done.written:,} of them written"
    mean = perplexity(-done.log_probability / done.tokens)
    note(
        f"{done.documents:,} documents{kept}; perplexity {mean:.4f} a token over {done.tokens:,} tokens; "
        f"{new / max(seconds, 1e-9):,.0f} documents/s by {workers} processes"
    )
