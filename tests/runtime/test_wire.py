"""Requests and completions as JSON: strictly read, generously meant, and what comes back can be written."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_runtime
from conftest import FIXTURE
from lm_runtime.generation.complete import Request, complete
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.settings import settings_of
from lm_runtime.wire import (
    FIELDS,
    completion_record,
    parse,
    request_of,
    to_line,
    token_record,
    unknown_keys,
)
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.vocabulary import make_tokenizer


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*FIELDS, "id", "promt", "text"]) | st.text(max_size=5)


@given(st.dictionaries(KEYS, JSON, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_a_line_holds_it_makes_a_request_that_comes_back_or_is_refused(
    model: OnnxModel, record: dict[str, Any], prompted: bool
) -> None:
    """One of two things: a ValueError in a short line, or a record that can be written again."""
    line = json.dumps(record | ({"prompt": "the"} if prompted else {}))
    try:
        read = parse(line)
        request_of(read, model.tokenizer, SamplingParams())
    except ValueError as error:
        assert 0 < len(str(error)) < 300
        assert "\n" not in str(error)
    else:
        assert json.loads(to_line(read)) == json.loads(line)


def test_every_parameter_is_a_key_and_the_record_s_own_value(model: OnnxModel) -> None:
    values: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "no_repeat_ngram_size": 3,
        "logit_bias": {"5": 1, "7": None},
        "banned": ["the"],
        "regex": "( [a-z]+)+",
        "max_tokens": 9,
        "stop": "x",
        "allow_unk": True,
        "logprobs": 2,
    }
    assert values.keys() == settings_of(SamplingParams).keys()
    request = request_of(
        values | {"prompt": "a", "seed": 3, "id": 8}, model.tokenizer, SamplingParams(), index=4
    )
    expected = values | {"logit_bias": ((5, 1.0), (7, -math.inf)), "stop": ("x",), "banned": ("the",)}
    assert request == Request("a", SamplingParams(**expected), 3, 4)
    defaults = SamplingParams(top_k=3)
    assert request_of({"prompt": "a", "top_k": None}, model.tokenizer, defaults, seed=2) == Request(
        "a", defaults, 2
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("promt", "prompt"),
        ("Temperature", "temperature"),
        ("top-k", "top_k"),
        ("topp", "top_p"),
        ("max_new_tokens", "max_tokens"),
        ("frequency_penality", "frequency_penalty"),
        ("id", None),
        ("source", None),
        ("step", None),
        ("index", None),
    ],
)
def test_a_key_is_compared_with_the_known_ones(key: str, meant: str | None) -> None:
    assert unknown_keys({key: 1, "prompt": "a", "min_p": 0.1}) == {key: meant}


def test_a_token_of_bytes_is_shown_as_text_or_as_bytes() -> None:
    tokenizer = make_tokenizer(TokenizerConfig("bpe", 270), ["aab aab éé éb"] * 3)
    model: Any = SimpleNamespace(tokenizer=tokenizer)
    for token, data in enumerate(tokenizer.token_bytes):
        record = token_record(model, token, -1.0)
        assert (record["id"], record["logprob"], bytes(record["bytes"])) == (token, -1.0, data)
        assert "Ġ" not in record["token"]
    lead = tokenizer.token_bytes.index("é".encode()[:1])
    assert token_record(model, lead, -1.0)["token"] == "\\xc3"
    assert token_record(model, tokenizer.eos_id, -1.0)["token"] == "<eos>"


def test_a_completion_has_the_bytes_of_its_text(model: OnnxModel) -> None:
    params = SamplingParams(max_tokens=9, logprobs=2)
    (completion,) = complete(model, [Request("the", params)])
    record = json.loads(to_line(completion_record(model, completion)))
    assert (record["text"], record["tokens"], record["finish"]) == (completion.text, 9, "length")
    spelled = b"".join(bytes(entry["bytes"]) for entry in record["logprobs"]).decode()
    assert spelled == "".join(completion.text.split(" "))
