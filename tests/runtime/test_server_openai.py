"""lm-serve by OpenAI's own client, unmodified, and what it says beside OpenAI's protocol."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

import lm_runtime
from conftest import FIXTURE
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.sampling.params import SamplingParams
from served import NAME, Server, serving

ROUNDING = 1e-6
"""Relative: a prompt's log-probabilities are float64 here, and float32 where texts are scored."""


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def alone(model: OnnxModel, prompt: str, *, seed: int = 0, index: int = 0, **params: Any) -> str:
    """The text that lm-generate prints."""
    own = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 16, **params}  # the bundle's, and OpenAI's 16
    return "".join(lm_runtime.generate(model, prompt, SamplingParams(**own), seed=seed, index=index))


def test_a_text_is_that_of_lm_generate_by_the_seed(client: openai.OpenAI, model: OnnxModel) -> None:
    for seed, params in enumerate(
        [
            {},
            {"max_tokens": 40, "temperature": 0},
            {"max_tokens": 40, "top_p": 0.5, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        ]
    ):
        found = client.completions.create(model=NAME, prompt="the keeper", seed=seed, **params)
        assert found.choices[0].text == alone(model, "the keeper", seed=seed, **params)
        assert found.choices[0].finish_reason == "length"
        assert found.object == "text_completion"
        assert found.model == NAME
        assert found.usage is not None
        tokens = params.get("max_tokens", 16)
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (2, tokens)
        assert found.usage.total_tokens == 2 + tokens


def test_without_a_seed_texts_differ_and_tell_theirs(client: openai.OpenAI, model: OnnxModel) -> None:
    texts = set()
    for _ in range(3):
        found = client.completions.create(model=NAME, prompt="the", temperature=1)
        seed: Any = (found.model_extra or {})["seed"]
        texts.add(found.choices[0].text)
        assert found.choices[0].text == alone(model, "the", temperature=1, seed=seed)
    assert len(texts) == 3


def test_choices_stand_in_the_order_prompt_by_sample(client: openai.OpenAI, model: OnnxModel) -> None:
    prompts = ["the", "a keeper\n", ""]
    found = client.completions.create(model=NAME, prompt=prompts, n=2, seed=5)
    assert [choice.index for choice in found.choices] == list(range(6))
    expected = [alone(model, prompt, seed=5, index=index) for prompt in prompts for index in range(2)]
    assert [choice.text for choice in found.choices] == expected


def test_prompts_may_be_ids(client: openai.OpenAI, model: OnnxModel) -> None:
    ids = model.tokenizer.encode("the keeper")
    expected = alone(model, "the keeper", seed=1)
    eos = model.tokenizer.eos_id
    for prompt, texts in ((ids, 1), ([ids, ids], 2), ([[eos, *ids]], 1)):
        found = client.completions.create(model=NAME, prompt=prompt, seed=1)
        assert [choice.text for choice in found.choices] == [expected] * texts


def test_a_stream_is_the_text_in_parts(client: openai.OpenAI, model: OnnxModel) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model=NAME, prompt="the", n=2, seed=3, max_tokens=400, stream=True, stream_options=options
        )
    )
    usage = chunks.pop()
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 800
    assert all(chunk.usage is None for chunk in chunks)
    texts, reasons = ["", ""], [[], []]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index].append(choice.finish_reason)
    assert texts == [alone(model, "the", seed=3, index=index, max_tokens=400) for index in range(2)]
    for given in reasons:
        assert given[-1] == "length"
        assert set(given[:-1]) == {None}
    assert len(chunks) > 4


def test_stop_strings_end_a_text(client: openai.OpenAI, model: OnnxModel) -> None:
    whole = alone(model, "the", seed=2, max_tokens=50)
    word = whole.split()[10]
    for stop in (word, [word, "not there"]):
        choice = client.completions.create(
            model=NAME, prompt="the", seed=2, max_tokens=50, stop=stop
        ).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[: whole.index(word)], "stop")


def test_log_probabilities_tell_each_token(client: openai.OpenAI, model: OnnxModel) -> None:
    choice = client.completions.create(model=NAME, prompt="the", seed=2, logprobs=3).choices[0]
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.text_offset is not None
    (score,) = lm_runtime.score_texts(model, ["the" + choice.text])
    (start,) = client.completions.create(
        model=NAME, prompt="the", max_tokens=0, echo=True, logprobs=0
    ).choices
    assert start.logprobs is not None
    assert start.logprobs.token_logprobs is not None
    ends = [*told.text_offset[1:], len(choice.text)]
    words = [choice.text[begin:end] for begin, end in zip(told.text_offset, ends, strict=True)]
    assert [word.strip(" ").replace("\n", "<eos>") for word in words] == told.tokens
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == value
        assert 3 <= len(top) <= 4
        assert max(top.values()) == next(iter(top.values()))
    total = sum(told.token_logprobs) + sum(start.logprobs.token_logprobs)
    assert total > score.log_probability  # which has the end of the line too


def test_no_tokens_and_echo_score_a_prompt_as_lm_score_does(client: openai.OpenAI, model: OnnxModel) -> None:
    texts = ["the keeper of the lamp\n", "a clock\nis old\n"]
    found = client.completions.create(model=NAME, prompt=texts, max_tokens=0, echo=True, logprobs=1)
    for text, choice, score in zip(texts, found.choices, lm_runtime.score_texts(model, texts), strict=True):
        assert choice.text == text
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert sum(choice.logprobs.token_logprobs) == pytest.approx(score.log_probability, rel=ROUNDING)
        assert choice.finish_reason == "length"
    assert found.usage is not None
    assert found.usage.completion_tokens == 0
    eos = model.tokenizer.eos_id
    ids = [eos, *model.tokenizer.encode(texts[0])]
    again = client.completions.create(model=NAME, prompt=ids, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert again.logprobs is not None
    assert found.choices[0].logprobs is not None
    assert again.logprobs.token_logprobs == [None, *(found.choices[0].logprobs.token_logprobs or [])]


def test_a_bias_rules_tokens_out_and_in(client: openai.OpenAI, model: OnnxModel) -> None:
    (token,) = model.tokenizer.encode("lamp")
    only = client.completions.create(model=NAME, prompt="the", logit_bias={str(token): 100}, max_tokens=3)
    assert only.choices[0].text == " lamp lamp lamp"


def test_extensions_mean_what_lm_generate_says(client: openai.OpenAI, model: OnnxModel) -> None:
    params = {
        "top_k": 5,
        "min_p": 0.01,
        "typical_p": 0.9,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
    }
    found = client.completions.create(model=NAME, prompt="the", seed=4, max_tokens=30, extra_body=params)
    assert found.choices[0].text == alone(model, "the", seed=4, max_tokens=30, **params)
    regex = " (clock|lamp) of the [a-z]+"
    for extra in ({"regex": regex}, {"structured_outputs": {"regex": regex}}):
        choice = client.completions.create(model=NAME, prompt="the", seed=4, extra_body=extra).choices[0]
        assert choice.text == alone(model, "the", seed=4, regex=regex)
        assert choice.finish_reason == "stop"
    banned = client.completions.create(
        model=NAME, prompt="the", temperature=0, extra_body={"bad_words": ["of"], "max_tokens": 30}
    )
    assert banned.choices[0].text == alone(model, "the", temperature=0, banned=("of",), max_tokens=30)


def test_nulls_are_not_given_and_unknown_fields_are_told(client: openai.OpenAI, model: OnnxModel) -> None:
    extra: Any = {"suffix": None, "best_of": None, "temprature": 0.1, "x\ny": 1}
    raw = client.completions.with_raw_response.create(
        model=NAME, prompt="the", seed=1, logprobs=None, max_tokens=None, temperature=None, extra_body=extra
    )
    assert raw.parse().choices[0].text == alone(model, "the", seed=1)
    assert raw.headers["x-ignored-fields"] == "temprature, x?y"


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "from 0 to 1000, got -1"),
        ({"top_p": 0}, "top_p", "got 0"),
        ({"max_tokens": 5000}, "max_tokens", "from 0 to 4096, got 5000"),
        ({"n": 0}, "n", "from 1 to 65536, got 0"),
        ({"n": 500}, "n", "500 texts, more than 128"),
        ({"seed": -1}, "seed", "at least 0, got -1"),
        ({"seed": 1.5}, "seed", "a whole number, got 1.5"),
        ({"stop": [""]}, "stop", "must not be empty"),
        ({"stop": ["x" * 300]}, "stop", "256 characters"),
        ({"logprobs": 201}, "logprobs", "from 0 to 200, got 201"),
        ({"echo": "yes"}, "echo", "true or false, got 'yes'"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"best_of": 3}, "best_of", "must be n, which is 1, got 3"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [1, 200]}, "prompt", "from 0 to 199, got 200"),
        ({"prompt": {"a": 1}}, "prompt", "a text, texts, ids or lists of ids"),
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": "the " * 33_000}, "prompt", "at most 32768 tokens, got 33000"),
        ({"logit_bias": {"500": 1}}, "logit_bias", "from 0 to 199, got 500"),
        ({"regex": "["}, "regex", "'['"),
        ({"regex": "zebra"}, "regex", "no text of this vocabulary matches"),
        ({"regex": "a" * 5000}, "regex", "4000 characters"),
        ({"regex": "a", "return_state": True}, "regex", "leave out state"),
        ({"state": "not a state!"}, "state", "base64"),
        ({"stream_options": 3}, "stream_options", "an object"),
    ],
)
def test_wrong_values_name_the_field_the_value_and_the_bound(
    client: openai.OpenAI, wrong: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": NAME, "prompt": "the", "extra_body": wrong})
    error: Any = raised.value.body
    assert words in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_what_is_not_there_is_404_and_chat_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served; there is tiny_bundle"):
        client.completions.create(model="gpt-4", prompt="the")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="the")
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "the"}])


def test_models_are_listed(client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert listed.id == NAME
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_a_state_goes_on_bit_for_bit_in_another_process(client: openai.OpenAI, model: OnnxModel) -> None:
    whole = alone(model, "the keeper", seed=7, max_tokens=30)
    first = client.completions.create(
        model=NAME, prompt="the keeper", seed=7, max_tokens=10, extra_body={"return_state": True}
    ).choices[0]
    state: Any = first.model_extra
    with serving() as other:
        second = openai.OpenAI(base_url=other.url, api_key="none", max_retries=0).completions.create(
            model=NAME, prompt="", max_tokens=20, extra_body={"state": state["state"]}
        )
    assert first.text + second.choices[0].text == whole
    assert len(state["state"]) < 4096
    # A seed makes forks, a prompt is read before the text, and a stream brings the state at its end.
    forks = client.completions.create(
        model=NAME, prompt="", n=2, seed=1, extra_body={"state": state["state"]}
    ).choices
    assert forks[0].text != forks[1].text
    words = client.completions.create(
        model=NAME, prompt=" lamp", echo=True, max_tokens=5, extra_body={"state": state["state"]}
    )
    assert words.choices[0].text.startswith(" lamp ")
    *_, last = client.completions.create(
        model=NAME, prompt="the", max_tokens=5, stream=True, extra_body={"return_state": True}
    )
    assert (last.choices[0].model_extra or {})["state"]
    with pytest.raises(openai.BadRequestError, match="seed is missing"):
        client.completions.create(model=NAME, prompt="", n=2, extra_body={"state": state["state"]})


def test_token_ids_after_a_state_lead_to_any_place_of_a_text(client: openai.OpenAI, model: OnnxModel) -> None:
    """So a text is rewound to a token and goes on, with nothing kept by the server."""
    whole = alone(model, "the", temperature=0, max_tokens=20)
    extra: Any = {"return_state": True, "return_token_ids": True}
    start = client.completions.create(model=NAME, prompt="the", max_tokens=0, extra_body=extra).choices[0]
    told = client.completions.create(model=NAME, prompt="the", temperature=0, max_tokens=20, extra_body=extra)
    ids: Any = (told.choices[0].model_extra or {})["token_ids"]
    assert (told.choices[0].model_extra or {})["prompt_token_ids"] == model.tokenizer.encode("the")
    again = client.completions.create(
        model=NAME,
        prompt=ids[:8],
        temperature=0,
        max_tokens=12,
        extra_body={"state": (start.model_extra or {})["state"]},
    )
    assert whole.endswith(again.choices[0].text)
    assert len(again.choices[0].text.split()) >= 8


def test_scores_are_those_of_lm_score(server: Server, model: OnnxModel) -> None:
    texts = ["the keeper of the lamp", "", "a clock\nis old"]
    status, _, told = server.ask("/v1/score", {"texts": texts, "tokens": True})
    assert status == 200
    for text, entry, score in zip(texts, told["data"], lm_runtime.score_texts(model, texts), strict=True):
        assert entry["log_probability"] == score.log_probability
        assert entry["perplexity"] == score.perplexity
        assert entry["bits_per_byte"] == score.bits_per_byte
        assert sum(token["logprob"] for token in entry["token_logprobs"]) == pytest.approx(
            score.log_probability, rel=ROUNDING
        )
        assert "".join(token["text"] for token in entry["token_logprobs"]) == text + "\n"
    lists = [
        {"id": "u1", "score": -3.5, "text": "the lamp"},
        {"id": "u1", "score": -3.4, "text": "lamp the of"},
    ]
    _, _, told = server.ask("/v1/score", {"hypotheses": lists, "weight": 0.5})
    rescored = lm_runtime.rescore(
        model, [lm_runtime.Hypothesis(one["id"], one["score"], one["text"]) for one in lists], 0.5
    )
    assert [row["combined"] for row in told["data"]] == [row.combined for row in rescored]
    assert [row["text"] for row in told["data"]] == ["the lamp", "lamp the of"]


def test_suggestions_complete_words_and_go_on_from_states(server: Server, model: OnnxModel) -> None:
    _, _, told = server.ask("/v1/suggest", {"prompt": "the ke", "k": 3})
    assert told["typed"] == " ke"
    found = [(entry["text"], entry["probability"]) for entry in told["data"]]
    assert found == lm_runtime.complete_word(model, "the ke", k=3)
    assert found[0][0] == "keeper"
    _, _, tokens = server.ask("/v1/suggest", {"prompt": "the", "k": 4, "kind": "tokens"})
    found = [(entry["text"], entry["probability"]) for entry in tokens["data"]]
    assert found == lm_runtime.suggest(model, "the", 4)
    _, _, told = server.ask("/v1/completions", {"prompt": "the", "max_tokens": 0, "return_state": True})
    state = told["choices"][0]["state"]
    _, _, after = server.ask("/v1/suggest", {"state": state, "k": 4, "kind": "tokens"})
    assert after["data"] == tokens["data"]


def test_a_remote_tokenizer_has_what_it_needs(server: Server, model: OnnxModel) -> None:
    _, _, info = server.ask("/tokenizer_info")
    eos = model.tokenizer.eos_id
    assert server.ask("/tokenize", {"prompt": info["eos_token"]})[2]["tokens"] == [eos]
    ids = server.ask("/tokenize", {"content": "the keeper\n"})[2]["tokens"]
    assert ids == model.tokenizer.encode("the keeper\n")
    assert server.ask("/detokenize", {"tokens": ids})[2]["prompt"] == "the keeper\n"


def test_many_clients_at_once_get_the_texts_that_they_get_alone(server: Server, model: OnnxModel) -> None:
    async def ask_all() -> list[Any]:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            bodies = [
                {
                    "prompt": "the keeper",
                    "seed": seed,
                    "max_tokens": 5 + seed % 7 * 5,
                    "temperature": 0.2 * (seed % 4),
                }
                for seed in range(80)
            ]
            answers = await asyncio.gather(*(client.post("/completions", json=body) for body in bodies))
            return list(zip(bodies, (answer.json() for answer in answers), strict=True))

    for body, told in asyncio.run(ask_all()):
        assert told["choices"][0]["text"] == alone(model, body.pop("prompt"), **body)


def test_prompts_are_not_in_the_log(server: Server) -> None:
    server.ask("/v1/completions", {"prompt": "the lamp", "max_tokens": 2}, x_request_id="mine-1")
    (line,) = [line for line in server.log() if line["id"] == "mine-1"]
    assert line["path"] == "/v1/completions"
    assert (line["status"], line["prompt_tokens"], line["completion_tokens"]) == (200, 2, 2)
    assert math.isfinite(line["ms"])
    assert "lamp" not in str(server.log())
