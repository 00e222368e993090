"""What several texts, records or packed files mean as a corpus. Knows nothing about corpora with names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lm_runtime.files import UnusableFileError, write_whole
from lm_runtime.text_files import STANDARD_INPUT, is_read_once, read_blocks
from lm_runtime.texts.packed import is_packed
from lm_runtime.texts.reading import ReadingOptions, Texts, open_texts
from lm_runtime.texts.sources import Source, form_of
from lm_trainer.corpora.documents import DocumentSplit, divide
from lm_trainer.corpora.splits import Split


def _no_place() -> Path:
    raise ValueError("standard input and packed texts need a folder to be kept in")


@dataclass(frozen=True)
class Reading:
    """How a corpus is read, beside the argument that names it."""

    also: tuple[str, ...] = ()
    """Further texts to train on."""
    valid: tuple[str, ...] = ()
    """Texts to validate on, in place of a part of the others."""
    options: ReadingOptions = field(default_factory=ReadingOptions)
    """Of records, and of what is damaged."""
    tell: Callable[[str], None] = lambda line: None
    """Takes lines about what is left out."""
    place: Callable[[], Path] = _no_place
    """The folder for texts that can be read only once, or only from their beginning."""


@dataclass(frozen=True)
class Collection:
    """Texts that were named together."""

    name: str
    """What it is called in reports."""
    splits: dict[str, Split | DocumentSplit]
    """``train``, ``valid`` and perhaps ``test``; none for one text."""
    remark: str = ""
    """How it is divided, for the person at the terminal; of one text, its name."""
    one_text: Path | None = None
    """The file, where all is one text, which is still to be divided by position."""


def is_plain_text(path: Path) -> bool:
    """Whether a file is one text that stands there as it is: neither records, nor packed, nor a stream."""
    known = form_of(path)
    return known in (None, "text") and not is_packed(path) and not is_stream(path)


def is_stream(path: Path) -> bool:
    """Whether it is an open descriptor, such as standard input."""
    return path == STANDARD_INPUT


def find_collection(arguments: tuple[str, ...], reading: Reading) -> Collection:
    """The corpus of texts that stand together.

    Args:
        arguments: as for :func:`lm_runtime.texts.sources.find_sources`.
        reading: how they are read.

    Raises:
        UnusableFileError: a file is missing or damaged, or there are too few documents.
    """
    texts = open_texts(arguments, reading.options, reading.tell)
    called = "standard input" if arguments == ("-",) else texts.name
    short = _short_name(texts)
    texts = _kept(texts, reading)
    if not reading.valid:
        if texts.is_one_text:
            return Collection(short, {}, called, one_text=texts.sources[0].path)
        shares, counts = divide(texts)
        texts.skipped.conclude()
        quiet = texts.quiet()
        splits: dict[str, Split | DocumentSplit] = {
            split: DocumentSplit(quiet, split, shares) for split in ("train", "valid", "test")
        }
        remark = (
            f"{called}: {sum(counts.values()):,} documents, divided by a hash of their text: "
            f"{counts['train']:,} train, {counts['valid']:,} validate, {counts['test']:,} test"
        )
        return Collection(short, splits, remark)
    valid = _kept(open_texts(reading.valid, reading.options, reading.tell), reading)
    splits = {"train": _whole(texts), "valid": _whole(valid)}
    remark = f"{called} to train, {valid.name} to validate"
    return Collection(short, splits, remark)


def _whole(texts: Texts) -> Split | DocumentSplit:
    return Split(texts.sources[0].path) if texts.is_one_text else DocumentSplit(texts)


def _short_name(texts: Texts) -> str:
    first = texts.sources[0].path
    name = first.name.partition(".")[0] or first.name
    more = len(texts.sources) - 1
    return name + (f" and {more} more" if more else "")


def _kept(texts: Texts, reading: Reading) -> Texts:
    """The texts with a copy in place of each that cannot be read again, or, of one text, at any place."""
    sources = tuple(
        _copy(source, reading.place()) if _needs_copy(source, texts) else source for source in texts.sources
    )
    return texts.with_sources(sources)


def _needs_copy(source: Source, texts: Texts) -> bool:
    if source.path.is_file() and not is_stream(source.path):
        return texts.is_one_text and is_packed(source.path)
    return is_read_once(source.path)


def _copy(source: Source, folder: Path) -> Source:
    if not is_stream(source.path) and not source.path.is_file():
        raise UnusableFileError(source.path, "not a regular file; - is for standard input")
    name = "stdin" if is_stream(source.path) else source.path.name.partition(".")[0]
    path = folder / f"{name or 'text'}.{'txt' if source.form == 'text' else source.form}"
    with write_whole(path) as file:
        for block, _ in read_blocks(source.path):
            file.write(block)
    return Source(path, source.form)
