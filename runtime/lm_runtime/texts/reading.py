"""A collection of texts as one stream of documents, or of lines; what is damaged stops it or is left out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from lm_runtime.files import UnusableFileError
from lm_runtime.settings import check, setting
from lm_runtime.text_files import Fragments, read_fragments, split_fragments
from lm_runtime.texts.records import (
    LONGEST_RECORD,
    DamagedRecordError,
    Document,
    Found,
    json_documents,
    parquet_documents,
)
from lm_runtime.texts.sources import Source, find_sources

Item = TypeVar("Item")

RECORDS = "Records and damaged files"
_LISTED = 20


@dataclass(frozen=True)
class ReadingOptions:
    """How collections of texts are read."""

    text_field: str | None = setting(
        None,
        help="The field of JSON Lines and Parquet that has the text; if given, - has JSON Lines too. "
        "[default: text]",
        metavar="NAME",
        group=RECORDS,
    )
    on_error: str = setting(
        "stop",
        help="What to do about a damaged record or file: stop, or skip it, and list and count what was "
        "skipped.  [default: stop]",
        choices=("stop", "skip"),
        group=RECORDS,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass
class Skipped:
    """What was left out: a line for each of the first ones, and how many there are."""

    tell: Callable[[str], None]
    """Takes a line for the person at the terminal."""
    count: int = 0
    """Records, and files that could not be read to their end."""

    def add(self, error: UnusableFileError) -> None:
        """Note what is left out and why."""
        self.count += 1
        rest = "" if isinstance(error, DamagedRecordError) else "; the rest of the file is left out"
        if self.count <= _LISTED:
            self.tell(f"skipped: {error}{rest}")

    def conclude(self) -> None:
        """Tell how many there are, if there are any."""
        if self.count:
            more = f", {self.count - _LISTED:,} more than are listed" if self.count > _LISTED else ""
            self.tell(f"skipped {self.count:,} damaged records or files in all{more}")


@dataclass(frozen=True)
class Lines:
    """The lines of a text, which can be read several times."""

    read: Callable[[], Fragments]
    """Begins anew."""

    def __iter__(self) -> Fragments:
        return self.read()


@dataclass(frozen=True)
class Texts:
    """Files with texts, read in their order."""

    sources: tuple[Source, ...]
    """The files."""
    text_field: str = "text"
    """The field of a record that has its text."""
    skips: bool = False
    """Whether what is damaged is left out, and does not raise."""
    skipped: Skipped = field(default_factory=lambda: Skipped(lambda line: None), compare=False)
    """Where what is left out is noted."""

    @property
    def is_one_text(self) -> bool:
        """Whether this is a single text, not a collection of documents."""
        return len(self.sources) == 1 and self.sources[0].form == "text"

    @property
    def name(self) -> str:
        """What to call it in messages."""
        more = len(self.sources) - 1
        return str(self.sources[0].path) + (f" and {more} more" if more else "")

    @property
    def size(self) -> int:
        """In bytes, as the files stand there."""
        return sum(source.size for source in self.sources)

    def with_sources(self, sources: tuple[Source, ...]) -> Texts:
        """The same with other files."""
        return dataclasses.replace(self, sources=sources)

    def quiet(self) -> Texts:
        """The same, for reading again: what is left out was told before."""
        return dataclasses.replace(self, skipped=Skipped(lambda line: None))

    def documents(self) -> Iterator[Document]:
        """Every record, and every file that is one text, as a whole; ``position`` counts over all files.

        Raises:
            UnusableFileError: a file or a record is damaged; not if those are left out.
        """
        before = 0
        for source in self.sources:
            for found in self._sound(_documents(source, self.text_field)):
                if before:
                    position = before + found.position
                    found = Document(found.text, found.fields, found.place, position)
                yield found
            before += source.size

    def streams(self) -> Iterator[Lines]:
        """The lines of each document; those of a file that is one text in bounded memory.

        Raises:
            UnusableFileError: as :meth:`documents`.
        """
        for source in self.sources:
            if source.form == "text":
                yield Lines(partial(self._read, source.path))
            else:
                for found in self._sound(_documents(source, self.text_field)):
                    yield Lines(partial(split_fragments, found.text))

    def fragments(self) -> Fragments:
        """The lines of all documents, as one text.

        Raises:
            UnusableFileError: as :meth:`documents`.
        """
        return itertools.chain.from_iterable(self.streams())

    def _read(self, path: Path) -> Fragments:
        return self._until_damage(read_fragments(path))

    def _sound(self, found: Iterator[Found]) -> Iterator[Document]:
        for document in self._until_damage(found):
            if isinstance(document, Document):
                yield document
            elif not self.skips:
                raise document
            else:
                self.skipped.add(document)

    def _until_damage(self, items: Iterable[Item]) -> Iterator[Item]:
        try:
            yield from items
        except UnusableFileError as error:
            if not self.skips:
                raise
            self.skipped.add(error)


def open_texts(
    arguments: Iterable[str],
    options: ReadingOptions | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Texts:
    """The texts that the arguments of a command name.

    Args:
        arguments: as for :func:`lm_runtime.texts.sources.find_sources`.
        options: how they are read.
        tell: takes a line about each record that is left out.

    Raises:
        UnusableFileError: there is no such file, or no text in a folder.
    """
    options = options or ReadingOptions()
    field, skips = options.text_field, options.on_error == "skip"
    sources = find_sources(arguments, records_in=field is not None)
    return Texts(sources, "text" if field is None else field, skips, Skipped(tell))


def _documents(source: Source, field: str) -> Iterator[Found]:
    match source.form:
        case "jsonl":
            return json_documents(source.path, field)
        case "parquet":
            return parquet_documents(source.path, field)
        case "text":
            return iter([_whole(source.path, field)])


def _whole(path: Path, field: str) -> Found:
    """A file as one document, whose record is its text and its name."""
    parts, size = [], 0
    for text, ends in read_fragments(path):
        parts.append(text + "\n" * ends)
        size += len(text) + 1
        if size > LONGEST_RECORD:
            return DamagedRecordError(
                path, f"longer than {LONGEST_RECORD:,} characters: too long for one document"
            )
    text = "".join(parts)
    return Document(text, {field: text, "file": str(path)}, str(path), 0)
