"""The vocabulary of ordinary words: marks are parted from words, and joined again in the output.

It is made of the parts of ``tokenizers`` alone, so that other software reads and writes texts likewise. A
word that has a space before it begins with U+2581, as in SentencePiece (Kudo and Richardson 2018); so does a
line's first one, unless the line begins with a mark that closes.
"""

from __future__ import annotations

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from lm_runtime.tokenizer import UNK

_SPACE = "\u2581"
_LETTERS = r"[\p{L}\p{M}\p{N}_]"
_CLOSING = r",.;:!?)\]}\u2026"
_WORD = rf"{_LETTERS}+(?:['\u2019]{_LETTERS}+)*"
_MARK = rf"[^\p{{L}}\p{{M}}\p{{N}}_{_SPACE}]"
PATTERN = rf"{UNK}|{_SPACE}?(?:{_WORD}|{_MARK})|{_SPACE}"
"""A word, with apostrophes inside it, or one mark; with the space before it."""


def normalizer(*, lowercase: bool) -> normalizers.Normalizer:
    """White space becomes one U+2581, and stands before a line's first word."""
    steps = [
        normalizers.Replace(Regex(r"[^\S\n]+$"), ""),
        normalizers.Replace(Regex(r"[^\S\n]+"), _SPACE),
        normalizers.Replace(Regex(rf"^(?=[^\n{_SPACE}{_CLOSING}])"), _SPACE),
        # A corpus in which rare words are replaced already, such as the Penn Treebank.
        normalizers.Replace(Regex(rf"{_SPACE}{UNK}(?={_SPACE}|$)"), UNK),
    ]
    return normalizers.Sequence([normalizers.Lowercase(), *steps] if lowercase else steps)


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cut into :data:`PATTERN`."""
    return pre_tokenizers.Split(Regex(PATTERN), "isolated")


def decoder() -> decoders.Decoder:
    """Spaces where they were; an unknown word has one before it."""
    return decoders.Sequence([decoders.Replace(UNK, f"{_SPACE}{UNK}"), decoders.Metaspace()])
