"""The tokenizer: text to token ids and back, by the ``tokenizers`` library.

One rule holds for every kind: a line's end is one token, ``<eos>``, in the project's own vocabularies spelled
``"\\n"``. So a text is encoded line by line, the cut into fragments for streaming never shows, and ``<eos>``
prints as a line break. Knows nothing about models.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from lm_runtime.files import UnusableFileError, first_line, read_regular
from lm_runtime.settings import short

EOS = "<eos>"
"""What people call the token of a line's end, however its ``tokenizer.json`` spells it."""
LINE_BREAK = "\n"
"""How this project's own vocabularies spell it."""
UNK = "<unk>"
ANY_CHARACTER = r"[\s\S]"
"""The pattern that cuts a text into characters."""
WHITE_SPACE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
"""White space of Unicode, in characters that every library of regular expressions takes alike."""
# What other makers of tokenizer.json call the same thing.
_EOS_NAMES = (EOS, "</s>", "<sos/eos>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")
_UNK_NAMES = (UNK, "[UNK]", "<|unk|>")
CRLF = {"type": "Replace", "pattern": {"String": "\r\n"}, "content": LINE_BREAK}
"""The one normalizer of the project's own kinds."""
_BATCH_CHARACTERS = 1 << 20
_CONTEXT = 8
_LARGEST_FILE = 1 << 30
_LOWERCASE = {"type": "Lowercase"}
_SEPARATORS = "\x1c\x1d\x1e\x1f"
_SEPARATORS_AS_LETTERS = str.maketrans(_SEPARATORS, "xxxx")

Kind = Literal["word", "char", "bpe", "other"]


class Tokenizer:
    """Encodes and decodes text; made from the text of a ``tokenizer.json``.

    Threads may share one. A pickle holds the text of the file.

    Raises:
        ValueError: the text is no tokenizer, or one without an end-of-line token or with holes in
            its ids.
    """

    def __init__(self, json_text: str) -> None:
        data = _parse(json_text)
        self.kind: Kind = _kind(data)
        """How text is cut: word, char, (byte-level) bpe, or another way that a given file defines."""
        self.lowercases = _LOWERCASE in steps_of(data.get("normalizer"))
        """Whether every text is read in lower case."""
        with _library("not a tokenizer.json"):
            self._engine = tokenizers.Tokenizer.from_str(json_text)
            _simplify(self._engine, data, self.kind, lowercases=self.lowercases)
            # Text that spells a special token's name is text, but for a word of that name in a word
            # vocabulary.
            self._engine.encode_special_tokens = True
            self._engine.no_padding()
            self._engine.no_truncation()
            vocabulary = self._engine.get_vocab(with_added_tokens=True)
        self.json_text = json_text
        self.vocab_size = len(vocabulary)
        self.tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        """The tokens in the order of their ids; a line break is named ``<eos>``."""
        if sorted(vocabulary.values()) != list(range(self.vocab_size)) or not vocabulary:
            raise ValueError(f"the {self.vocab_size} token ids are not 0 to {self.vocab_size - 1}")
        names = [name for name in _EOS_NAMES if name in vocabulary]
        if not names and not _has_line_break(data):
            raise ValueError(f"no end-of-line token: none of {', '.join(_EOS_NAMES)} is in the vocabulary")
        self.eos_spelling = LINE_BREAK if _has_line_break(data) else names[0]
        """How ``tokenizer.json`` spells the token of a line's end."""
        self.eos_id = vocabulary[self.eos_spelling]
        """The id that ends a line, and that a model has read before its first token."""
        if self.eos_spelling == LINE_BREAK:
            self.tokens[self.eos_id] = EOS
        self.unk_id = next((vocabulary[name] for name in _UNK_NAMES if name in vocabulary), None)
        """The id of words that are not in the vocabulary; None where every text can be spelled."""

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            UnusableFileError: there is no such file, or it is no usable tokenizer.
        """
        return cls.from_bytes(path, read_regular(path, _LARGEST_FILE))

    @classmethod
    def from_bytes(cls, path: Path, content: bytes) -> Tokenizer:
        """The tokenizer in the ``content`` of the file ``path``.

        Raises:
            UnusableFileError: it is no usable tokenizer.
        """
        try:
            return cls(content.decode("utf-8"))
        except UnicodeDecodeError:
            raise UnusableFileError(path, "not UTF-8") from None
        except ValueError as error:
            raise UnusableFileError(path, str(error)) from None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return Tokenizer, (self.json_text,)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, vocab_size={self.vocab_size})"

    @property
    def vocabulary_sha256(self) -> str:
        """The sha256 of the tokens in order of id, each ended by a line break (hexadecimal)."""
        return hashlib.sha256("".join(f"{token}\n" for token in self.tokens).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, each line break as ``<eos>``; no ``<eos>`` is added at the end.

        Raises:
            UnicodeEncodeError: the text has a lone surrogate, which no UTF-8 text can have.
        """
        text.encode()
        lines = text.replace("\r\n", "\n").split("\n")
        ids: list[int] = []
        for number, line in enumerate(self.encode_lines(lines)):
            if number:
                ids.append(self.eos_id)
            ids.extend(line)
        return ids

    def encode_lines(self, lines: list[str]) -> list[list[int]]:
        """The ids of each of ``lines``, which have no line breaks; no ``<eos>`` is added.

        Raises:
            ValueError: the tokenizer fails on one of them.
        """
        with _library("the tokenizer cannot encode the text"):
            encodings = self._engine.encode_batch_fast(lines, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]

    def one_token(self, text: str) -> int:
        """The id of the token that ``text`` names: as tokens.txt has it, or as it is spelled in a text.

        Raises:
            ValueError: no token, or several, spell it.
        """
        if text in self.tokens:
            return self.tokens.index(text)
        ids = self.encode(text)
        if len(ids) != 1 or ids[0] == self.unk_id:
            raise ValueError(f"{text!r} is no token of the vocabulary")
        return ids[0]

    def encode_fragments(self, fragments: Iterable[tuple[str, bool]]) -> Iterator[NDArray[np.int64]]:
        """Encode a stream of ``(text, ends)`` fragments (:func:`lm_runtime.text_files.read_fragments`).

        Yields:
            ids ``(tokens,)``, an array for about a megabyte of text, ``<eos>`` after each ended line.
        """
        batch: list[tuple[str, bool]] = []
        characters = 0
        for fragment in fragments:
            batch.append(fragment)
            characters += len(fragment[0]) + 1
            if characters >= _BATCH_CHARACTERS:
                yield self._encode_batch(batch)
                batch, characters = [], 0
        if batch:
            yield self._encode_batch(batch)

    def encode_each(self, fragments: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """The ids of each of ``(text, ends)`` fragments, with ``<eos>`` after one that ends its line."""
        ids = self.encode_lines([text for text, _ in fragments])
        for (_, ends), own in zip(fragments, ids, strict=True):
            if ends:
                own.append(self.eos_id)
        return ids

    def _encode_batch(self, batch: Sequence[tuple[str, bool]]) -> NDArray[np.int64]:
        return np.array([token for own in self.encode_each(batch) for token in own], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, taken to begin at the start of a line."""
        decoder = self.decoder()
        return "".join(decoder.push(token) for token in ids) + decoder.flush()

    def decoder(self, after: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for tokens that come one at a time, after the tokens ``after``."""
        return StreamDecoder(self, after)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for in a text, as UTF-8 (part of a character, for byte-level BPE)."""
        if self.kind == "bpe":
            byte_of = _byte_alphabet()
            spelled = [
                bytes(byte_of[character] for character in token)
                if all(character in byte_of for character in token)
                else token.encode()
                for token in self.tokens
            ]
        else:
            spelled = [token.encode() for token in self.tokens]
        spelled[self.eos_id] = b"\n"
        return spelled


class StreamDecoder:
    """Turns tokens into text as they come, never half a character."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._line_start = not after or after[-1] == tokenizer.eos_id
        # For tokenizers of other makers: the last tokens, and how many of them have been shown. Their own
        # decoder is asked for those with and without the new ones; the difference is the new text.
        self._recent: list[int] = []
        self._shown = 0
        if tokenizer.kind == "other":
            for token in after[-_CONTEXT:]:
                self._push_other(token)

    def push(self, token: int) -> str:
        """The text that became certain with ``token``; may be empty."""
        if self._tokenizer.kind == "other":
            return self._push_other(token)
        is_eos = token == self._tokenizer.eos_id
        data = self._tokenizer.token_bytes[token]
        if self._tokenizer.kind == "word" and not self._line_start and not is_eos:
            data = b" " + data
        self._line_start = is_eos
        return self._bytes.decode(data)

    def copy(self) -> StreamDecoder:
        """A second decoder from here; neither changes the other."""
        return StreamDecoder.from_dict(self._tokenizer, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Where the decoder is, as plain values."""
        return {
            "undecoded": self._bytes.getstate()[0].hex(),
            "line_start": self._line_start,
            "recent": list(self._recent),
            "shown": self._shown,
        }

    @classmethod
    def from_dict(cls, tokenizer: Tokenizer, values: dict[str, Any]) -> StreamDecoder:
        """The decoder that :meth:`to_dict` described."""
        decoder = cls(tokenizer, ())
        decoder._bytes.setstate((bytes.fromhex(values["undecoded"]), 0))
        decoder._line_start = bool(values["line_start"])
        decoder._recent = [int(token) for token in values["recent"]]
        decoder._shown = int(values["shown"])
        return decoder

    def flush(self) -> str:
        """What is left of a character that was never completed, as U+FFFD."""
        if self._tokenizer.kind == "other":
            return self._fresh()
        return self._bytes.decode(b"", final=True)

    def _push_other(self, token: int) -> str:
        if token == self._tokenizer.eos_id:
            text = self._fresh() + "\n"
            self._recent, self._shown = [], 0
            return text
        self._recent.append(token)
        text = self._fresh()
        if not text or text.endswith("\ufffd"):  # perhaps half a character
            return ""
        self._recent, self._shown = self._recent[-_CONTEXT:], min(len(self._recent), _CONTEXT)
        return text

    def _fresh(self) -> str:
        """The text of the tokens that have not been shown."""
        decode = self._tokenizer._engine.decode
        with _library("the tokenizer cannot decode its tokens"):
            before = decode(self._recent[: self._shown], skip_special_tokens=False)
            return str(decode(self._recent, skip_special_tokens=False))[len(before) :]


def count_words(text: str) -> int:
    """How many words a word tokenizer finds in ``text``: what stands between white space of Unicode.

    Python counts the control characters U+001C to U+001F as white space, which Unicode does not.
    """
    if any(character in text for character in _SEPARATORS):
        text = text.translate(_SEPARATORS_AS_LETTERS)
    return len(text.split())


@contextlib.contextmanager
def _library(problem: str) -> Iterator[None]:
    """Turn whatever ``tokenizers`` raises, its panics too, into ValueError with ``problem`` and its words."""
    try:
        yield
    except (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise ValueError(f"{problem}: {first_line(error)}") from None


def _parse(json_text: str) -> dict[str, Any]:
    """The object in a ``tokenizer.json``, as far as the library would not check it itself.

    Raises:
        ValueError: it is none.
    """
    try:
        data = json.loads(json_text)
    except RecursionError:
        raise ValueError("not a tokenizer.json: too deep") from None
    except ValueError as error:
        raise ValueError(f"not a tokenizer.json: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("not a tokenizer.json: not an object")
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        _check_merges(model)
    _check_normalizer(data.get("normalizer"))
    return data


def _check_normalizer(normalizer: object) -> None:
    """Check SentencePiece's tables of characters, over which the library panics, also within a sequence.

    Raises:
        ValueError: one is not a size in 4 bytes, an array of that size, and text.
    """
    if not isinstance(normalizer, dict):
        return
    inner = normalizer.get("normalizers")
    for one in inner if isinstance(inner, list) else []:
        _check_normalizer(one)
    if normalizer.get("type") == "Precompiled":
        try:
            table = base64.b64decode(normalizer["precompiled_charsmap"], validate=True)
            size = int.from_bytes(table[:4], "little")
            whole = len(table) >= 4 + size and size % 4 == 0 and bool(table[4 + size :].decode("utf-8"))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError("not a tokenizer.json: a table of characters of no usable form")


def _check_merges(model: dict[str, Any]) -> None:
    """Check that what each merge makes is in the vocabulary: the library panics where it is not.

    Raises:
        ValueError: with the merge.
    """
    prefix = model.get("continuing_subword_prefix") or ""
    vocabulary = model.get("vocab")
    if not (isinstance(prefix, str) and isinstance(vocabulary, dict)):
        raise ValueError("not a tokenizer.json: a vocabulary of no usable form")
    for merge in model["merges"]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise ValueError(f"not a tokenizer.json: the merge {short(merge)} is no pair")
        left, right = parts
        if not right.startswith(prefix) or left + right[len(prefix) :] not in vocabulary:
            raise ValueError(f"not a tokenizer.json: the merge {short(merge)} makes no token")


def _has_line_break(data: dict[str, Any]) -> bool:
    """Whether a line break is a special token, as in the project's own vocabularies."""
    added = data.get("added_tokens")
    return any(
        isinstance(token, dict) and token.get("content") == LINE_BREAK and token.get("special") is True
        for token in (added if isinstance(added, list) else ())
    )


def steps_of(normalizer: object) -> list[Any]:
    """What a normalizer consists of, itself or a sequence's parts."""
    inner = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    return inner if isinstance(inner, list) else [] if normalizer is None else [normalizer]


def _kind(data: dict[str, Any]) -> Kind:
    """Tell from a ``tokenizer.json`` which of the project's own kinds it is."""
    model, pre_tokenizer, normalizer = data.get("model"), data.get("pre_tokenizer"), data.get("normalizer")
    if not (isinstance(model, dict) and isinstance(pre_tokenizer, dict)):
        return "other"
    own = _has_line_break(data) and steps_of(normalizer)[:1] == [CRLF]
    if [step for step in steps_of(normalizer)[own:] if step != _LOWERCASE]:
        return "other"
    closed = own and _is_closed(model)
    match "WordLevel" if closed else model.get("type"), pre_tokenizer.get("type"):
        case "WordLevel", "WhitespaceSplit":
            return "word"
        case "WordLevel", "Split":
            how = pre_tokenizer.get("pattern"), pre_tokenizer.get("behavior")
            if how == ({"Regex": ANY_CHARACTER}, "Isolated"):
                return "char"
            if how == ({"Regex": WHITE_SPACE}, "Removed"):
                return "word"
        case "BPE", "ByteLevel" if not pre_tokenizer.get("add_prefix_space"):
            return "bpe"
    return "other"


def _is_closed(model: dict[str, Any]) -> bool:
    """Whether the model takes words whole or not at all, as this project's vocabularies say it."""
    return model.get("type") == "WordPiece" and model.get("continuing_subword_prefix") == LINE_BREAK


def _simplify(engine: tokenizers.Tokenizer, data: dict[str, Any], kind: Kind, *, lowercases: bool) -> None:
    """Leave out what is for readers of whole texts; lines are encoded to the same ids, in less time."""
    model = data["model"]
    if kind != "other":
        engine.normalizer = tokenizers.normalizers.Lowercase() if lowercases else None
    if kind == "word":
        engine.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if _is_closed(model):
        if model["unk_token"] not in model["vocab"]:
            raise ValueError(f"the unknown token {short(model['unk_token'])} is not in the vocabulary")
        engine.model = tokenizers.models.WordLevel(model["vocab"], unk_token=model["unk_token"])


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    GPT-2's alphabet (Radford et al. 2019): the printable characters of Latin-1 stand for themselves,
    the other bytes, in order, for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }
