"""A share of an earlier text among a new one, so that a network that learns the new one keeps the earlier."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_trainer.corpora.token_file import Ids, TokenFile, write_token_file

_STRETCH = 1024
"""Tokens of the earlier text at a time."""


def replay(
    path: Path,
    new: TokenFile,
    earlier: Ids,
    of: TokenFile,
    share: float,
    *,
    vocab_size: int,
    unk_id: int | None,
) -> TokenFile:
    """Put stretches of an earlier text between those of a new one, both spread evenly.

    Args:
        path: the new text's ids, which the mixed ones replace.
        new: what is known of them.
        earlier: the ids of the earlier text, at most all of which are taken.
        of: what is known of those.
        share: of the earlier text in the mixed one, above 0 and below 1.
        vocab_size: the number of tokens.
        unk_id: the id of ``<unk>``.

    Returns:
        what is known of the mixed text, with the same share of the earlier one's bytes, words and lines.
    """
    taken = min(earlier.size, round(new.tokens * share / (1 - share)))
    count = max(1, taken // _STRETCH)
    ids = new.open(path)

    def parts() -> Iterator[NDArray[np.int64]]:
        for number in range(count):
            own, length = (_bounds(size, number, count) for size in (new.tokens, taken))
            start = earlier.size * number // count
            yield ids[slice(*own)].astype(np.int64)
            yield earlier[start : start + length[1] - length[0]].astype(np.int64)

    written = write_token_file(path, parts(), vocab_size=vocab_size, unk_id=unk_id)
    counted = {
        name: getattr(new, name) + round(getattr(of, name) * taken / max(of.tokens, 1))
        for name in ("bytes", "words", "lines", "ordinary")
    }
    return dataclasses.replace(written, **counted)


def _bounds(size: int, number: int, count: int) -> tuple[int, int]:
    return size * number // count, size * (number + 1) // count
