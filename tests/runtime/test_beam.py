"""Beam search: against every text there is, against greedy search, and against scoring."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
from conftest import FIXTURE
from lm_runtime.bundle import StateTensor
from lm_runtime.generation.beam import BeamHypothesis, beam_search
from lm_runtime.generation.session import Session
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.protocol import PlainStepper, State, Stepper
from lm_runtime.models.state import initial_state
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import token_log_probabilities
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.vocabulary import make_tokenizer

# Sums of float32 log-probabilities of about 20 tokens, taken in two ways.
SUMS_AGREE = 1e-4


class TableModel:
    """Looks its logits up by all that it has read: a model whose texts can be enumerated."""

    identity = "table"
    states = (StateTensor("read", "read_out", "int64", (2, None)),)

    def __init__(self, seed: int, words: str = "a b", levels: int | None = None) -> None:
        self.tokenizer: Tokenizer = make_tokenizer(TokenizerConfig("word", 100), [words])
        self.batches: list[int] = []
        generator = np.random.default_rng(seed)
        shape = (997, self.tokenizer.vocab_size)
        table = generator.normal(0, 2, shape) if levels is None else generator.integers(0, levels, shape)
        self._table = table.astype(np.float32)

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        self.batches.append(len(token))
        logits = np.empty((*token.shape, self.tokenizer.vocab_size), dtype=np.float32)
        read = state[0][0].copy()
        for time in range(token.shape[1]):
            read = (read * 31 + token[:, time] + 1) % len(self._table)
            logits[:, time] = self._table[read]
        return logits, (np.stack([read, read]),)

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        return self.step(token, state)[1]

    def stepper(self, state: State) -> Stepper:
        return PlainStepper(self.step, state)


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


def every_text(model: TableModel, depth: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Score and tokens of each text that the search may end with, best first."""
    eos_id, unk_id = model.tokenizer.eos_id, model.tokenizer.unk_id
    texts = []
    for length in range(1, depth + 1):
        for tokens in itertools.product(range(model.tokenizer.vocab_size), repeat=length):
            ends = tokens[-1] == eos_id or length == depth
            if ends and eos_id not in tokens[:-1] and unk_id not in tokens:
                logits, _ = model.step(np.array([[eos_id, *tokens[:-1]]]), initial_state(model, 1))
                chosen = np.exp(logits[0].astype(np.float64))
                chosen /= chosen.sum(axis=1, keepdims=True)
                log_probability = math.fsum(np.log(chosen[np.arange(length), tokens]))
                texts.append((log_probability / length**length_penalty, tokens))
    return sorted(texts, key=lambda text: -text[0])


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
@settings(max_examples=30, deadline=None)
def test_a_search_as_wide_as_all_texts_finds_them_all_in_order(
    seed: int, depth: int, length_penalty: float
) -> None:
    model = TableModel(seed)
    width = model.tokenizer.vocab_size**depth
    found = beam_search(model, beams=width, max_tokens=depth, length_penalty=length_penalty)
    expected = every_text(model, depth, length_penalty)
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected]
    scores = [score for score, _ in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx(scores, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([-1.0, 0.0]))
@settings(max_examples=50, deadline=None)
def test_without_a_reward_for_length_stopping_early_loses_nothing(
    seed: int, beams: int, length_penalty: float
) -> None:
    found = beam_search(TableModel(seed), beams=beams, max_tokens=6, length_penalty=length_penalty)
    assert found == plain_search(TableModel(seed), beams, 6, length_penalty)


def plain_search(
    model: TableModel, beams: int, max_tokens: int, length_penalty: float
) -> list[BeamHypothesis]:
    """The search as it is defined, one text at a time, to the last step."""
    tokenizer = model.tokenizer
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished = []
    for length in range(1, max_tokens + 1):
        candidates = []
        for log_probability, tokens in live:
            logits, _ = model.step(np.array([[tokenizer.eos_id, *tokens]]), initial_state(model, 1))
            shifted = logits[0, -1].astype(np.float64) - float(logits[0, -1].max())
            values = shifted - np.log(np.exp(shifted).sum())
            candidates += [
                (log_probability + float(values[token]), (*tokens, token))
                for token in range(tokenizer.vocab_size)
                if token != tokenizer.unk_id
            ]
        candidates.sort(key=lambda candidate: -candidate[0])
        for log_probability, tokens in candidates[:beams]:
            if tokens[-1] == tokenizer.eos_id or length == max_tokens:
                text = tokenizer.decode(tokens).removesuffix("\n")
                score = log_probability / length**length_penalty
                finished.append(BeamHypothesis(text, tokens, log_probability, score))
        live = [candidate for candidate in candidates if candidate[1][-1] != tokenizer.eos_id][:beams]
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]


def test_among_equals_the_higher_beam_and_the_smaller_id_come_first() -> None:
    model = TableModel(0, levels=1)
    found = beam_search(model, beams=3, max_tokens=2, length_penalty=0)
    eos, _, a, b = range(4)
    assert [hypothesis.tokens for hypothesis in found] == [(eos,), (a, eos), (a, a)]
    assert (model.tokenizer.tokens[a], model.tokenizer.tokens[b]) == ("a", "b")
    for seed in range(20):
        searches = [beam_search(TableModel(seed, levels=2), beams=4, max_tokens=5) for _ in range(2)]
        assert searches[0] == searches[1]


def test_a_step_is_one_call_for_all_live_beams() -> None:
    model = TableModel(3, words="a b c d e")
    beam_search(model, beams=4, max_tokens=6, length_penalty=2)
    assert len(model.batches) <= 6
    assert model.batches[:2] == [1, 4]
    assert set(model.batches[1:]) == {4}


@pytest.mark.parametrize("prompt", ["", "the", "the keeper of", "Mara wrote a letter\n"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 3.0])
def test_one_beam_is_greedy_up_to_the_line_s_end(
    model: OnnxModel, prompt: str, length_penalty: float
) -> None:
    params = SamplingParams(temperature=0, max_tokens=60)
    greedy = "".join(lm_runtime.generate(model, prompt, params))
    for max_tokens in (3, 60):
        [found] = beam_search(model, prompt, beams=1, max_tokens=max_tokens, length_penalty=length_penalty)
        if found.tokens[-1] == model.tokenizer.eos_id:
            assert found.text == greedy[: greedy.index("\n")]
        else:
            assert len(found.tokens) == max_tokens
            assert greedy.startswith(found.text)


@pytest.mark.parametrize("max_tokens", [4, 40])
def test_log_probabilities_are_those_of_scoring(model: OnnxModel, max_tokens: int) -> None:
    found = beam_search(model, beams=5, max_tokens=max_tokens, allow_unk=True)
    assert len(found) == 5
    for hypothesis in found:
        ends = hypothesis.tokens[-1] == model.tokenizer.eos_id
        [(ids, scores)] = token_log_probabilities(model, [(hypothesis.text, ends)])
        assert tuple(ids) == hypothesis.tokens
        assert hypothesis.log_probability == pytest.approx(float(scores.sum()), abs=SUMS_AGREE)
        assert hypothesis.score == hypothesis.log_probability / len(hypothesis.tokens)


def test_texts_continue_the_prompt_and_a_session_stays_as_it_is(model: OnnxModel) -> None:
    session = Session.start(model, "the keeper of")
    before = [array.copy() for array in session.state]
    found = beam_search(model, session, max_tokens=10)
    assert found == beam_search(model, "the keeper of", max_tokens=10)
    assert all(hypothesis.text.startswith(" ") for hypothesis in found)
    assert all(map(np.array_equal, before, session.state))
    assert session.position == 3
    assert not any("\n" in hypothesis.text for hypothesis in found)


def test_the_best_come_first_and_none_twice(model: OnnxModel) -> None:
    found = beam_search(model, "the", beams=8, max_tokens=12)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({hypothesis.tokens for hypothesis in found}) == 8


def test_unknown_words_come_only_when_asked(model: OnnxModel) -> None:
    searches = [
        beam_search(model, "the", beams=20, max_tokens=3, length_penalty=0, allow_unk=allow)
        for allow in (False, True)
    ]
    unk_id = model.tokenizer.unk_id
    assert [any(unk_id in hypothesis.tokens for hypothesis in found) for found in searches] == [False, True]


def test_a_reward_for_length_makes_texts_longer(model: OnnxModel) -> None:
    short, long = (
        beam_search(model, "the", beams=8, max_tokens=30, length_penalty=length_penalty)[0]
        for length_penalty in (-2.0, 2.0)
    )
    assert len(short.tokens) < len(long.tokens)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number, got 2.5"),
        ({"length_penalty": 11.0}, "length_penalty must be from -10 to 10, got 11.0"),
        ({"length_penalty": math.nan}, "length_penalty must be from -10 to 10, got nan"),
    ],
)
def test_what_is_out_of_range_is_named(model: OnnxModel, arguments: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        beam_search(model, **arguments)
