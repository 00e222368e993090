"""The file of a SentencePiece model, as far as ids depend on it.

The file is a protocol buffer, read here within bounds: neither ``sentencepiece`` nor ``protobuf`` is needed.
The fields' numbers are those of ``sentencepiece_model.proto``. Knows nothing about tokenizers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

_MOST_PIECES = 1 << 24
_LONGEST_FRAGMENT = 1 << 10
_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

Field = tuple[int, int | float | bytes]
Value = TypeVar("Value", int, float, bytes)


class ModelError(ValueError):
    """The file is damaged, or asks for what has no counterpart here; the message is one line."""


class Kind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its place is its id."""

    text: str
    """Its name, and for pieces of text what it spells, a space as U+2581."""
    score: float
    """A log-probability (unigram), or minus the place among the merges (BPE)."""
    kind: Kind
    """What it is."""

    @property
    def is_text(self) -> bool:
        """Whether a text can be cut into it; all others stand for no text of their own."""
        return self.kind in (Kind.NORMAL, Kind.USER_DEFINED)


@dataclass(frozen=True)
class SentencePieceModel:
    """Vocabulary, and how a line is normalized and cut."""

    pieces: tuple[Piece, ...]
    """In the order of their ids; exactly one is for unknown text."""
    is_bpe: bool
    """Whether pieces are found by merges; else by the most probable way to cut a line (unigram)."""
    byte_fallback: bool
    """Whether an unknown character is spelled in bytes."""
    charsmap: bytes
    """The table of character rules; empty for none."""
    add_dummy_prefix: bool
    """Whether a line begins with a space of its own."""
    remove_extra_whitespaces: bool
    """Whether spaces go at a line's beginning and end, and all but one of several."""

    @property
    def texts(self) -> list[str]:
        """The pieces that a text can be cut into."""
        return [piece.text for piece in self.pieces if piece.is_text]

    def names(self, *kinds: Kind) -> list[str]:
        """The pieces of these kinds, in the order of their ids."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def read_model(content: bytes) -> SentencePieceModel:
    """Read the content of a ``.model`` file.

    Raises:
        ModelError: it is damaged, or asks for what has no counterpart here.
    """
    fields = list(_fields(content))
    trainer, normalizer, denormalizer = (
        list(_fields(b"".join(_values(fields, number, bytes)))) for number in (2, 3, 5)
    )
    model_type = _last(trainer, 3, 1)
    if model_type not in (1, 2):
        raise ModelError(f"a {_TYPES.get(model_type, 'nameless')} model, where unigram and bpe can be read")
    for name, found in (
        ("treat_whitespace_as_suffix", _last(trainer, 24, 0)),
        ("escape_whitespaces=false", not _last(normalizer, 5, 1)),
        ("a denormalization", any(_values(denormalizer, 2, bytes))),
    ):
        if found:
            raise ModelError(f"{name} has no counterpart here")
    pieces = tuple(_piece(value) for value in _values(fields, 1, bytes))
    _check(pieces)
    return SentencePieceModel(
        pieces=pieces,
        is_bpe=model_type == 2,
        byte_fallback=bool(_last(trainer, 35, 0)),
        charsmap=b"".join(_values(normalizer, 2, bytes)[-1:]),
        add_dummy_prefix=bool(_last(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_last(normalizer, 4, 1)),
    )


def _check(pieces: tuple[Piece, ...]) -> None:
    kinds = [piece.kind for piece in pieces]
    if not any(piece.is_text for piece in pieces) or len(pieces) > _MOST_PIECES:
        raise ModelError(f"{len(pieces):,} pieces, {sum(piece.is_text for piece in pieces):,} of them text")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise ModelError("a piece is there twice")
    if kinds.count(Kind.UNKNOWN) != 1:
        raise ModelError(f"{kinds.count(Kind.UNKNOWN)} pieces for unknown text, where 1 is needed")
    if Kind.UNUSED in kinds:
        raise ModelError(f"the piece {pieces[kinds.index(Kind.UNUSED)].text!r} is out of use")
    if short := [piece.text for piece in pieces if not piece.is_text and len(piece.text) < 2]:
        raise ModelError(f"the symbol {short[0]!r} is a single character, which a text may have")


def _piece(content: bytes) -> Piece:
    fields = list(_fields(content))
    texts, scores = _values(fields, 1, bytes), _values(fields, 2, float)
    try:
        text, kind = b"".join(texts[-1:]).decode("utf-8"), Kind(_last(fields, 3, 1))
    except ValueError as error:
        raise ModelError(f"a piece is damaged ({error})") from None
    score = scores[-1] if scores else 0.0
    if not 0 < len(text) <= _LONGEST_FRAGMENT or not math.isfinite(score):
        raise ModelError(f"a piece of {len(text):,} characters and the score {score}")
    return Piece(text, score, kind)


def _fields(content: bytes) -> Iterator[Field]:
    """The fields of a message: numbers and values, messages as bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        match key & 7:
            case 0:
                value, at = _varint(content, at)
                yield key >> 3, value
                continue
            case 2:
                size, at = _varint(content, at)
                yield key >> 3, _take(content, at, size)
            case 5:
                size = 4
                yield key >> 3, float(struct.unpack("<f", _take(content, at, size))[0])
            case 1:
                size = 8
                _take(content, at, size)  # none of the fields that are read
            case _:
                raise ModelError(f"byte {at}: no field of a protocol buffer")
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number in base 128, its lowest digit first, and the place after it."""
    value = 0
    for place, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ModelError(f"byte {at}: cut off, or no number")


def _take(content: bytes, at: int, size: int) -> bytes:
    if at + size > len(content):
        raise ModelError(f"byte {at}: cut off")
    return content[at : at + size]


def _values(fields: Sequence[Field], number: int, kind: type[Value]) -> list[Value]:
    """Every value of the field ``number``.

    Raises:
        ModelError: one is of another type.
    """
    found = [value for other, value in fields if other == number]
    values = [value for value in found if isinstance(value, kind)]
    if len(values) < len(found):
        raise ModelError(f"field {number} is no {kind.__name__}")
    return values


def _last(fields: Sequence[Field], number: int, default: int) -> int:
    return [default, *_values(fields, number, int)][-1]
