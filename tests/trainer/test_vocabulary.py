"""A vocabulary takes time in proportion to the text, whatever the text is."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TINY
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora import vocabulary
from lm_trainer.corpora.vocabulary import make_tokenizer

_LETTERS = 200_000
_CPU_SECONDS = 8.0
"""About ten times what these letters take on a slow core; in one run they would take minutes."""


def test_letters_that_no_white_space_parts_take_no_longer_than_others() -> None:
    letters = "".join(random.Random(0).choices("acgt", k=_LETTERS))
    begun = time.process_time()
    tokenizer = make_tokenizer(TokenizerConfig("bpe", 2048), [letters])
    assert time.process_time() - begun < _CPU_SECONDS
    assert tokenizer.vocab_size == 2048
    assert tokenizer.decode(tokenizer.encode(letters[:5000])) == letters[:5000]


def test_a_text_of_words_is_learned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TINY / "train.txt").read_text().replace("\n", " ")
    config = TokenizerConfig("bpe", 600)
    found = make_tokenizer(config, [text])
    monkeypatch.setattr(vocabulary, "_without_long_runs", iter)
    assert make_tokenizer(config, [text]).json_text == found.json_text


@given(words=st.lists(st.tuples(st.integers(1, 4000), st.sampled_from(" \t\u3000")), max_size=6))
def test_only_runs_without_white_space_are_cut(words: list[tuple[int, str]]) -> None:
    text = "".join("x" * length + space for length, space in words)
    parts = list(vocabulary._without_long_runs([text]))
    assert "".join(parts) == text
    longest = vocabulary._LONGEST_RUN
    assert max((len(run) for part in parts for run in re.findall(r"\S+", part)), default=0) <= longest
    assert all(len(part.split()[-1]) == longest for part in parts[:-1])
