"""The form of ``tokenizer.json`` by which every reader gives the ids and texts of this project.

The token of a line's end is the line break itself, so that nobody has to cut a text into lines. Knows nothing
about how a vocabulary is found.
"""

from __future__ import annotations

import json
from typing import Any

from lm_runtime.tokenizer import CRLF, EOS, LINE_BREAK, WHITE_SPACE, Tokenizer, steps_of
from lm_trainer.corpora import words

_WORDS = {"type": "Split", "pattern": {"Regex": WHITE_SPACE}, "behavior": "Removed", "invert": False}
_SPACES = {"type": "WordPiece", "prefix": "\n\n", "cleanup": False}
"""A decoder that puts a space before each token but the first, as none begins with the prefix."""


def with_line_breaks(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary with the token ``"\\n"`` in the place of ``<eos>``, the same ids.

    A tokenizer that another maker named is returned as it is.
    """
    data = json.loads(tokenizer.json_text)
    model, pre_tokenizer = data["model"], data["pre_tokenizer"]
    is_words = pre_tokenizer is not None and pre_tokenizer.get("pattern") == {"Regex": words.PATTERN}
    is_own = is_words or tokenizer.kind != "other"
    if not is_own or tokenizer.eos_spelling != EOS:
        return tokenizer
    steps = [CRLF, *steps_of(data["normalizer"])]
    data["normalizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}
    data["added_tokens"] = [_line_break(tokenizer.eos_id)]
    data["post_processor"] = _after_a_line(tokenizer.eos_id)
    vocabulary = {LINE_BREAK if token == EOS else token: id_ for token, id_ in model["vocab"].items()}
    if tokenizer.kind == "bpe":
        data["model"] |= {"vocab": vocabulary, "merges": _without_eos(model["merges"])}
    else:
        data["model"] = _closed(vocabulary, model["unk_token"])
    if tokenizer.kind == "word":
        data["pre_tokenizer"] = _WORDS
    if tokenizer.kind == "word" or is_words:
        data["decoder"] = _line_decoder(data["decoder"] or _SPACES)
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


def _line_decoder(decoder: dict[str, Any]) -> dict[str, Any]:
    """A decoder of one line, and no space beside a line break."""
    pairs = ((f" {LINE_BREAK}", LINE_BREAK), (f"{LINE_BREAK} ", LINE_BREAK))
    return {
        "type": "Sequence",
        "decoders": [
            *decoder.get("decoders", [decoder]),
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
