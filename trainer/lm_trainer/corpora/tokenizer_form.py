"""The form in which a vocabulary is written, such that other readers of ``tokenizer.json`` give our ids and texts.

The token of a line's end is the line break itself, so that nobody has to cut a text into lines. Knows nothing
about how a vocabulary is found.
"""

from __future__ import annotations

import json
from typing import Any

from lm_runtime.tokenizer import CRLF, EOS, LINE_BREAK, WHITE_SPACE, Tokenizer

_WORDS = {"type": "Split", "pattern": {"Regex": WHITE_SPACE}, "behavior": "Removed", "invert": False}
_NO_WORD = "\n\n"
"""What no token begins with."""


def with_line_breaks(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary with the token ``"\\n"`` in the place of ``<eos>``, the same ids.

    A tokenizer that another maker named is returned as it is.
    """
    data = json.loads(tokenizer.json_text)
    vocabulary: dict[str, int] = data["model"]["vocab"]
    if tokenizer.kind == "other" or vocabulary.get(EOS) != tokenizer.eos_id or LINE_BREAK in vocabulary:
        return tokenizer
    renamed = {LINE_BREAK if token == EOS else token: id_ for token, id_ in vocabulary.items()}
    data["added_tokens"] = [_line_break(tokenizer.eos_id)]
    data["normalizer"] = CRLF
    data["post_processor"] = _after_a_line(tokenizer.eos_id)
    if tokenizer.kind == "bpe":
        data["model"] |= {"vocab": renamed, "merges": _without_eos(data["model"]["merges"])}
    else:
        data["model"] = _closed(renamed, data["model"]["unk_token"])
    if tokenizer.kind == "word":
        data["pre_tokenizer"], data["decoder"] = _WORDS, _word_decoder()
    return Tokenizer(json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def _line_break(id_: int) -> dict[str, Any]:
    """The one added token; ``<unk>`` is none, for then a text that spells it would be cut around it."""
    return {
        "id": id_,
        "content": LINE_BREAK,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,  # found after \r\n has become \n
        "special": True,
    }


def _after_a_line(eos_id: int) -> dict[str, Any]:
    """``"\\n" $A``: a text begins after the end of the line before it."""
    special = {"SpecialToken": {"id": LINE_BREAK, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [special, texts[0]],
        "pair": [special, *texts],
        "special_tokens": {LINE_BREAK: {"id": LINE_BREAK, "ids": [eos_id], "tokens": [LINE_BREAK]}},
    }


def _closed(vocabulary: dict[str, int], unknown: str) -> dict[str, Any]:
    """A word is a token or unknown, as a WordPiece model that can go on with no piece.

    The JavaScript library has no model for whole words that knows the unknown one by itself.
    """
    return {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": LINE_BREAK,
        "max_input_chars_per_word": max(map(len, vocabulary)),
        "vocab": vocabulary,
    }


def _word_decoder() -> dict[str, Any]:
    """A space between words, none beside a line break."""
    pairs = ((f" {LINE_BREAK}", LINE_BREAK), (f"{LINE_BREAK} ", LINE_BREAK))
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "WordPiece", "prefix": _NO_WORD, "cleanup": False},
            {"type": "Fuse"},
            *({"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in pairs),
        ],
    }


def _without_eos(merges: list[Any]) -> list[Any]:
    """The merges but those that make or continue ``<eos>``: spelled in a text, it is text."""
    kept = []
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if EOS not in (left, right, left + right):
            kept.append(merge)
    return kept
