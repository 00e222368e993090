"""Token ids of a corpus on disk, so that a text larger than memory trains.

A split is one file of little-endian integers, memory-mapped; ``tokens.json`` beside them says what
they are. Knows nothing about how a text is cut into tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError, open_regular, write_whole
from lm_runtime.scoring.score import Score

Ids = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class TokenFile:
    """One split of a corpus as token ids."""

    tokens: int
    """How many."""
    unknown: int
    """How many of them are ``<unk>``."""
    bytes: int
    """The text's length in UTF-8."""
    words: int
    """Its words between white space, and one for each line's end."""
    dtype: str
    """``uint16`` or ``uint32``."""
    sha256: str
    """Of the file."""

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
                return np.memmap(file, dtype=np.dtype(self.dtype).newbyteorder("<"), mode="r")
        except FileNotFoundError:
            raise UnusableFileError(path, "missing; the run cannot go on without it") from None

    def to_dict(self) -> dict[str, int | str]:
        """Plain values, for a checkpoint."""
        return dataclasses.asdict(self)


def split_figures(loss: float, split: dict[str, Any]) -> dict[str, float | None]:
    """A split's loss (nats a token) in the units of :class:`lm_runtime.scoring.score.Score`.

    Args:
        loss: the mean over the split's tokens.
        split: what :meth:`TokenFile.to_dict` gave.
    """
    score = Score(-loss * split["tokens"], *(split[name] for name in ("tokens", "unknown", "bytes", "words")))
    return {
        "perplexity": score.perplexity,
        "perplexity_per_word": score.perplexity_per_word,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "unknown": score.unknown,
    }


def write_token_file(
    path: Path, parts: Iterable[NDArray[np.int64]], *, vocab_size: int, unk_id: int | None
) -> TokenFile:
    """Write the ids ``parts`` to ``path``, whole or not at all, in bounded memory.

    The counts of bytes and words are those of the text and are left at 0 here.
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
