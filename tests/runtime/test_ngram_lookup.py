"""The look-up of a whole text at once gives what single steps give, wherever the text is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_runtime.models import ngram_lookup
from lm_runtime.models.ngram import NgramModel
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.state import initial_state
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.ngram.estimation import estimate

VOCABULARY = 6
EOS = 0
TOLERANCE = 2e-6
"""Steps add weights of back-off in float32, the look-up in float64."""

TOKENIZER: Tokenizer = make_tokenizer(TokenizerConfig("word", VOCABULARY), ["a b c d"])

texts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=80)


def model_of(text: list[int], order: int) -> NgramModel:
    return NgramModel(estimate(np.array(text), VOCABULARY, EOS, order), TOKENIZER)


@given(texts, texts, st.integers(1, 5), st.integers(1, 20))
def test_a_text_has_the_probabilities_of_its_steps(
    seen: list[int], text: list[int], order: int, part: int
) -> None:
    model = model_of(seen, order)
    token = np.array([[EOS, *text[:-1]]])
    logits, _ = model.step(token, initial_state(model, 1))
    expected = logits[0, np.arange(len(text)), text]
    found = log_probabilities(model.tables, np.array(text))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_lookup, "_PART", part)
        np.testing.assert_array_equal(log_probabilities(model.tables, np.array(text)), found)


@given(texts, texts, st.integers(1, 5), st.data())
def test_a_text_can_be_scored_in_pieces(
    seen: list[int], text: list[int], order: int, data: st.DataObject
) -> None:
    model = model_of(seen, order)
    cut = data.draw(st.integers(0, len(text)))
    ids = np.array([[EOS, *text]])
    whole, after = model.score(ids, initial_state(model, 1))
    first, state = model.score(ids[:, : cut + 1], initial_state(model, 1))
    second, state = model.score(ids[:, cut:], state)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    np.testing.assert_array_equal(state[0], after[0])


@given(texts, texts, texts, st.integers(1, 5))
def test_nothing_before_a_line_s_end_matters_after_it(
    seen: list[int], text: list[int], other: list[int], order: int
) -> None:
    tables = model_of(seen, order).tables
    together = log_probabilities(tables, np.array([*other, EOS, *text]))
    np.testing.assert_array_equal(together[len(other) + 1 :], log_probabilities(tables, np.array(text)))


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_an_id_out_of_the_vocabulary_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to {VOCABULARY - 1}, got {wrong}"):
        log_probabilities(model_of([1, 2, 0], 3).tables, np.array([1, wrong, 2]))
