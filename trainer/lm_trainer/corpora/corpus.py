"""The corpus: what the argument ``CORPUS`` means, and its text as token files.

Knows nothing about models.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError, open_regular, write_whole
from lm_runtime.scoring.score import TextCount
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.corpora.collection import Reading, find_collection, is_plain_text
from lm_trainer.corpora.datasets import DATASETS, fetch
from lm_trainer.corpora.documents import DocumentEnds, DocumentSplit, encode_documents
from lm_trainer.corpora.inspection import inspect
from lm_trainer.corpora.pydocs import write_pydocs
from lm_trainer.corpora.splits import Split, split_by_position, split_spread
from lm_trainer.corpora.token_file import Ids, TokenFile, write_token_file

DATA = Path("data")
"""The folder, under the current one, of corpora that are read from Python or downloaded."""


@dataclass(frozen=True)
class Corpus:
    """The texts to train, validate and test on."""

    name: str
    """What it is called in reports."""
    splits: dict[str, Split | DocumentSplit]
    """``train``, ``valid`` and perhaps ``test``."""
    remark: str
    """Where the splits are from, for the person at the terminal."""
    notes: tuple[str, ...] = ()
    """What that person should know of the texts' form."""

    @property
    def has_documents(self) -> bool:
        """Whether the training text is a collection of documents."""
        return isinstance(self.splits["train"], DocumentSplit)

    def unwrapped(self) -> Corpus:
        """The same texts with each paragraph as one line."""
        splits = {name: dataclasses.replace(split, unwrap=True) for name, split in self.splits.items()}
        notes = (*self.notes, "the lines of each paragraph are joined")
        return dataclasses.replace(self, splits=splits, notes=notes)


@dataclass(frozen=True)
class CorpusFacts:
    """What a run keeps of its corpus."""

    name: str
    """What it is called in reports."""
    argument: str
    """How it was named in the call; a path from the root on."""
    splits: dict[str, TokenFile]
    """The token files of ``train``, ``valid`` and perhaps ``test``."""
    also: tuple[str, ...] = ()
    """The other texts that were named beside ``argument``."""
    valid: tuple[str, ...] = ()
    """The texts that were named to validate on."""
    text_field: str | None = None
    """The field of records that has the text, if it was named."""
    on_error: str = "stop"
    """What was done about damage."""

    @property
    def arguments(self) -> dict[str, Any]:
        """How the corpus was named and read, by the settings' names, without those that were not given."""
        named = {"also": self.also, "valid": self.valid, "text_field": self.text_field}
        skips = {} if self.on_error == "stop" else {"on_error": self.on_error}
        return {"corpus": self.argument, **{name: value for name, value in named.items() if value}, **skips}

    def open(self, folder: Path, split: str, *, verify: bool = True) -> Ids:
        """The token ids of a split in the ``folder`` of token files.

        Raises:
            UnusableFileError: the file is missing, or is not the one that was written.
        """
        return self.splits[split].open(token_path(folder, split), verify=verify)


def find_corpus(argument: str, data: Path = DATA, reading: Reading | None = None) -> Corpus:
    """Turn the argument ``CORPUS`` into texts: a folder, a file, a glob, or a name.

    Args:
        argument: a folder with ``train.txt``, ``valid.txt`` and perhaps ``test.txt``; one text file;
            what :func:`lm_runtime.texts.sources.find_sources` takes; ``pydocs``; or a name from
            :data:`lm_trainer.corpora.datasets.DATASETS`.
        data: the folder of corpora that are read from Python or downloaded.
        reading: how collections of texts are read.

    Raises:
        ValueError: it is none of these.
        UnusableFileError: a file is missing or empty, or cannot be split.
    """
    path, reading = Path(argument), reading or Reading()
    if not argument:
        raise ValueError("CORPUS is empty; name a folder, a file or a corpus")
    if not path.exists() and argument in ("pydocs", *DATASETS):
        if reading.also or reading.valid:
            raise ValueError(f"the corpus {argument} has its own validation text, and nothing is added to it")
        found = write_pydocs(data) if argument == "pydocs" else fetch(argument, data)
        # Published figures are for the parts of these texts by position.
        return _folder(argument, found) if found.is_dir() else _one_file(found, spread=False)
    if not reading.also and not reading.valid:
        if path.is_dir() and any((path / f"{split}.txt").exists() for split in ("train", "valid")):
            return _folder(path.resolve().name, path)
        if path.exists() and not path.is_dir() and is_plain_text(path):
            return _one_file(path)
    if not path.exists() and argument != "-" and not reading.also and not glob.has_magic(argument):
        raise ValueError(
            f"no corpus {argument}: neither a folder, a file, nor one of {', '.join(['pydocs', *DATASETS])}"
        )
    collection = find_collection((argument, *reading.also), reading)
    if collection.one_text is None:
        return Corpus(collection.name, collection.splits, collection.remark)
    corpus = _one_file(collection.one_text)
    told = [
        text.replace(str(collection.one_text), collection.remark) for text in (corpus.remark, *corpus.notes)
    ]
    return Corpus(collection.name, corpus.splits, told[0], tuple(told[1:]))


def _folder(name: str, folder: Path) -> Corpus:
    splits = {split: Split(folder / f"{split}.txt") for split in ("train", "valid")}
    if (folder / "test.txt").exists():
        splits["test"] = Split(folder / "test.txt")
    for split in splits.values():
        if not split.path.exists():
            raise UnusableFileError(split.path, "missing; a corpus folder has train.txt and valid.txt")
    notes = [text for split in splits.values() for text in inspect(split.path)]
    for split in splits.values():
        if not split.size:
            raise UnusableFileError(split.path, "empty")
    return Corpus(name, {**splits}, f"{folder}: " + ", ".join(f"{name}.txt" for name in splits), tuple(notes))


def _one_file(path: Path, *, spread: bool = True) -> Corpus:
    notes = inspect(path)
    splits, remark = (split_spread if spread else split_by_position)(path)
    return Corpus(path.stem, {**splits}, remark, notes)


def texts(fragments: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """The texts of a stream of fragments, for a tokenizer's training."""
    return (text for text, _ in fragments)


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> dict[str, TokenFile]:
    """Write each split's token ids to ``folder/SPLIT.bin`` and say what they are.

    Raises:
        UnusableFileError: a text is not UTF-8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, split in corpus.splits.items():
        if isinstance(split, DocumentSplit):
            files[name] = _write_documents(folder, name, split, tokenizer)
        else:
            files[name] = _write_text(folder, name, split, tokenizer)
    return files


def _write_text(folder: Path, name: str, split: Split, tokenizer: Tokenizer) -> TokenFile:
    count, sizes = TextCount(), [0] * len(split.parts)
    written = write_token_file(
        token_path(folder, name),
        _encoded(split, tokenizer, count, sizes),
        vocab_size=tokenizer.vocab_size,
        unk_id=tokenizer.unk_id,
    )
    return dataclasses.replace(written, stretches=tuple(sizes), **dataclasses.asdict(count))


def _write_documents(folder: Path, name: str, split: DocumentSplit, tokenizer: Tokenizer) -> TokenFile:
    count = TextCount()
    with write_whole(documents_path(folder, name)) as file:
        ends = DocumentEnds(file)
        written = write_token_file(
            token_path(folder, name),
            ends.watch(encode_documents(map(count.count, split.documents()), tokenizer)),
            vocab_size=tokenizer.vocab_size,
            unk_id=tokenizer.unk_id,
        )
    return dataclasses.replace(
        written, documents=ends.documents, documents_sha256=ends.sha256, **dataclasses.asdict(count)
    )


def _encoded(
    split: Split, tokenizer: Tokenizer, count: TextCount, sizes: list[int]
) -> Iterator[NDArray[np.int64]]:
    """The ids of a text, and how many each of its stretches has."""
    for number, stretch in enumerate(split.stretches()):
        for ids in tokenizer.encode_fragments(count.count(stretch)):
            sizes[number] += ids.size
            yield ids


def token_path(folder: Path, split: str) -> Path:
    """Where a split's token ids are."""
    return folder / f"{split}.bin"


def require_document_ends(path: Path, file: TokenFile) -> None:
    """Check that the ends of a split's documents are those that were written.

    Raises:
        UnusableFileError: they are missing, or changed.
    """
    if not path.is_file():
        raise UnusableFileError(path, "missing; the run cannot go on without it")
    with open_regular(path) as ends:
        if hashlib.file_digest(ends, "sha256").hexdigest() != file.documents_sha256:
            raise UnusableFileError(path, "changed since the run began")


def documents_path(folder: Path, split: str) -> Path:
    """Where the ends of a split's documents are."""
    return folder / f"{split}.documents.bin"
