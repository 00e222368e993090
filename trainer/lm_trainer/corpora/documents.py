"""Collections of documents: which train, which validate and test, and their token ids with their ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError
from lm_runtime.text_files import Fragments
from lm_runtime.texts.reading import Texts
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.corpora.unwrapping import unwrap

SHARE = 0.05
"""Of the documents, for each of validation and test."""

_HASHES = 1 << 64
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Shares:
    """Which documents are in which split: by a hash of their text, so that equal ones are together."""

    valid: int
    """Hashes below it validate."""
    test: int
    """Hashes below it, and not below ``valid``, test."""

    def split_of(self, number: int) -> str:
        """The split of the documents whose text has the hash ``number``."""
        return "valid" if number < self.valid else "test" if number < self.test else "train"


@dataclass(frozen=True)
class DocumentSplit:
    """The documents of a collection that are in one split."""

    texts: Texts
    """The collection."""
    split: str = ""
    """The split's name, where the collection is divided by ``shares``."""
    shares: Shares | None = None
    """How it is divided; None where all documents are in this split."""
    unwrap: bool = False
    """Whether lines are joined to paragraphs."""

    @property
    def path(self) -> Path:
        """The first file, for messages."""
        return self.texts.sources[0].path

    def documents(self) -> Iterator[Fragments]:
        """The lines of each document."""
        for lines in self.texts.streams():
            if self.shares is None or self.shares.split_of(text_hash(lines)) == self.split:
                yield unwrap(lines) if self.unwrap else iter(lines)

    def fragments(self) -> Fragments:
        """The lines of all documents."""
        for document in self.documents():
            yield from document


def text_hash(fragments: Iterable[tuple[str, bool]]) -> int:
    """64 bits that depend on a text's lines alone, in whatever kind of file they stand."""
    digest = hashlib.blake2b(digest_size=8)
    for text, ends in fragments:
        digest.update(text.encode() + b"\n" * ends)
    return int.from_bytes(digest.digest(), "big")


def divide(texts: Texts) -> tuple[Shares, dict[str, int]]:
    """Choose the documents that validate and test: a share of each, one text at least.

    Returns:
        the shares, and the number of documents in each split.

    Raises:
        UnusableFileError: there are fewer than three different texts.
    """
    bound = int(SHARE * _HASHES)
    counts = {"valid": 0, "test": 0, "train": 0}
    first, lowest = Shares(bound, 2 * bound), set[int]()
    for document in texts.streams():
        number = text_hash(document)
        split = first.split_of(number)
        counts[split] += 1
        if number >= bound:  # the three lowest of these, for collections in which a share has none
            lowest.add(number)
            if len(lowest) > 3:
                lowest.remove(max(lowest))
    if all(counts.values()):
        return first, counts
    shares = _with_one_each(first, counts, sorted(lowest))
    if shares is None:
        raise UnusableFileError(
            texts.name,
            f"{sum(counts.values()):,} documents, too few different ones to split off a validation and a "
            "test text; give others by --valid",
        )
    counts = dict.fromkeys(counts, 0)
    for document in texts.streams():
        counts[shares.split_of(text_hash(document))] += 1
    return shares, counts


def _with_one_each(shares: Shares, counts: dict[str, int], others: list[int]) -> Shares | None:
    """Shares such that no split is empty; None if there are too few different texts.

    Args:
        shares: those wanted.
        counts: the documents in each split by them.
        others: the three lowest hashes of texts that do not validate by them.
    """
    valid, test = shares.valid, shares.test
    if not counts["valid"] and others:
        valid = others.pop(0) + 1
    if len(others) < 2:
        return None
    if others[0] >= test or (others[-1] < test and not counts["train"]):
        test = others[0] + 1
    return Shares(valid, test)


def encode_documents(
    documents: Iterable[Fragments], tokenizer: Tokenizer
) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """The ids of documents, about a megabyte of text at a time.

    Yields:
        ids ``(tokens,)``, and at which of them documents end.
    """
    batch: list[tuple[str, bool]] = []
    last: list[int] = []  # the number of fragments up to each document's end
    characters = 0
    for document in documents:
        for fragment in document:
            batch.append(fragment)
            characters += len(fragment[0]) + 1
            if characters >= _BATCH_CHARACTERS:
                yield _encoded(batch, last, tokenizer)
                batch, last, characters = [], [], 0
        last.append(len(batch))
    if batch or last:
        yield _encoded(batch, last, tokenizer)


def _encoded(
    batch: list[tuple[str, bool]], last: list[int], tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], list[int]]:
    ids = tokenizer.encode_each(batch)
    ends = np.cumsum([0, *map(len, ids)])
    flat = np.array([token for fragment in ids for token in fragment], dtype=np.int64)
    return flat, [int(ends[number]) for number in last]


class DocumentEnds:
    """Writes where documents end, as numbers of tokens from the beginning, while they are encoded.

    Args:
        file: what is written to.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.documents = 0
        """The number of ends that are written."""
        self._file = file
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what is written."""
        return self._digest.hexdigest()

    def watch(self, parts: Iterable[tuple[NDArray[np.int64], list[int]]]) -> Iterator[NDArray[np.int64]]:
        """Pass on the ids that :func:`encode_documents` gives, and write their ends."""
        before = 0
        for ids, ends in parts:
            data = (before + np.array(ends, dtype=np.int64)).astype("<i8").tobytes()
            self._file.write(data)
            self._digest.update(data)
            self.documents += len(ends)
            before += ids.size
            yield ids
