"""Figures that would mislead are not given, and it is said why, wherever they would stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, TINY, Invoke
from lm_runtime.commands.score import main as lm_score
from lm_runtime.scoring.score import Score, TextCount
from lm_trainer.command import main as lm_train
from lm_trainer.plan import Action, Call, plan

WHY = "not comparable: 19.7 % unknown"
"""Of the validation text of data/tiny, with 180 words."""


def test_bits_a_byte_are_not_given_where_words_are_unknown(
    invoke: Invoke, small_run: Path, small_bundle: Path
) -> None:
    assert json.loads((small_run / "summary.json").read_text())["valid"]["bits_per_byte"] is None
    assert f"<td>{WHY}</td>" in (small_run / "report.html").read_text()
    assert f"bits a byte {WHY} (132 tokens" in (small_bundle / "README.md").read_text()
    assert f"; bits a byte {WHY}; " in invoke(lm_score, small_bundle, TINY / "valid.txt")[1]
    invoke(lm_score, small_bundle, TINY / "valid.txt", "--html", "page.html")
    assert WHY in Path("page.html").read_text()
    scored = json.loads(invoke(lm_score, small_bundle, TINY / "valid.txt", "--json")[1])
    assert (scored["bits_per_byte"], scored["unknown"]) == (None, 26)


def test_lm_train_says_that_many_words_are_unknown(invoke: Invoke) -> None:
    code, _, err = invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", "run")
    assert code == 0
    assert "warning: 19.7 % of the validation text's tokens are unknown" in err
    assert "; --vocab-size is 180" in err
    assert f"valid perplexity {err.split('valid perplexity ')[1].split()[0]} a token" in err
    assert f"bits a byte {WHY})" in err


def test_a_character_that_is_unknown_once_in_a_long_text_leaves_the_figure() -> None:
    assert Score(-1000.0, 1000, 1, 1000, 200).bits_per_byte == pytest.approx(1.442695)
    assert Score(-1000.0, 1000, 2, 1000, 200).bits_per_byte is None


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"tokenizer": "word"}, 10_000),
        ({"tokenizer": "char"}, 1000),
        ({}, 2048),
        ({"tokenizer": "word", "vocab_size": 500}, 500),
        ({"preset": "quick", "tokenizer": "bpe"}, 2048),
        ({"preset": "quick", "tokenizer": "word"}, 10_000),
    ],
)
def test_each_tokenizer_has_a_vocabulary_of_its_own_size(given: dict[str, Any], size: int) -> None:
    recipe = plan(Call(given), has_run=False).recipe
    assert (recipe.tokenizer.vocab_size, recipe.model["vocab_size"]) == (size, size)


def test_a_run_of_an_earlier_default_size_is_resumed_by_its_own_call() -> None:
    given = {"preset": "small", "tokenizer": "word"}
    what = plan(Call(given, resume=True), has_run=True)
    assert what.action is Action.RESUME
    assert "vocab_size" not in what.held


PROSE = [
    "He said: “I don't know, it's well-known.”\nA second line of it, isn't it?",
    "Я помню чудное мгновенье: передо мной явилась ты",
    "यह एक हिन्दी वाक्य है। भारत में बहुत सी भाषाएँ",
    "나는 학교에 갑니다. 안녕하세요 여러분",
    "mr. vinken is chairman of elsevier n.v. the dutch group <unk> N",
]
OTHERS = [
    "Anna\nBob\nMüller\nJean-Luc",
    "子曰：「學而時習之，不亦說乎？」\n床前明月光\n疑是地上霜",
    "ภาษาไทย เป็นภาษา ที่มี ระดับเสียง",
    "ACGTTGCAACGTTGCAACGTTGCAACGTTGCA\nACGTTGCAACGTTGCAACGTTGCA",
    "def main(x: int) -> None:\n    if x == 3 and y[0] > 2:\n        print(x + 1, file=sys.stderr)",
]


@pytest.mark.parametrize(("text", "has_words"), [(text, text in PROSE) for text in [*PROSE, *OTHERS]])
def test_a_perplexity_a_word_is_given_for_texts_that_are_made_of_words(text: str, has_words: bool) -> None:
    count = TextCount()
    for _ in count.count((line, True) for line in text.split("\n")):
        pass
    score = count.score(-2.0 * count.words, 100, 0)
    assert (score.perplexity_per_word is not None) == has_words
    total = score + score
    assert total.perplexity_per_word == score.perplexity_per_word
