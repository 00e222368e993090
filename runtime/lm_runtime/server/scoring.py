"""What a bundle says of texts without generating one: scores, next words, tokens; functions of JSON objects.

Each takes as long as it takes, and is called in a thread of its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lm_runtime.generation.generate import suggest
from lm_runtime.generation.session import Session
from lm_runtime.generation.words import complete_word, split_typed
from lm_runtime.models.protocol import BundleModel
from lm_runtime.scoring.rescoring import Hypothesis, rescore
from lm_runtime.scoring.score import id_log_probabilities
from lm_runtime.scoring.texts import score_texts
from lm_runtime.server.errors import ApiError, invalid, refusing
from lm_runtime.server.limits import Limits
from lm_runtime.server.states import States
from lm_runtime.settings import check_number, short
from lm_runtime.wire import Record, check_text, score_record

SCORE_FIELDS = ("model", "texts", "hypotheses", "weight", "tokens")
SUGGEST_FIELDS = ("model", "prompt", "state", "k", "kind")
TOKENIZE_FIELDS = ("model", "prompt", "content", "add_special_tokens")
DETOKENIZE_FIELDS = ("model", "tokens")
_MOST_SUGGESTIONS = 100


def score(model: BundleModel, record: Record, limits: Limits) -> Record:
    """``/v1/score``: texts, each by itself, or n-best lists in a new order.

    Raises:
        ApiError: a value is wrong, or above a limit.
    """
    if (record.get("texts") is None) == (record.get("hypotheses") is None):
        raise invalid("texts or hypotheses, one of them, must be given", "texts")
    with refusing(SCORE_FIELDS):
        if record.get("texts") is not None:
            return _score_texts(model, record, limits)
        return _rescore(model, record, limits)


def _score_texts(model: BundleModel, record: Record, limits: Limits) -> Record:
    texts = _strings(record["texts"], "texts")
    total = _check_size(model, texts, limits, "texts")
    with_tokens = record.get("tokens") or False
    if not isinstance(with_tokens, bool):
        raise ValueError(f"tokens must be true or false, got {short(with_tokens)}")
    data = []
    for index, (text, one) in enumerate(zip(texts, score_texts(model, texts), strict=True)):
        entry = {"index": index, **_finite(score_record(one))}
        if with_tokens:
            entry["token_logprobs"] = _token_logprobs(model, text)
        data.append(entry)
    return {"data": data, "usage": {"prompt_tokens": total, "total_tokens": total}}


def _token_logprobs(model: BundleModel, text: str) -> list[Record]:
    """Each token of a text with its log-probability, ``<eos>`` at the end included."""
    tokenizer = model.tokenizer
    ids = np.array([*tokenizer.encode(text.removesuffix("\n")), tokenizer.eos_id], dtype=np.int64)
    decoder = tokenizer.decoder()
    return [
        {"text": decoder.push(int(token)), "id": int(token), "logprob": float(value)}
        for targets, values in id_log_probabilities(model, [ids])
        for token, value in zip(targets, values, strict=True)
    ]


def _rescore(model: BundleModel, record: Record, limits: Limits) -> Record:
    given = record["hypotheses"]
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise ValueError("hypotheses must be a list of objects with id, score and text")
    texts = _strings([one.get("text") for one in given], "hypotheses")
    total = _check_size(model, texts, limits, "hypotheses")
    hypotheses = []
    for one, text in zip(given, texts, strict=True):
        id_, value = one.get("id", ""), one.get("score", 0.0)
        if not isinstance(id_, str | int) or isinstance(id_, bool):
            raise ValueError(f"hypotheses must have strings or whole numbers as id, got {short(id_)}")
        check_number("hypotheses: score", value, float, low=-1e30, high=1e30)
        hypotheses.append(Hypothesis(str(id_), float(value), text))
    weight = record.get("weight")
    data = [
        {
            "id": row.hypothesis.id,
            "combined": row.combined,
            "log_probability": row.lm.log_probability,
            "score": row.hypothesis.score,
            "tokens": row.lm.tokens,
            "text": row.hypothesis.text,
        }
        for row in rescore(model, hypotheses, 1.0 if weight is None else weight)
    ]
    return {"data": data, "usage": {"prompt_tokens": total, "total_tokens": total}}


def suggestions(model: BundleModel, record: Record, states: States, limits: Limits) -> Record:
    """``/v1/suggest``: the k most probable next words, a half-typed one completed, or next tokens.

    Raises:
        ApiError: a value is wrong, or above a limit.
    """
    kind = record.get("kind") or "words"
    with refusing(SUGGEST_FIELDS):
        if kind not in ("words", "tokens"):
            raise ValueError(f"kind must be words or tokens, got {short(kind)}")
        k = 5 if record.get("k") is None else record["k"]
        check_number("k", k, int, low=1, high=_MOST_SUGGESTIONS)
        (prompt,) = _strings(record.get("prompt") or "", "prompt")
        read, typed = split_typed(prompt) if kind == "words" else (prompt, "")
        session = Session.start(model) if record.get("state") is None else states.read(record["state"], model)
        ids = model.tokenizer.encode(read)
        if len(ids) > limits.max_prompt:
            raise too_long(len(ids), limits, "prompt")
        session.read(model, ids)
        if kind == "words":
            found = complete_word(model, session, typed, k)
        else:
            found = suggest(model, session, min(k, model.tokenizer.vocab_size))
    data = [{"text": text, "probability": probability} for text, probability in found]
    return {"typed": typed, "data": data}


def tokenize(model: BundleModel, record: Record) -> Record:
    """``/tokenize``: the ids of a text; the name of ``<eos>`` alone is its id.

    Raises:
        ApiError: a value is wrong.
    """
    tokenizer = model.tokenizer
    given = record.get("prompt") if record.get("prompt") is not None else record.get("content")
    with refusing(TOKENIZE_FIELDS, "prompt"):
        if not isinstance(given, str):
            raise ValueError(f"prompt must be a string, got {short(given)}")
        check_text(given)
        ids = [tokenizer.eos_id] if given == tokenizer.tokens[tokenizer.eos_id] else tokenizer.encode(given)
    if record.get("add_special_tokens") is True:
        ids = [tokenizer.eos_id, *ids]
    return {"tokens": ids, "count": len(ids)}


def detokenize(model: BundleModel, record: Record) -> Record:
    """``/detokenize``: the text of ids.

    Raises:
        ApiError: a value is wrong.
    """
    size, ids = model.tokenizer.vocab_size, record.get("tokens")
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < size for token in ids):
        raise invalid(f"tokens must be a list of ids from 0 to {size - 1}", "tokens")
    with refusing(param="tokens"):
        text = model.tokenizer.decode(ids)
    return {"prompt": text, "content": text}


def tokenizer_info(model: BundleModel) -> Record:
    """``/tokenizer_info``: what a remote tokenizer needs to know."""
    tokenizer = model.tokenizer
    eos = tokenizer.tokens[tokenizer.eos_id]
    unk = None if tokenizer.unk_id is None else tokenizer.tokens[tokenizer.unk_id]
    return {"tokenizer_class": tokenizer.kind, "eos_token": eos, "bos_token": eos, "unk_token": unk}


def too_long(tokens: int, limits: Limits, param: str) -> ApiError:
    """The error for more tokens than a request may bring."""
    message = f"{param} must have at most {limits.max_prompt} tokens, got {tokens}"
    return ApiError(400, message, param=param, code="context_length_exceeded")


def _strings(value: Any, name: str) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
        raise ValueError(f"{name} must be strings, got {short(value)}")
    if not strings:
        raise ValueError(f"{name} must not be empty")
    check_text(*strings)
    return strings


def _check_size(model: BundleModel, texts: list[str], limits: Limits, name: str) -> int:
    total = sum(len(model.tokenizer.encode(text)) + 1 for text in texts)
    if total > limits.max_prompt:
        raise too_long(total, limits, name)
    return total


def _finite(record: Record) -> Record:
    """Numbers that JSON has; null for the others, which a damaged model could give."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
