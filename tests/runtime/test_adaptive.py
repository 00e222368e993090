"""A model that follows what it has read: by the definition, exact in sessions and batches, and fitted."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
from conftest import FIXTURE, TINY, run_command
from lm_runtime import Engine, SamplingParams, Session
from lm_runtime.files import UnusableFileError
from lm_runtime.models.adaptation import Adaptation
from lm_runtime.models.adaptive import AdaptiveModel
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.protocol import State, StepModel
from lm_runtime.models.state import initial_state
from lm_runtime.scoring.adaptation import fit_adaptation
from lm_runtime.scoring.score import score_file
from lm_runtime.softmax import log_softmax
from lm_runtime.text_files import read_fragments
from toy_bundles import ngram_bundle

FLOAT32 = 2e-5
"""Natural-log units: sums of products in another order."""
SMALL = Adaptation(cache_weight=0.3, cache_theta=0.7, cache_window=5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("adaptive") / "bundle"
    run_command(
        "lm-export", small_run, "--out", folder, "--adaptive", "--quantize", "int8", cwd=folder.parent
    )
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> OnnxModel:
    loaded = lm_runtime.load(bundle, provider="cpu")
    assert isinstance(loaded, OnnxModel)
    return loaded


def tokens_of(model: StepModel, size: int) -> list[int]:
    (ids,) = model.tokenizer.encode_fragments(read_fragments(TINY / "train.txt"))
    found: list[int] = ids[:size].tolist()
    return found


def defined(
    model: OnnxModel, ids: Sequence[int], adaptation: Adaptation, *, counts: bool = False
) -> NDArray[np.float64]:
    """The log-probability of every token after each of ``ids``, word for word as Grave et al. define it."""
    state = initial_state(model, 1)
    keys: list[NDArray[Any]] = []
    rows = []
    for place, token in enumerate(ids):
        logits, hidden, state = model.step_hidden(np.array([[token]]), state)
        followed = list(zip(keys, ids[1 : place + 1], strict=True))[-adaptation.cache_window :]
        probabilities = np.exp(log_softmax(logits[0, 0]))
        if followed:
            alike = [
                0.0 if counts else adaptation.cache_theta * float(key @ hidden[0, 0]) for key, _ in followed
            ]
            weights = np.exp(np.array(alike) - max(alike))
            cache = np.zeros_like(probabilities)
            for weight, (_, next_) in zip(weights / weights.sum(), followed, strict=True):
                cache[next_] += weight
            probabilities = (1 - adaptation.cache_weight) * probabilities + adaptation.cache_weight * cache
        rows.append(np.log(probabilities))
        keys.append(hidden[0, 0].astype(np.float16).astype(np.float32))
    return np.array(rows)


@pytest.mark.parametrize("theta", [0.7, 0.0])
def test_a_text_has_the_probabilities_of_the_definition(model: OnnxModel, theta: float) -> None:
    """Read at once, step by step, and scored without the rest of the vocabulary."""
    adaptation = dataclasses.replace(SMALL, cache_theta=theta)
    adaptive = AdaptiveModel(model, adaptation)
    ids = [model.tokenizer.eos_id, *tokens_of(model, 40)]
    expected = defined(model, ids[:-1], adaptation, counts=theta == 0)
    logits, _ = adaptive.step(np.array([ids[:-1]]), initial_state(adaptive, 1))
    np.testing.assert_allclose(log_softmax(logits[0]), expected, atol=FLOAT32, rtol=0)
    stepper = adaptive.stepper(initial_state(adaptive, 1))
    for token, row in zip(ids[:-1], expected, strict=True):
        np.testing.assert_allclose(log_softmax(stepper.step([token])[0]), row, atol=FLOAT32, rtol=0)
    values, _ = adaptive.score(np.array([ids]), initial_state(adaptive, 1))
    np.testing.assert_allclose(values[0], expected[range(40), ids[1:]], atol=FLOAT32, rtol=0)


def equal(one: State, other: State) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_the_state_is_the_same_however_a_text_is_read(model: OnnxModel, sizes: list[int]) -> None:
    adaptive = AdaptiveModel(model, SMALL)
    ids = tokens_of(model, sum(sizes))
    whole = adaptive.advance(np.array([ids]), initial_state(adaptive, 1))
    state, start = initial_state(adaptive, 1), 0
    for size in sizes:
        state = adaptive.advance(np.array([ids[start : start + size]]), state)
        start += size
    assert equal(whole, state)
    stepper = adaptive.stepper(initial_state(adaptive, 1))
    for token in ids:
        stepper.step([token])
    assert equal(stepper.state(), whole)
    stepper.step([ids[0]])
    stepper.undo()
    assert equal(stepper.state(), whole)
    _, stepped = adaptive.step(np.array([ids]), initial_state(adaptive, 1))
    assert equal(stepped, whole)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_saved_session_goes_on_bit_for_bit(bundle: Path, tmp_path: Path, precision: Any) -> None:
    adaptive = AdaptiveModel(lm_runtime.load(bundle, precision=precision, provider="cpu"), SMALL)
    params = SamplingParams(max_tokens=15)
    session = Session.start(adaptive, "the keeper of the light", seed=3)
    first = "".join(lm_runtime.generate(adaptive, session, params))
    session.save(tmp_path / "s.npz", adaptive)
    again = Session.load(tmp_path / "s.npz", adaptive)
    fork = session.copy()
    rest = "".join(lm_runtime.generate(adaptive, session, params))
    assert rest == "".join(lm_runtime.generate(adaptive, again, params))
    assert rest == "".join(lm_runtime.generate(adaptive, fork, params))
    assert equal(session.state, again.state)
    whole = lm_runtime.generate(adaptive, "the keeper of the light", SamplingParams(max_tokens=30), seed=3)
    assert first + rest == "".join(whole)
    other = AdaptiveModel(lm_runtime.load(bundle, provider="cpu"), Adaptation(cache_window=6))
    with pytest.raises(UnusableFileError, match="another model"):
        Session.load(tmp_path / "s.npz", other)


def test_in_a_batch_each_text_is_what_it_is_alone(model: OnnxModel) -> None:
    adaptive = AdaptiveModel(model, SMALL)
    params = SamplingParams(max_tokens=25, regex=None)
    prompts = ["the keeper", "", "the sea the sea the sea", "a"]
    alone = ["".join(lm_runtime.generate(adaptive, prompt, params, seed=5)) for prompt in prompts]
    engine, texts = Engine(adaptive, max_batch=3), [""] * len(prompts)
    for prompt in prompts:
        engine.add(Session.start(adaptive, prompt, seed=5), params)
    while len(engine):
        for piece in engine.step():
            texts[piece.index] += piece.text
    assert texts == alone


@pytest.mark.parametrize("kind", ["ngram", "window"])
def test_other_families_count_what_they_have_read(tmp_path: Path, kind: str) -> None:
    if kind == "ngram":
        plain: StepModel = lm_runtime.load(ngram_bundle(tmp_path / "bundle"))
    else:
        plain = lm_runtime.load(FIXTURE, provider="cpu")  # without the output hidden
    adaptive = AdaptiveModel(plain, SMALL)
    ids = [plain.tokenizer.eos_id, *tokens_of(plain, 30)]
    logits, _ = plain.step(np.array([ids]), initial_state(plain, 1))
    found, _ = adaptive.step(np.array([ids]), initial_state(adaptive, 1))
    for place in range(len(ids)):
        probabilities = np.exp(log_softmax(logits[0, place]))
        if seen := ids[1 : place + 1][-SMALL.cache_window :]:
            counted = np.bincount(seen, minlength=probabilities.size) / len(seen)
            probabilities = (1 - SMALL.cache_weight) * probabilities + SMALL.cache_weight * counted
        np.testing.assert_allclose(np.exp(log_softmax(found[0, place])), probabilities, atol=FLOAT32, rtol=0)
    assert len(adaptive.states) == len(plain.states) + 2


def test_a_cache_that_contradicts_itself_is_refused(model: OnnxModel) -> None:
    adaptive = AdaptiveModel(model, SMALL)
    good = adaptive.advance(np.array([tokens_of(model, 9)]), initial_state(adaptive, 1))
    place = len(model.states)
    for index, value in ((place, 10**9), (place, 0), (place + 1, 2), (place + 1, -1)):
        state = [array.copy() for array in good]
        state[index][0, 0] = value
        for call in (adaptive.step, adaptive.advance):
            with pytest.raises(ValueError, match=r"(the|of the) cache"):
                call(np.array([[1]]), tuple(state))
        with pytest.raises(ValueError, match=r"(the|of the) cache"):
            adaptive.stepper(tuple(state))


def test_the_fit_finds_the_best_of_what_it_could_take(model: OnnxModel, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["the keeper of the light saw the old sea"] * 12) + "\n")
    lines: list[str] = []
    found = fit_adaptation(model, text, window=100, tell=lines.append)
    best = score_file(AdaptiveModel(model, found), text).perplexity
    assert best < 0.8 * score_file(model, text).perplexity
    assert f"perplexity {best:.2f}" in " ".join(lines)
    for change in (
        {"cache_weight": found.cache_weight / 2},
        {"cache_weight": found.cache_weight * 1.04},
        {"cache_theta": found.cache_theta * 3},
    ):
        worse = dataclasses.replace(found, **change)
        assert score_file(AdaptiveModel(model, worse), text).perplexity >= best


def test_an_adaptive_model_can_be_pickled_and_fits_a_line(model: OnnxModel) -> None:
    adaptive = AdaptiveModel(model, SMALL)
    again = pickle.loads(pickle.dumps(adaptive))
    assert again.identity == adaptive.identity
    assert "\n" not in repr(adaptive)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache_weight": 1.0}, "weight must be"),
        ({"cache_theta": -1.0}, "theta must be"),
        ({"cache_window": 0}, "window must be"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptation(**values)
