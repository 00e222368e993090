"""Token ids of a corpus on disk, so that a text larger than memory trains.

A split is one file of little-endian integers, memory-mapped; the run's checkpoints say what it is. Knows
nothing about how a text is cut into tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError, open_regular, write_whole
from lm_runtime.scoring.score import Score, perplexity

Ids = NDArray[np.uint16] | NDArray[np.uint32]
"""The token ids of a text, ``(tokens,)``."""

_TYPES = ("uint16", "uint32")


@dataclass(frozen=True)
class TokenFile:
    """One split of a corpus as token ids."""

    tokens: int
    """The number of tokens."""
    unknown: int
    """The number of ``<unk>`` among them."""
    bytes: int
    """The text's length in UTF-8."""
    words: int
    """The text's words between white space, and one for each line's end."""
    dtype: str
    """``uint16`` or ``uint32``."""
    sha256: str
    """Of the file."""
    lines: int = 0
    """The text's lines; 0 where they were not counted."""
    ordinary: int = 0
    """Those of the words that look like words of prose."""
    stretches: tuple[int, ...] = ()
    """The tokens in each stretch of a text from several places; empty where that is not known."""
    documents: int = 0
    """The number of documents, whose ends are in a file of their own; 0 for one text."""
    documents_sha256: str = ""
    """Of that file."""

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise ValueError(f"dtype must be {' or '.join(_TYPES)}, got {self.dtype}")
        if sum(self.stretches) != self.tokens and self.stretches:
            raise ValueError("the stretches of a text are not the whole text")
        if min(self.tokens, self.unknown, self.bytes, self.words, self.lines, self.ordinary) < 0:
            raise ValueError("a text cannot have a negative length")

    def open(self, path: Path, *, verify: bool = True) -> Ids:
        """The ids ``(tokens,)``, memory-mapped, read-only.

        Raises:
            UnusableFileError: the file is missing or is not the one described.
        """
        try:
            with open_regular(path) as file:
                if verify and hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                    raise UnusableFileError(path, "changed since the run began")
                if not self.tokens:
                    return np.empty(0, dtype=self.dtype)
                dtype = np.dtype(self.dtype).newbyteorder("<")
                return np.memmap(file, dtype=dtype, mode="r", shape=self.tokens)
        except FileNotFoundError:
            raise UnusableFileError(path, "missing; the run cannot go on without it") from None
        except ValueError:
            raise UnusableFileError(path, f"does not hold {self.tokens:,} tokens") from None


def split_figures(loss: float, split: TokenFile) -> dict[str, float | None]:
    """A split's loss in the units of :class:`lm_runtime.scoring.score.Score`.

    Args:
        loss: the mean over the split's tokens, nats.
        split: its lengths.
    """
    counted = split.unknown, split.bytes, split.words, split.lines, split.ordinary
    score = Score(-loss * split.tokens, split.tokens, *counted)
    return {
        "perplexity": score.perplexity,
        "perplexity_per_word": score.perplexity_per_word,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "unknown": score.unknown,
    }


def stretch_perplexities(
    ids: Ids, split: TokenFile, text_loss: Callable[[Ids], float]
) -> dict[str, list[float]]:
    """The perplexity of each stretch of a split, by a name for reports; nothing where it is one stretch.

    Args:
        ids: the split's.
        split: its lengths.
        text_loss: the loss of a text by itself, summed, nats.
    """
    if len(split.stretches) < 2:
        return {}
    ends = np.cumsum(split.stretches)
    texts = (ids[end - size : end] for end, size in zip(ends, split.stretches, strict=True))
    return {"stretches": [perplexity(text_loss(text) / text.size) for text in texts if text.size]}


def write_token_file(
    path: Path, parts: Iterable[NDArray[np.int64]], *, vocab_size: int, unk_id: int | None
) -> TokenFile:
    """Write the ids ``parts`` to ``path``, atomically and in bounded memory.

    The numbers of bytes, words and lines are the text's, and are 0 here.
    """
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    digest = hashlib.sha256()
    tokens = unknown = 0
    with write_whole(path) as file:
        for ids in parts:
            data = ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
            file.write(data)
            digest.update(data)
            tokens += ids.size
            unknown += int((ids == unk_id).sum()) if unk_id is not None else 0
    return TokenFile(tokens, unknown, 0, 0, dtype, digest.hexdigest())
