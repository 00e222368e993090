"""Collections of documents: which train, which validate and test, and their token ids with their ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError, write_whole
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
        if self.shares is None:
            found = self.texts.streams()
        else:
            found = self._own(self.shares)
        return map(unwrap, found) if self.unwrap else found

    def _own(self, shares: Shares) -> Iterator[Fragments]:
        # Each text is read twice: one that is a whole file may be larger than the memory.
        for once, again in zip(self.texts.streams(), self.texts.streams(), strict=True):
            if shares.split_of(text_hash(once)) == self.split:
                yield again

    def fragments(self) -> Fragments:
        """The lines of all documents."""
        for document in self.documents():
            yield from document


def text_hash(fragments: Fragments) -> int:
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
    first, copies = Shares(bound, 2 * bound), dict[int, int]()
    for document in texts.streams():
        number = text_hash(document)
        split = first.split_of(number)
        counts[split] += 1
        if number >= bound:  # the three lowest of these, for collections in which a share has none
            copies[number] = copies.get(number, 0) + 1
            if len(copies) > 3:
                del copies[max(copies)]
    shares = _with_one_each(first, counts, sorted(copies))
    if shares is None:
        raise UnusableFileError(
            texts.name,
            f"{sum(counts.values()):,} documents, too few different ones to split off a validation and a "
            "test text; give others by --valid",
        )
    if shares != first:
        counts = {"valid": 0, "test": 0, "train": 0}
        for document in texts.streams():
            counts[shares.split_of(text_hash(document))] += 1
    return (shares, counts) if counts["train"] else _no_training(texts)


def _no_training(texts: Texts) -> tuple[Shares, dict[str, int]]:
    raise UnusableFileError(texts.name, "no document is left to train on; give others by --valid")


def _with_one_each(shares: Shares, counts: dict[str, int], lowest: list[int]) -> Shares | None:
    """Shares such that no split is empty, from the lowest hashes that do not validate."""
    valid, test = shares.valid, shares.test
    if not counts["valid"]:
        if not lowest:
            return None
        valid = lowest.pop(0) + 1
    if not lowest:
        return None
    if lowest[0] >= test or valid >= test:
        test = lowest[0] + 1
    return Shares(valid, test) if lowest[-1] >= test or counts["train"] > len(lowest) else None


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


def write_document_ends(path: Path, parts: Iterable[NDArray[np.uint64]]) -> None:
    """Write where documents end, as numbers of tokens, atomically."""
    with write_whole(path) as file:
        for part in parts:
            file.write(part.astype("<u8").tobytes())
