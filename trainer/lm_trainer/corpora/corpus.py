"""The corpus: what the argument ``CORPUS`` means, and its text as token files.

Knows nothing about models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.score import TextCount
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.corpora.datasets import DATASETS, fetch
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
    splits: dict[str, Split]
    """``train``, ``valid`` and perhaps ``test``."""
    remark: str
    """Where the splits are from, for the person at the terminal."""
    notes: tuple[str, ...] = ()
    """What that person should know of the texts' form."""

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

    def open(self, folder: Path, split: str, *, verify: bool = True) -> Ids:
        """The token ids of a split in the ``folder`` of token files.

        Raises:
            UnusableFileError: the file is missing, or is not the one that was written.
        """
        return self.splits[split].open(token_path(folder, split), verify=verify)


def find_corpus(argument: str, data: Path = DATA) -> Corpus:
    """Turn the argument ``CORPUS`` into texts: a folder, a file, or a name.

    Args:
        argument: a folder with ``train.txt``, ``valid.txt`` and perhaps ``test.txt``; one text file;
            ``pydocs``; or a name from :data:`lm_trainer.corpora.datasets.DATASETS`.
        data: the folder of corpora that are read from Python or downloaded.

    Raises:
        ValueError: it is none of these.
        UnusableFileError: a file is missing or empty, or cannot be split.
    """
    path = Path(argument)
    if not argument:
        raise ValueError("CORPUS is empty; name a folder, a file or a corpus")
    if path.is_dir():
        return _folder(path.resolve().name, path)
    if path.exists():
        return _one_file(path)
    if argument == "pydocs":
        return _folder(argument, write_pydocs(data))
    if argument in DATASETS:
        found = fetch(argument, data)
        # Published figures are for the parts of these texts by position.
        return _folder(argument, found) if found.is_dir() else _one_file(found, spread=False)
    raise ValueError(
        f"no corpus {argument}: neither a folder, a file, nor one of {', '.join(['pydocs', *DATASETS])}"
    )


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
    return Corpus(name, splits, f"{folder}: " + ", ".join(f"{name}.txt" for name in splits), tuple(notes))


def _one_file(path: Path, *, spread: bool = True) -> Corpus:
    notes = inspect(path)
    splits, remark = (split_spread if spread else split_by_position)(path)
    return Corpus(path.stem, splits, remark, notes)


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
        count, sizes = TextCount(), [0] * len(split.parts)
        written = write_token_file(
            token_path(folder, name),
            _encoded(split, tokenizer, count, sizes),
            vocab_size=tokenizer.vocab_size,
            unk_id=tokenizer.unk_id,
        )
        files[name] = dataclasses.replace(written, stretches=tuple(sizes), **dataclasses.asdict(count))
    return files


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
