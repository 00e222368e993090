"""Each filter does exactly what it says, on distributions small enough to check by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
from conftest import FIXTURE
from lm_runtime.sampling.filters import FILTERS, Filter, keep_min_p, keep_top_k, keep_top_p, keep_typical
from lm_runtime.sampling.history import WINDOW, History
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.processors import (
    Constraint,
    ban_repeated_ngrams,
    ban_sequences,
    penalize_counts,
    penalize_repetition,
    processors_of,
)
from lm_runtime.sampling.sampler import NotFiniteError, Sampler, draw
from lm_runtime.settings import settings_of
from lm_runtime.softmax import log_softmax

BORDER = 1e-5
"""What float32 leaves uncertain of sums and exponentials, relative to all the weights."""

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=400).map(
    lambda values: np.array(values, dtype=np.float32)
)


def choose(
    values: NDArray[np.float32],
    params: SamplingParams,
    generator: np.random.Generator,
    banned: int | None = None,
) -> int:
    sampler = Sampler(params, values.size, 1, banned)
    sampler.weigh(values[None])
    return sampler.choose([generator])[0]


def logits(*probabilities: float) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float32))


def probabilities(values: NDArray[np.float32]) -> list[float]:
    weights = np.exp(values - values.max())
    return [round(float(weight), 5) for weight in weights / weights.sum()]


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.3, [1, 0, 0, 0]), (0.9, [1, 0, 0, 0]), (0.95, [0.9, 0, 0, 0.1]), (1.0, [0.9, 0, 0, 0.1])],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, expected: list[float]) -> None:
    assert probabilities(keep_top_p(logits(0.9, 0, 0, 0.1), p - 1e-6)) == expected


def test_top_p_breaks_ties_by_id() -> None:
    assert probabilities(keep_top_p(logits(0.25, 0.25, 0.25, 0.25), 0.4)) == [0.5, 0.5, 0, 0]


def test_top_k_keeps_k() -> None:
    assert probabilities(keep_top_k(logits(0.1, 0.4, 0.2, 0.3), 2)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7], abs=1e-5
    )
    assert probabilities(keep_top_k(logits(0.1, 0.9), 5)) == [0.1, 0.9]


def test_min_p_is_relative_to_the_best() -> None:
    assert probabilities(keep_min_p(logits(0.5, 0.3, 0.15, 0.05), 0.2)) == pytest.approx(
        [0.52632, 0.31579, 0.15789, 0], abs=1e-4
    )


def test_repetition_penalty_divides_above_zero_and_multiplies_below() -> None:
    values = np.array([2.0, -2.0, 1.0, -1.0], dtype=np.float32)
    assert penalize_repetition(values, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0, -1.0]
    assert values.tolist() == [2.0, -2.0, 1.0, -1.0]


def test_frequency_counts_and_presence_does_not() -> None:
    values = np.zeros(4, dtype=np.float32)
    assert penalize_counts(values, {1: 3, 2: 1}, 0.5, 0.25).tolist() == [0, -1.75, -0.75, 0]
    assert penalize_counts(values, {}, 0.5, 0.25).tolist() == [0, 0, 0, 0]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_an_n_gram_that_came_is_not_completed_again(tokens: list[int], size: int) -> None:
    came = {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)}
    banned = np.isneginf(ban_repeated_ngrams(np.zeros(4, dtype=np.float32), tokens, size))
    end = tokens[len(tokens) - size + 1 :] if size > 1 else []
    expected = [len(end) == size - 1 and (*end, token) in came for token in range(4)]
    assert banned.tolist() == expected


def test_a_sequence_is_banned_where_its_beginning_stands() -> None:
    values = np.zeros(5, dtype=np.float32)

    def banned(tokens: list[int]) -> list[int]:
        return np.flatnonzero(np.isneginf(ban_sequences(values, tokens, [(4,), (1, 2, 3)]))).tolist()

    assert banned([]) == [4]
    assert banned([1, 2]) == [3, 4]
    assert banned([2]) == banned([2, 1]) == [4]


def test_typical_keeps_the_tokens_of_expected_surprise() -> None:
    # Entropy 1.28: surprises 0.69, 1.39, 2.08, 2.08 stand 0.52, 0.17, 0.87, 0.87 from 1.21.
    assert probabilities(keep_typical(logits(0.5, 0.25, 0.125, 0.125), 0.2)) == [0, 1, 0, 0]
    assert probabilities(keep_typical(logits(0.5, 0.25, 0.125, 0.125), 0.7)) == [0.66667, 0.33333, 0, 0]
    assert probabilities(keep_typical(logits(0.5, 0.25, 0.125, 0.125), 0.8)) == [0.57143, 0.28571, 0.14286, 0]
    assert probabilities(keep_typical(logits(1, 0, 0, 0), 0.1)) == [1, 0, 0, 0]


def test_log_probabilities_add_up_to_one() -> None:
    assert np.exp(log_softmax(logits(0.6, 0.3, 0.1))).tolist() == pytest.approx([0.6, 0.3, 0.1])


class Vocabulary:
    """Four tokens a, b, c and <unk>."""

    kind, unk_id, tokens = "word", 3, ("a", "b", "c", "<unk>")

    def encode(self, text: str) -> list[int]:
        return ["abc".find(text) % 4]


class Allowing:
    """A matcher that allows some of the tokens."""

    def __init__(self, *allowed: int, complete: bool = False) -> None:
        self._allowed = np.isin(np.arange(4), allowed)
        self.complete = complete

    def allowed(self) -> NDArray[np.bool_]:
        return self._allowed


def processed(
    values: NDArray[np.float32], history: list[int], *constraint: Constraint, **params: Any
) -> list[float]:
    chain = [*processors_of(SamplingParams(**params), Vocabulary()), *constraint]
    for process in chain:
        values = process(values, History(history))
    return values.tolist()


def test_processors_go_from_bias_to_constraint() -> None:
    values = np.array([1.0, 1.0, 4.0, 4.0], dtype=np.float32)
    constraint = Constraint(Allowing(0, 1, 2), eos_id=0)
    strict = {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "no_repeat_ngram_size": 1}
    found = processed(values, [2], constraint, **strict, logit_bias={0: 2.0}, banned=("b",), allow_unk=True)
    assert found == [3.0, -math.inf, -math.inf, -math.inf]
    gentle = {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "allow_unk": True}
    assert processed(values, [2, 2], **gentle, logit_bias={2: 2.0}) == [
        1.0,
        1.0,
        1.0,
        4.0,
    ]  # (4 + 2) / 2 - 2
    assert values.tolist() == [1.0, 1.0, 4.0, 4.0]


def test_there_is_no_chain_where_nothing_looks_back_and_it_rules_out_unk_where_there_is_one() -> None:
    values = np.zeros(4, dtype=np.float32)
    assert processors_of(SamplingParams(top_p=0.9, top_k=3, stop=("a",)), Vocabulary()) == []
    assert processed(values, [], banned=("b",)) == [0, -math.inf, 0, -math.inf]
    assert processed(values, [], presence_penalty=1.0) == [0, 0, 0, -math.inf]
    assert processed(values, [], presence_penalty=1.0, allow_unk=True) == [0, 0, 0, 0]


def test_a_text_that_matches_may_end_with_its_line() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    matches = Constraint(Allowing(1, complete=True), eos_id=0)
    assert processed(values, [], matches) == [1.0, 2.0, -math.inf, -math.inf]
    assert (matches.ends_before(0), matches.ends_before(1)) == (True, False)
    goes_on = Constraint(Allowing(0, 1, complete=True), eos_id=0)
    assert processed(values, [], goes_on) == [1.0, 2.0, -math.inf, -math.inf]
    assert not goes_on.ends_before(0)


@pytest.mark.parametrize("asked", [1, 97, 1500, 10_000])
def test_a_history_is_its_window_however_often_it_is_asked(asked: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 300, 6 * WINDOW).tolist()
    history = History()
    for number, token in enumerate(tokens, start=1):
        history.push(token)
        if number % asked == 0 and number % 31 == 0:
            assert history.counts == Counter(tokens[max(0, number - WINDOW) : number])
    assert history.tokens == tokens[-WINDOW:]
    assert history.counts == Counter(tokens[-WINDOW:]) == History(tokens).counts
    copy = history.copy()
    copy.push(6)
    assert history.tokens == tokens[-WINDOW:]
    assert copy.tokens[-1] == 6


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.9, temperature=0.5)])
@pytest.mark.parametrize("vocab_size", [65, 1000])
@pytest.mark.parametrize("shift", [-1000, -150, 150, 1000])
def test_logits_far_from_zero_choose_as_those_near_it(
    params: SamplingParams, vocab_size: int, shift: int
) -> None:
    # Eighths, so that the shift itself is exact.
    values = np.round(np.random.default_rng(1).standard_normal((3, vocab_size)) * 24).astype(np.float32) / 8
    near, far = Sampler(params, vocab_size, 3, banned=2), Sampler(params, vocab_size, 3, banned=2)
    near.weigh(values)
    values[1] += shift  # one row of three
    far.weigh(values)
    drawn = [
        [sampler.choose(generators) for _ in range(300)]
        for sampler in (near, far)
        if (generators := [np.random.default_rng(row) for row in range(3)])
    ]
    assert drawn[0] == drawn[1]


@given(LOGITS, st.floats(0.01, 1.0, exclude_max=True))
def test_top_p_is_the_definition_by_full_sort(values: NDArray[np.float32], p: float) -> None:
    order = np.argsort(-values, kind="stable")
    weights = np.exp(values - values.max()).astype(np.float64)
    before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    kept = keep_top_p(values, p) > -np.inf
    needed = p * weights.sum()
    slack = 1e-5 * weights.sum()  # of float32 sums, where a token is on the border
    for position, token in enumerate(order):
        if before[position] < needed - slack:
            assert kept[token]
        elif before[position] > needed + slack:
            assert not kept[token]


TESTED = [filter_ for filter_ in FILTERS if filter_.keeps]


@given(LOGITS, st.sampled_from(TESTED), st.floats(0.01, 1.0, exclude_max=True), st.integers(1, 500))
def test_the_test_of_a_token_says_what_the_filter_keeps(
    values: NDArray[np.float32], filter_: Filter, p: float, k: int
) -> None:
    values = np.round(values * 64) / 64  # two logits are equal, or so are not their exponentials
    parameter = k if filter_.parameter == "top_k" else p
    weights = np.exp(values - values.max())
    total = float(weights.sum(dtype=np.float64))
    kept = filter_.keep(values, parameter) > -np.inf
    for token, weight in enumerate(weights):
        if filter_.keeps(weights, total, token, parameter) != kept[token]:
            equal = weights[:token][weights[:token] == weight].sum()
            before = weights[weights > weight].sum(dtype=np.float64) + equal
            places = {"top_p": before - p * total, "min_p": weight - p * weights.max()}
            assert abs(places[filter_.parameter]) < BORDER * total


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_a_draw_inverts_the_cumulative_distribution(values: NDArray[np.float32], uniform: float) -> None:
    token = draw(values, uniform)
    cumulative = np.cumsum(np.exp(values - values.max()), dtype=np.float64) / np.exp(
        values - values.max()
    ).sum(dtype=np.float64)
    assert cumulative[token] >= uniform - 1e-6
    assert token == 0 or cumulative[token - 1] <= uniform + 1e-6


def test_a_draw_has_the_frequencies_of_the_distribution() -> None:
    generator = np.random.default_rng(0)
    params = SamplingParams()
    counts = np.bincount(
        [choose(logits(0.5, 0.2, 0.3), params, generator) for _ in range(20_000)], minlength=3
    )
    # Four standard deviations of the most uncertain count.
    assert np.abs(counts - [10_000, 4_000, 6_000]).max() < 4 * math.sqrt(20_000 * 0.25)


def test_what_is_ruled_out_is_never_drawn() -> None:
    generator = np.random.default_rng(0)
    chosen = {choose(logits(0.6, 0.3, 0.1), SamplingParams(), generator, banned=0) for _ in range(200)}
    assert chosen == {1, 2}


@given(LOGITS)
def test_greedy_and_a_tiny_temperature_take_the_best(values: NDArray[np.float32]) -> None:
    generator = np.random.default_rng(0)
    assert choose(values, SamplingParams(temperature=0), generator) == values.argmax()
    cold = choose(values, SamplingParams(temperature=1e-30), generator)
    assert values[cold] >= values.max() - 1e-4


def test_temperature_flattens() -> None:
    values = logits(0.8, 0.2)
    generator = np.random.default_rng(0)
    hot = np.mean([choose(values, SamplingParams(temperature=2), generator) for _ in range(4000)])
    assert hot == pytest.approx(1 / 3, abs=0.03)  # sqrt(0.2) / (sqrt(0.8) + sqrt(0.2))


SEVERAL = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(top_p=0.5),
    SamplingParams(top_p=0.9, min_p=0.2),
    SamplingParams(min_p=0.3),
    SamplingParams(top_k=3),
    SamplingParams(top_k=4, top_p=0.7, temperature=1.3),
    SamplingParams(top_k=5, min_p=0.1),
    SamplingParams(typical_p=0.6),
    SamplingParams(typical_p=0.8, top_k=6, top_p=0.95, min_p=0.01, temperature=0.8),
]


def filtered(values: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """The distribution by the filters one after the other."""
    values = values / np.float32(params.temperature)
    values = keep_top_k(values, params.top_k) if params.top_k else values
    values = keep_top_p(values, params.top_p) if params.top_p < 1 else values
    values = keep_min_p(values, params.min_p) if params.min_p else values
    values = keep_typical(values, params.typical_p) if params.typical_p < 1 else values
    weights = np.exp(values - values.max(), dtype=np.float64)
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("params", SEVERAL)
@pytest.mark.parametrize("vocab_size", [9, 700])
def test_the_sampler_has_the_distribution_that_the_filters_leave(
    params: SamplingParams, vocab_size: int
) -> None:
    """With and without blocks; the seeds are fixed, so that four standard deviations hold for good."""
    values = (np.random.default_rng(3).standard_normal(vocab_size) * 2.5).astype(np.float32)
    expected = filtered(values, params)
    sampler, generator = Sampler(params, vocab_size, 1), np.random.default_rng(5)
    sampler.weigh(values[None])
    draws = 20_000
    counts = np.bincount([sampler.choose([generator])[0] for _ in range(draws)], minlength=vocab_size)
    assert not counts[expected == 0].any()
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 4.5 * deviation + 1).all()


@pytest.mark.parametrize("params", [*SEVERAL, SamplingParams(temperature=0)])
def test_a_row_is_sampled_as_it_is_alone(params: SamplingParams) -> None:
    rows = (np.random.default_rng(0).standard_normal((5, 1000)) * 3).astype(np.float32)
    rows[2, 7] = rows[3, 7] = 30  # the banned token is the most probable one
    together = Sampler(params, 1000, 5, banned=7)
    together.weigh(rows)
    generators = [np.random.default_rng(row) for row in range(5)]
    drawn = np.array([together.choose(generators) for _ in range(200)])
    for row in range(5):
        alone, generator = Sampler(params, 1000, 1, banned=7), np.random.default_rng(row)
        alone.weigh(rows[row : row + 1])
        assert [alone.choose([generator])[0] for _ in range(200)] == drawn[:, row].tolist()
    assert not (drawn == 7).any()


@pytest.mark.parametrize("vocab_size", [200, 1000])
def test_of_equals_the_smaller_ids_are_kept(vocab_size: int) -> None:
    sampler, generator = Sampler(SamplingParams(top_p=0.25), vocab_size, 1), np.random.default_rng(0)
    sampler.weigh(np.zeros((1, vocab_size), dtype=np.float32))
    drawn = {sampler.choose([generator])[0] for _ in range(3000)}
    assert max(drawn) == vocab_size // 4 - 1


def test_a_flat_distribution_with_a_small_p_does_not_draw_for_ever() -> None:
    values = np.linspace(0, 1e-3, 5000, dtype=np.float32)
    sampler, generator = Sampler(SamplingParams(top_p=0.001), 5000, 1), np.random.default_rng(0)
    sampler.weigh(values[None])
    kept = set(np.flatnonzero(keep_top_p(values, 0.001) > -np.inf).tolist())
    assert {sampler.choose([generator])[0] for _ in range(300)} <= kept


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("vocab_size", [9, 1000])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("params", [*SEVERAL, SamplingParams(temperature=0)])
def test_logits_that_are_no_numbers_are_refused(
    params: SamplingParams, batch: int, vocab_size: int, fault: float
) -> None:
    values = np.random.default_rng(0).standard_normal((batch, vocab_size)).astype(np.float32)
    values[-1, 5] = fault
    with pytest.raises(NotFiniteError, match="logits are NaN or infinite") as caught:
        Sampler(params, vocab_size, batch, banned=2).weigh(values)
    assert caught.value.row == batch - 1


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(min_p=0.2)])
def test_a_top_k_above_the_vocabulary_is_cut(params: SamplingParams) -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    for seed in range(50):
        whole, larger = (
            choose(values, replace(params, top_k=k), np.random.default_rng(seed)) for k in (50, 10**9)
        )
        assert whole == larger


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("temperature", -1, "from 0 to 1000"),
        ("temperature", math.nan, "from 0 to 1000"),
        ("temperature", math.inf, "from 0 to 1000"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("temperature", 1001, "from 0 to 1000"),
        ("repetition_penalty", 0, "from 0.01 to 100"),
        ("repetition_penalty", 101, "from 0.01 to 100"),
        ("top_k", 2.5, "top_k must be a whole number"),
        ("max_tokens", 2.5, "max_tokens must be a whole number"),
        ("stop", "ab", "stop must be a sequence of strings"),
        ("max_tokens", -1, "at least 0"),
        ("stop", ("",), "must not be empty"),
        ("banned", "ab", "banned must be a sequence of strings"),
        ("banned", ("",), "a banned string must not be empty"),
        ("typical_p", 0, "typical_p must be above 0 and at most 1"),
        ("frequency_penalty", math.nan, "frequency_penalty must be from -100 to 100"),
        ("presence_penalty", 101, "presence_penalty must be from -100 to 100"),
        ("no_repeat_ngram_size", -1, "no_repeat_ngram_size must be from 0 to 1000"),
        ("no_repeat_ngram_size", 1.5, "no_repeat_ngram_size must be a whole number"),
        ("logprobs", -1, "logprobs must be at least 0"),
        ("logprobs", True, "logprobs must be a whole number"),
        ("logit_bias", {1: math.nan}, "logit_bias must be within 10000 of 0, or -inf, got nan for 1"),
        ("logit_bias", {1: math.inf}, "logit_bias must be within 10000 of 0, or -inf, got inf for 1"),
        ("logit_bias", {1: -1e300}, "logit_bias must be within 10000 of 0"),
        ("logit_bias", {1: True}, "logit_bias must map ids to numbers"),
        ("temperature", "0.5", "temperature must be a number, got '0.5'"),
        ("temperature", None, "temperature must be a number, got None"),
        ("temperature", True, "temperature must be a number, got True"),
        ("stop", None, "stop must be a sequence of strings, got None"),
        ("logit_bias", {"a": 1}, "logit_bias must map ids to numbers"),
        ("logit_bias", [(1, 2, 3)], "logit_bias must map ids to numbers"),
        ("logit_bias", 5, "logit_bias must map ids to numbers"),
        ("regex", 5, "regex must be a string"),
    ],
)
def test_values_out_of_range_are_refused_with_the_bound(field: str, value: Any, bound: str) -> None:
    with pytest.raises(ValueError, match=bound):
        SamplingParams(**{field: value})


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner)
    ),
    max_leaves=5,
)


@given(st.sampled_from(list(settings_of(SamplingParams))), JUNK)
@settings(max_examples=500)
def test_whatever_a_field_is_given_it_is_kept_or_refused_by_name(field: str, value: Any) -> None:
    try:
        params = SamplingParams(**{field: value})
    except ValueError as error:
        assert field in str(error)
        assert len(str(error)) < 300
    else:
        assert params == replace(params)
        hash(params)


@pytest.mark.parametrize("name", ["k", "beams", "max_tokens", "length_penalty", "max_batch", "seed"])
@pytest.mark.parametrize("value", ["5", None, True, [3], math.nan])
def test_arguments_of_another_type_are_refused_as_fields_are(name: str, value: Any) -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    calls: dict[str, Callable[[], object]] = {
        "k": lambda: lm_runtime.suggest(model, "the", value),
        "beams": lambda: lm_runtime.beam_search(model, beams=value),
        "max_tokens": lambda: lm_runtime.beam_search(model, max_tokens=value),
        "length_penalty": lambda: lm_runtime.beam_search(model, length_penalty=value),
        "max_batch": lambda: lm_runtime.Engine(model, max_batch=value),
        "seed": lambda: lm_runtime.Request("the", seed=value),
    }
    with pytest.raises(ValueError, match=rf"{name} must be (a whole number|a number|from -10 to 10), got "):
        calls[name]()
