"""The loop: when a text ends, what is shown, and what is never generated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lm_runtime
from conftest import FIXTURE
from lm_runtime.generation.generate import generate_samples
from lm_runtime.generation.session import StopScanner
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.sampling.params import SamplingParams


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


def text_of(model: OnnxModel, prompt: str = "", seed: int = 1, **params: Any) -> str:
    return "".join(lm_runtime.generate(model, prompt, SamplingParams(**params), seed=seed))


def test_a_seed_gives_the_same_text_and_another_seed_another(model: OnnxModel) -> None:
    assert text_of(model) == text_of(model)
    assert text_of(model) != text_of(model, seed=2)


def test_max_tokens_is_kept(model: OnnxModel) -> None:
    for length in (0, 1, 7):
        pieces = list(generate_samples(model, "", SamplingParams(max_tokens=length)))
        assert len(pieces) == length
        assert [piece.finish for piece in pieces] == ([None] * (length - 1) + ["length"])[:length]


def test_unknown_words_are_generated_only_when_asked(model: OnnxModel) -> None:
    assert model.tokenizer.unk_id is not None
    assert "<unk>" not in text_of(model, max_tokens=400)
    assert "<unk>" in text_of(model, max_tokens=400, allow_unk=True)


def test_a_line_s_end_is_a_line_break_and_the_next_line_starts_without_a_space(model: OnnxModel) -> None:
    text = text_of(model, max_tokens=200)
    assert "\n" in text
    assert "\n " not in text
    assert " \n" not in text


def test_the_text_continues_the_prompt(model: OnnxModel) -> None:
    assert text_of(model, "the").startswith((" ", "\n"))
    assert not text_of(model, "the\n").startswith(" ")
    assert not text_of(model, "").startswith(" ")


def test_a_stop_string_across_tokens_ends_the_text_before_it(model: OnnxModel) -> None:
    whole = text_of(model, max_tokens=100)
    words = whole.split(" ")
    stop = f"{words[4][-2:]} {words[5][:1]}"
    expected = whole[: whole.index(stop)]
    assert text_of(model, max_tokens=100, stop=(stop, "not in the text")) == expected
    pieces = list(generate_samples(model, "", SamplingParams(stop=(stop,)), seed=1))
    assert pieces[-1].finish == "stop"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_scanner_shows_what_comes_before_the_first_stop(text: str, stops: list[str]) -> None:
    scanner, shown, stopped = StopScanner(), "", False
    for character in text:
        piece, stopped = scanner.push(character, tuple(stops))
        shown += piece
        if stopped:
            break
    shown += "" if stopped else scanner.held
    # Character by character, the stop that is complete first wins, and of those the longest.
    ends = [(text.index(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    assert shown == (text[: min(ends)[0] + min(ends)[1]] if ends else text)


def test_the_repetition_penalty_makes_a_text_more_varied(model: OnnxModel) -> None:
    def most_common(penalty: float) -> int:
        words = text_of(model, temperature=0, max_tokens=120, repetition_penalty=penalty).split()
        return Counter(words).most_common(1)[0][1]

    assert most_common(2.0) < most_common(1.0)


def test_suggestions_are_the_most_probable_tokens_and_their_probabilities(model: OnnxModel) -> None:
    everything = lm_runtime.suggest(model, "the keeper of", model.tokenizer.vocab_size, allow_unk=True)
    assert sum(probability for _, probability in everything) == pytest.approx(1)
    assert [p for _, p in everything] == sorted((p for _, p in everything), reverse=True)
    greedy = text_of(model, "the keeper of", temperature=0, max_tokens=1)
    assert everything[0][0] == greedy == " the"
    suggested = lm_runtime.suggest(model, "the keeper of", 3)
    assert suggested == [pair for pair in everything if pair[0] != " <unk>"][:3]
    for k in (0, 201):
        with pytest.raises(ValueError, match=f"k must be from 1 to 200, got {k}"):
            lm_runtime.suggest(model, "", k)


def test_samples_that_stop_early_leave_the_others_alone(model: OnnxModel) -> None:
    params = SamplingParams(max_tokens=60, stop=("\n",))
    together = list(generate_samples(model, "", params, seed=5, indices=tuple(range(6))))
    lengths = Counter(piece.index for piece in together)
    assert len(set(lengths.values())) > 1
    for index in range(6):
        alone = list(generate_samples(model, "", params, seed=5, indices=(index,)))
        assert [piece for piece in together if piece.index == index] == alone
