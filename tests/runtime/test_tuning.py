"""Weights found by errors: edit distances are exact, and no other value along a weight has fewer errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.errors import edit_distances, units_of
from lm_runtime.scoring.nbest.hypothesis import Hypothesis
from lm_runtime.scoring.rescoring import Scored, rank
from lm_runtime.scoring.score import Score
from lm_runtime.scoring.tuning import Development, tune
from lm_runtime.scoring.weights import NAMES, Weights
from lm_runtime.scoring.weights_file import load_weights, save_weights

SHORT = st.lists(st.sampled_from("abc"), max_size=5)
SMALL = st.integers(-6, 6)
REFERENCES = {"0": "a b c", "1": "b"}


def distance(one: list[str], other: list[str]) -> int:
    """By the definition."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        distance(one[1:], other[1:]) + (one[0] != other[0]),
        distance(one[1:], other) + 1,
        distance(one, other[1:]) + 1,
    )


@given(SHORT, st.lists(SHORT, max_size=3))
@settings(deadline=None, max_examples=60)
def test_edit_distances_are_those_of_the_definition(reference: list[str], texts: list[list[str]]) -> None:
    assert edit_distances(reference, texts).tolist() == [distance(reference, text) for text in texts]


def test_known_edit_distances() -> None:
    assert edit_distances("kitten", ["sitting", "kitten", "", "x"]).tolist() == [3, 0, 6, 6]
    assert edit_distances("", ["ab", ""]).tolist() == [2, 0]
    assert edit_distances(units_of(" a  b ", "wer"), [units_of("a b", "wer")]).tolist() == [0]
    assert "".join(units_of(" a  b ", "cer")) == "a b"


def hypothesis(id_: str, score: float, text: str, lm: float, second: float, unknown: int = 0) -> Scored:
    words = len(text.split())
    return Scored(
        Hypothesis(id_, score, text),
        Score(lm, words + 1, unknown, len(text) + 1, words + 1),
        Score(second, words + 1, 0, len(text) + 1, words + 1),
        words,
    )


SCORED = st.lists(
    st.builds(
        hypothesis,
        st.sampled_from(["0", "1", "none"]),
        SMALL.map(float),
        SHORT.map(" ".join),
        SMALL.map(float),
        SMALL.map(float),
        st.integers(0, 2),
    ),
    min_size=3,
    max_size=12,
).filter(lambda scored: any(one.hypothesis.id in REFERENCES for one in scored))


@given(SCORED, st.sampled_from(NAMES))
@settings(deadline=None, max_examples=60)
def test_no_value_of_a_weight_has_fewer_errors_than_the_one_found(scored: list[Scored], name: str) -> None:
    lists = Development(scored, REFERENCES, "wer")
    found = lists.rates(tune(lists, Weights(), [name]))
    low = 0 if name in ("lm_weight", "unk_penalty") else -20
    for value in np.arange(low, 20, 0.171):
        assert found.rescored <= lists.rates(dataclasses.replace(Weights(), **{name: float(value)})).rescored
    assert found.oracle <= found.rescored <= found.first_pass


@given(SCORED, SMALL, SMALL)
@settings(deadline=None, max_examples=40)
def test_errors_are_those_of_the_texts_that_come_first(scored: list[Scored], one: int, two: int) -> None:
    weights = Weights(lm_weight=abs(one), word_bonus=two, second_weight=two / 4)
    first: dict[str, str] = {}
    for row in rank(scored, weights):
        first.setdefault(row.hypothesis.id, row.hypothesis.text)
    errors = sum(
        distance(reference.split(), first[id_].split())
        for id_, reference in REFERENCES.items()
        if id_ in first
    )
    assert Development(scored, REFERENCES, "wer").rates(weights).rescored == errors


def test_two_weights_are_found_together() -> None:
    # The model alone prefers short texts, and the word bonus alone long ones.
    scored = [
        hypothesis("0", 0, "a", -1, 0),
        hypothesis("0", 0, "a b c", -5, 0),
        hypothesis("0", 1, "x x x x", -12, 0),
        hypothesis("1", 0, "b", -2, 0),
        hypothesis("1", 1, "x x", -9, 0),
        hypothesis("1", 0.5, "", -1, 0),
    ]
    lists = Development(scored, REFERENCES, "wer")
    both = tune(lists, Weights(), ["lm_weight", "word_bonus"])
    assert lists.rates(both).rescored == 0
    assert both.lm_weight > 0
    assert both.word_bonus > 0
    for name in ("lm_weight", "word_bonus"):
        assert lists.rates(tune(lists, Weights(), [name])).rescored > 0
    assert tune(lists, Weights(lm_weight=3.0), ["word_bonus"]).lm_weight == 3.0
    assert tune(lists, Weights(), ["lm_weight", "word_bonus"]) == both


def test_a_value_in_the_middle_of_its_range_is_taken() -> None:
    # "b" is best from 1 on; above 3 another one is.
    scored = [hypothesis("1", 0, "x", 0, 0), hypothesis("1", -1, "b", 1, 0), hypothesis("1", -4, "x x", 2, 0)]
    assert tune(Development(scored, REFERENCES, "wer"), Weights(), ["lm_weight"]).lm_weight == 2


def test_of_equally_good_ranges_the_widest_is_taken() -> None:
    # "b" is best up to 1 and from 2 to 6.
    scored = [
        hypothesis("1", 0, "b", 0, 0),
        hypothesis("1", -1, "x", 1, 0),
        hypothesis("1", -3, "b", 2, 0),
        hypothesis("1", -9, "x x", 3, 0),
    ]
    lists = Development(scored, REFERENCES, "wer")
    assert tune(lists, Weights(lm_weight=1.5), ["lm_weight"]).lm_weight == 4


def test_a_second_model_may_have_a_negative_weight() -> None:
    # What the first pass has learnt already is in the second model, and counts twice otherwise.
    scored = [
        hypothesis("0", 0, "a b c", -6, -9),
        hypothesis("0", 0.5, "x", -4, -3),
        hypothesis("1", 0, "b", -2, -4),
        hypothesis("1", 0, "x", -2, -1),
    ]
    lists = Development(scored, REFERENCES, "wer")
    found = tune(lists, Weights(), ["lm_weight", "second_weight"])
    assert found.second_weight < 0
    assert lists.rates(found).rescored == 0


def test_lists_without_references_are_no_development_lists() -> None:
    scored = [hypothesis("u7", 0, "a", 0, 0)]
    with pytest.raises(ValueError, match="none of the lists has a reference; the first list's id is 'u7'"):
        Development(scored, REFERENCES, "wer")
    with pytest.raises(ValueError, match="the references have no words"):
        Development(scored, {"u7": " "}, "wer")


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    weights = Weights(lm_weight=1 / 3, second_weight=-0.25, word_bonus=1e-9, unk_penalty=7)
    save_weights(tmp_path / "w.json", weights, ["a", "b"], {"metric": "wer"})
    assert load_weights(tmp_path / "w.json") == (weights, ["a", "b"])
    (tmp_path / "own.json").write_text('{"lm_weight": 2}')
    assert load_weights(tmp_path / "own.json") == (Weights(lm_weight=2), [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON: Expecting value, at character 1"),
        ("[]", "not a JSON object, but []"),
        ("{}", "it has none of lm_weight, "),
        ('{"lm_wait": 1}', "unknown key 'lm_wait'"),
        ('{"lm_weight": "1"}', "lm_weight must be a number, got '1'"),
        ('{"lm_weight": 1e9}', "lm_weight must be from -1000000 to 1000000, got 1000000000.0"),
        ('{"lm_weight": 1, "format": "x"}', "its format is not steplm-weights"),
        ('{"lm_weight": 1, "models": 1}', "models is no list"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_another_file_is_no_file_of_weights(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UnusableFileError) as error:
        load_weights(path)
    assert str(error.value).startswith(f"{path}: no file of weights ({message}")
    assert len(str(error.value).splitlines()) == 1


def test_a_file_of_weights_says_what_it_was_found_on(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.json", Weights(), [], {"metric": "cer", "lists": 3})
    assert json.loads((tmp_path / "w.json").read_text())["tuned"] == {"metric": "cer", "lists": 3}
