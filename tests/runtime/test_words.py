"""A half-typed word goes on as the words that the model holds most probable, whatever tokens spell them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, TINY
from lm_runtime import complete_word
from lm_runtime.generation.words import split_typed
from lm_runtime.models.protocol import BundleModel
from lm_runtime.scoring.score import id_log_probabilities
from lm_runtime.softmax import log_softmax

LARGEST_MISSED = 0.02
"""The share of a word's probability that spellings may have which the search does not reach."""


@pytest.fixture(scope="module")
def model(spelled_bundle: Path) -> BundleModel:
    return lm_runtime.load(spelled_bundle)


def token_bytes(model: BundleModel) -> list[bytes]:
    """What each token spells, SentencePiece's sign for a space as a space."""
    spelled = model.tokenizer.token_bytes
    if model.tokenizer.kind != "other":
        return spelled
    return [part.replace("\u2581".encode(), b" ") for part in spelled]


def spellings(model: BundleModel, text: bytes) -> list[list[int]]:
    """Every sequence of tokens that spells ``text``."""
    tokens = {piece: token for token, piece in enumerate(token_bytes(model))}
    if not text:
        return [[]]
    heads = [text[:length] for length in range(1, len(text) + 1) if text[:length] in tokens]
    return [[tokens[head], *rest] for head in heads for rest in spellings(model, text[len(head) :])]


def probability(model: BundleModel, context: str, word: str, before: str = " ") -> float:
    """By every spelling: the word comes, and then a token that does not make it longer."""
    first = model.tokenizer.encode(context)
    ends = [
        not (piece.decode("utf-8", "ignore")[:1].isalnum() or piece[:1] in (b"_", b"'"))
        for piece in token_bytes(model)
    ]
    total = 0.0
    for ids in spellings(model, f"{before}{word}".encode()):
        text = np.array([*first, *ids])
        ((_, values),) = id_log_probabilities(model, [text])
        session = lm_runtime.Session.start(model, context)
        state = model.advance(np.array([[session.token, *ids[:-1]]]), session.state)
        logits, _ = model.step(np.array([[ids[-1]]]), state)
        end = np.exp(log_softmax(logits[0, 0]))[ends].sum()
        total += math.exp(values[len(first) :].sum(dtype=np.float64)) * float(end)
    return total


def test_probabilities_are_summed_over_spellings(model: BundleModel) -> None:
    for word, found in complete_word(model, "the ke", k=3):
        exact = probability(model, "the", word)
        assert (1 - LARGEST_MISSED) * exact < found < exact * (1 + 1e-5), word


def test_no_word_of_the_corpus_that_is_more_probable_is_missed(model: BundleModel) -> None:
    words = {word.strip(".,") for word in (TINY / "train.txt").read_text().split()}
    for typed in ("k", "l", "th", "cl"):
        found = complete_word(model, f"the {typed}")
        values = [value for _, value in found]
        assert values == sorted(values, reverse=True)
        assert all(word.startswith(typed) for word, _ in found)
        for word in words:
            if word.startswith(typed) and word.isalnum() and word not in dict(found):
                assert probability(model, "the", word) <= values[-1], word


def test_no_letter_suggests_whole_words(model: BundleModel) -> None:
    found = complete_word(model, "the ", k=8)
    assert len(found) == 8
    assert all(word.isalnum() for word, _ in found)


def test_a_session_is_completed_as_its_text_is_and_stays_as_it_was(model: BundleModel) -> None:
    session = lm_runtime.Session.start(model, "the", seed=3)
    before = session.copy()
    assert complete_word(model, session, "ke") == complete_word(model, "the ke")
    after = [list(lm_runtime.generate(model, one)) for one in (before, session)]
    assert after[0] == after[1]


def test_a_line_s_first_word_is_completed_as_the_tokenizer_begins_lines(model: BundleModel) -> None:
    """SentencePiece puts a space there, the others none."""
    found = complete_word(model, "the lamp\nTh")
    before = " " if token_bytes(model)[model.tokenizer.encode("a")[0]][:1] == b" " else ""
    exact = probability(model, "the lamp\n", found[0][0], before)
    assert (1 - LARGEST_MISSED) * exact < found[0][1] < exact * (1 + 1e-5)
    assert found == complete_word(model, lm_runtime.Session.start(model, "the lamp\n"), "Th")


def test_a_word_model_gives_the_probabilities_of_its_tokens() -> None:
    model = lm_runtime.load(FIXTURE)
    tokens = dict(lm_runtime.suggest(model, "the", k=model.config.vocab_size - 1))
    for word, value in complete_word(model, "the k", k=3):
        assert word.startswith("k")
        assert value == pytest.approx(tokens[f" {word}"], rel=1e-6)


def test_what_no_token_spells_has_no_completion() -> None:
    assert complete_word(lm_runtime.load(FIXTURE), "the zzz") == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("I do not kn", ("I do not", " kn")),
        ("kn", ("", "kn")),
        ("(kn", ("(", "kn")),
        ("I do not ", ("I do not", " ")),
        ("one\nTw", ("one\n", "Tw")),
        ("don't", ("", "don't")),
        ("मैं हिन्दी", ("मैं", " हिन्दी")),
        ("", ("", "")),
    ],
)
def test_a_text_is_cut_before_the_word_that_is_typed(text: str, parts: tuple[str, str]) -> None:
    assert split_typed(text) == parts


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_checked(k: int) -> None:
    with pytest.raises(ValueError, match="k must be"):
        complete_word(lm_runtime.load(FIXTURE), "the", k=k)
