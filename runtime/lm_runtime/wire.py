"""The wire: requests and completions as JSON, once for every door. Knows nothing about files or connections.

A request is an object with a ``prompt``, perhaps a ``seed``, and any field of
:class:`lm_runtime.sampling.params.SamplingParams` by its name. JSON has its own ways, which are taken too:
null for a value that is not given, one string for several, and ids of ``logit_bias`` as an object's keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from lm_runtime.generation.beam import BeamHypothesis
from lm_runtime.generation.complete import Completion, Request
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.constraint import compiled
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import Score
from lm_runtime.settings import settings_of, short
from lm_runtime.tokenizer import Tokenizer

Record = dict[str, Any]
"""A JSON object."""

FIELDS = ("prompt", "seed", *settings_of(SamplingParams))
"""The keys of a request that mean something."""
TAKEN = ("text", "tokens", "finish", "sample")
"""The keys that a completion adds to what its request brought."""
_DEEPEST = 64
_ALIKE = 0.82  # the ratio of difflib, from which on a key counts as misspelt


def parse(text: str) -> Record:
    """Read a JSON object strictly: every number is finite, and what is read can be written again.

    Raises:
        ValueError: the text is something else; the message says what.
    """
    try:
        record = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except json.JSONDecodeError as error:
        before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
        is_comma = before.endswith(",") and after[:1] in ("}", "]")
        problem = "a comma before a closing bracket" if is_comma else error.msg
        raise ValueError(f"not JSON: {problem}, at character {error.pos + 1}") from None
    except RecursionError:
        record = None
        _check_depth([], 0)
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object, but {short(record)}")
    _check_depth(record, _DEEPEST)
    return record


def request_of(
    record: Record,
    tokenizer: Tokenizer,
    defaults: SamplingParams,
    *,
    seed: int = 0,
    index: int = 0,
) -> Request:
    """The request that a JSON object makes, checked against the vocabulary.

    Args:
        record: from :func:`parse`.
        tokenizer: the model's.
        defaults: what the record does not say.
        seed: likewise.
        index: which of the samples of the seed.

    Raises:
        ValueError: a value is wrong; the message names it.
    """
    given = {name: value for name, value in record.items() if name in FIELDS and value is not None}
    if "prompt" not in given:
        near = [key for key, meant in unknown_keys(record).items() if meant == "prompt"]
        raise ValueError('"prompt" is missing' + (f', but there is "{near[0]}"' if near else ""))
    request = Request(
        given.pop("prompt"), params_of(given, tokenizer, defaults), given.pop("seed", seed), index
    )
    check_fits(request, tokenizer)
    return request


def check_fits(request: Request, tokenizer: Tokenizer) -> None:
    """Check what depends on the vocabulary: ids, texts and the regular expression.

    Raises:
        ValueError: something does not fit.
    """
    params = request.params
    params.check_ids(tokenizer.vocab_size)
    check_text(request.prompt, *params.banned, *params.stop, params.regex or "")
    if params.regex is not None:
        compiled(params.regex, tokenizer).matcher(not request.prompt or request.prompt.endswith("\n"))


def check_text(*texts: str) -> None:
    """Check that texts can be written as UTF-8.

    Raises:
        ValueError: one cannot.
    """
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError("not valid text: half a surrogate pair") from None


def unknown_keys(record: Iterable[str]) -> dict[str, str | None]:
    """The keys that mean nothing, each with the one that it may be a misspelling of."""
    found = {}
    for key in record:
        if key not in FIELDS:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), FIELDS, n=1, cutoff=_ALIKE)
            found[key] = near[0] if near else None
    return found


def completion_record(model: StepModel, completion: Completion) -> Record:
    """A completion as JSON has it."""
    record: Record = {
        "text": completion.text,
        "tokens": len(completion.pieces),
        "finish": completion.finish,
    }
    if completion.pieces and completion.pieces[0].log_probability is not None:
        record["logprobs"] = [
            {
                **token_record(model, piece.token or 0, piece.log_probability or 0.0),
                "top": [token_record(model, *pair) for pair in piece.alternatives],
            }
            for piece in completion.pieces
        ]
    return record


def token_record(model: StepModel, token: int, log_probability: float) -> Record:
    """A token and its log-probability as JSON has them.

    ``token`` is its text, with escapes for bytes that are part of a character, or its name where it stands
    for no text; ``bytes`` is what it stands for in UTF-8, null where the tokenizer does not tell.
    """
    tokenizer = model.tokenizer
    name, data = tokenizer.tokens[token], tokenizer.token_bytes[token]
    if tokenizer.kind == "bpe" and token != tokenizer.eos_id:
        name = data.decode("utf-8", "backslashreplace")
    return {
        "token": name,
        "id": token,
        "logprob": log_probability,
        "bytes": None if tokenizer.kind == "other" else list(data),
    }


def score_record(score: Score) -> Record:
    """The score of a text as JSON has it."""
    return {
        "perplexity": score.perplexity,
        "log_probability": score.log_probability,
        "tokens": score.tokens,
        "unknown": score.unknown,
        "bits_per_byte": score.bits_per_byte,
        "perplexity_per_word": score.perplexity_per_word,
        "bytes": score.bytes,
        "words": score.words,
    }


def hypothesis_record(hypothesis: BeamHypothesis) -> Record:
    """What a beam search has found, as JSON has it."""
    return {
        "text": hypothesis.text,
        "tokens": len(hypothesis.tokens),
        "log_probability": hypothesis.log_probability,
        "score": hypothesis.score,
    }


def to_line(record: Record) -> bytes:
    """A record as a line of JSON in UTF-8."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in what a request brought
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def params_of(given: Record, tokenizer: Tokenizer, defaults: SamplingParams) -> SamplingParams:
    """The parameters of a request, whose other fields and nulls are left out.

    Raises:
        ValueError: a value is wrong; the message names it.
    """
    own: Record = {}
    for name, entry in settings_of(SamplingParams).items():
        value = given.get(name)
        if value is not None:
            own[name] = (value,) if entry.kind is tuple and isinstance(value, str) else value
    if "logit_bias" in own:
        own["logit_bias"] = _bias(own["logit_bias"], tokenizer)
    return dataclasses.replace(defaults, **own) if own else defaults


def _bias(value: object, tokenizer: Tokenizer) -> Any:
    """``{"5": 1, "the": null}`` or ``[[5, 1], ["the", false]]`` by ids; null and false rule a token out."""
    if isinstance(value, dict):
        value = [[int(key) if _is_id(key) else key, number] for key, number in value.items()]
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return value  # which the record refuses
    pairs = []
    for token, number in value:
        try:
            token = tokenizer.one_token(token) if isinstance(token, str) else token
        except ValueError as error:
            raise ValueError(f"logit_bias: {error}") from None
        pairs.append((token, -math.inf if number is None or number is False else number))
    return pairs


def _is_id(key: str) -> bool:
    return key.isascii() and key.removeprefix("-").isdigit()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"the number {short(text)} is too large")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's own limit
        raise ValueError(f"a number has {len(text)} digits") from None


def _check_depth(value: object, left: int) -> None:
    if not left:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, dict | list):
            _check_depth(inner, left - 1)
