"""The bundle equals the torch model: logits, states, ids, text, scores.

In layers, from the number to the text, so that the first failure is the cause. The fixture bundle is
compared with what torch said when it was made. What has to be the same bits is so in every family.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
from conftest import FIXTURE, ROOT
from fixture_cases import GREEDY_TOKENS, PROMPT, SAMPLED, SCORED_TEXT
from lm_runtime.generation.complete import Request, complete
from lm_runtime.generation.generate import generate_samples
from lm_runtime.generation.session import Session
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.state import initial_state, read, state_of
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import token_log_probabilities
from lm_runtime.text_files import read_fragments

# Of fp32 rounding in another order of operations; logits here are below 20.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


@pytest.fixture(scope="module")
def any_model(family_bundle: Path) -> OnnxModel:
    """One of each family."""
    return lm_runtime.load(family_bundle, provider="cpu")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FIXTURE.with_suffix(".expected.json").read_text())
    return data


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def test_logits_and_states_are_torch_s(model: OnnxModel, expected: dict[str, Any]) -> None:
    logits, state = model.step(np.array([[model.tokenizer.eos_id]]), initial_state(model, 1))
    assert difference(logits[0, 0], expected["first_logits"]) < CLOSE
    for tensor, values in zip(state, expected["first_state"], strict=True):
        assert difference(tensor.ravel(), values) < CLOSE


def test_log_probabilities_are_torch_s(model: OnnxModel, expected: dict[str, Any]) -> None:
    scored = token_log_probabilities(model, read_fragments(ROOT / SCORED_TEXT))
    assert difference(np.concatenate([part for _, part in scored]), expected["log_probabilities"]) < CLOSE


def test_greedy_ids_are_torch_s(model: OnnxModel, expected: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=GREEDY_TOKENS)
    assert [piece.token for piece in generate_samples(model, PROMPT, params)] == expected["greedy"]


@pytest.mark.parametrize("case", range(len(SAMPLED)))
def test_sampled_ids_are_torch_s(model: OnnxModel, expected: dict[str, Any], case: int) -> None:
    params, seed, index = SAMPLED[case]
    pieces = generate_samples(model, PROMPT, params, seed=seed, indices=(index,))
    assert [piece.token for piece in pieces] == expected["sampled"][case]


def random_ids(model: OnnxModel, batch: int, time: int) -> NDArray[np.int64]:
    return np.random.default_rng(batch * 1000 + time).integers(0, model.config.vocab_size, (batch, time))


@pytest.mark.parametrize("batch", [2, 3, 5, 8, 16])
def test_a_row_of_a_batch_is_bit_for_bit_what_it_is_alone(any_model: OnnxModel, batch: int) -> None:
    model = any_model
    ids = random_ids(model, batch, 20)
    logits, state = model.step(ids, initial_state(model, batch))
    for row in range(batch):
        alone, alone_state = model.step(ids[row : row + 1], initial_state(model, 1))
        assert np.array_equal(logits[row], alone[0])
        assert all(map(np.array_equal, state_of(model, state, row), alone_state))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_however_a_text_is_cut_into_calls_the_result_is_the_same_bits(
    any_model: OnnxModel, cuts: list[int]
) -> None:
    model = any_model
    ids = random_ids(model, 1, sum(cuts))
    whole, whole_state = model.step(ids, initial_state(model, 1))
    state, parts, at = initial_state(model, 1), [], 0
    for cut in cuts:
        logits, state = model.step(ids[:, at : at + cut], state)
        parts.append(logits)
        at += cut
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert all(map(np.array_equal, state, whole_state))


def test_a_prompt_longer_than_one_call_is_read_to_the_same_state(model: OnnxModel) -> None:
    ids = random_ids(model, 1, 1300)
    state = read(model, ids[0].tolist(), initial_state(model, 1))
    _, whole_state = model.step(ids, initial_state(model, 1))
    assert all(map(np.array_equal, state, whole_state))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_bound_steps_are_bit_for_bit_the_plain_ones(any_model: OnnxModel, batch: int) -> None:
    model = any_model
    ids = random_ids(model, batch, 12)
    stepper, state = model.stepper(initial_state(model, batch)), initial_state(model, batch)
    for step in range(12):
        logits, state = model.step(ids[:, step : step + 1], state)
        assert np.array_equal(stepper.step(ids[:, step].tolist()), logits[:, 0])
        assert all(map(np.array_equal, stepper.state(), state))


@pytest.mark.parametrize("case", range(len(SAMPLED)))
def test_sample_three_of_eight_is_what_it_is_alone(any_model: OnnxModel, case: int) -> None:
    model = any_model
    params, seed, _ = SAMPLED[case]
    together = list(generate_samples(model, PROMPT, params, seed=seed, indices=tuple(range(8))))
    alone = list(generate_samples(model, PROMPT, params, seed=seed, indices=(3,)))
    assert [piece for piece in together if piece.index == 3] == alone
    assert len({tuple(p.token for p in together if p.index == i) for i in range(8)}) == 8


def test_prompts_of_any_length_step_together_each_as_it_does_alone(any_model: OnnxModel) -> None:
    params = SamplingParams(max_tokens=20)
    requests = [Request(prompt, params, seed=3) for prompt in ("", "the", PROMPT, "the old keeper of the")]
    together = [completion.text for completion in complete(any_model, requests)]
    assert together == ["".join(lm_runtime.generate(any_model, r.prompt, params, seed=3)) for r in requests]


def test_a_saved_session_goes_on_bit_for_bit(any_model: OnnxModel, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=20)
    session = Session.start(any_model, PROMPT, seed=1)
    session.save(tmp_path / "session", any_model)
    texts = [
        "".join(lm_runtime.generate(any_model, start, params))
        for start in (session, Session.load(tmp_path / "session", any_model))
    ]
    assert texts[0] == texts[1]


def test_text_is_that_of_the_ids(model: OnnxModel, expected: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=GREEDY_TOKENS)
    text = PROMPT + "".join(lm_runtime.generate(model, PROMPT, params))
    assert text == model.tokenizer.decode([*model.tokenizer.encode(PROMPT), *expected["greedy"]])


def test_int8_is_close_in_perplexity(model: OnnxModel) -> None:
    quantized = lm_runtime.load(FIXTURE, precision="int8", provider="cpu")
    fp32, int8 = (
        lm_runtime.score_file(candidate, ROOT / SCORED_TEXT).perplexity for candidate in (model, quantized)
    )
    assert abs(int8 / fp32 - 1) < 0.02
    assert int8 != fp32
