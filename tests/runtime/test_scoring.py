"""Many texts at once: each score is what it is alone, nothing is read twice, lists come back in order."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
import lm_runtime.softmax as softmax
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.bundle import StateTensor
from lm_runtime.commands.score import main as lm_score
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.protocol import State, StepModel, Stepper
from lm_runtime.scoring import rescoring
from lm_runtime.scoring import score as scoring
from lm_runtime.scoring.rescoring import Hypothesis, rescore
from lm_runtime.scoring.score import Score, score_file
from lm_runtime.scoring.texts import score_texts
from lm_runtime.settings import short
from lm_runtime.softmax import log_softmax_at
from lm_runtime.tokenizer import Tokenizer, count_words

FLOAT32_SUM = 1e-5
"""Natural-log units: what float32 leaves uncertain in a normalizer over 1,000 logits."""

Alone = Callable[[str], Score]
LISTS = ["u1 -4.2 the keeper of the sea", "u2 -1 the clock", "u1\t-4.0\tthe sea of the keeper ", "u2 -0.5"]


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


@pytest.fixture(scope="module")
def alone(model: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The score of a file that has a text and nothing else."""
    path = tmp_path_factory.mktemp("alone") / "text.txt"

    def score(text: str) -> Score:
        path.write_bytes(text.encode() or b"\n")
        return score_file(model, path)

    return score


class Counting:
    """A model that remembers the shapes of what it was given to read."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.calls: list[tuple[int, int]] = []

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    @property
    def states(self) -> Sequence[StateTensor]:
        return self._model.states

    @property
    def identity(self) -> str:
        return self._model.identity

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        self.calls.append((token.shape[0], token.shape[1]))
        return self._model.step(token, state)

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        return self._model.advance(token, state)

    def stepper(self, state: State) -> Stepper:
        return self._model.stepper(state)


def beginnings(model: StepModel, texts: Sequence[str]) -> set[tuple[int, ...]]:
    """All that is read before some token of some text."""
    found = set()
    for text in texts:
        ids = model.tokenizer.encode(text)
        found |= {tuple(ids[:end]) for end in range(len(ids) + 1)}
    return found


words = st.sampled_from(["the", "keeper", "sea", "xyzzy", "<eos>"])
short_texts = st.builds(
    lambda parts, end: "".join(word + space for word, space in parts) + end,
    st.lists(st.tuples(words, st.sampled_from([" ", "  ", "\n", "\r\n"])), max_size=6),
    st.sampled_from(["", "the", "漢字"]),
)
long = st.builds(lambda text, times: text * times, short_texts, st.integers(20, 400))


@settings(deadline=None)
@given(st.lists(short_texts | short_texts | long, max_size=12))
def test_each_score_is_to_the_bit_what_it_is_alone(model: OnnxModel, alone: Alone, texts: list[str]) -> None:
    assert list(score_texts(model, texts)) == [alone(text) for text in texts]


@given(st.lists(short_texts, min_size=1, max_size=12))
def test_every_beginning_is_read_once(model: OnnxModel, texts: list[str]) -> None:
    counting = Counting(model)
    list(score_texts(counting, texts))
    texts = [text.replace("\r\n", "\n").removesuffix("\n") for text in texts]
    assert sum(batch * time for batch, time in counting.calls) == len(beginnings(model, texts))


def test_hundreds_of_texts_are_read_in_few_calls_of_bounded_size(model: OnnxModel) -> None:
    vocabulary = [word for word in model.tokenizer.tokens if word.isalpha()]
    texts = [f"{one} {other}" for one, other in itertools.product(vocabulary[:20], repeat=2)]
    counting = Counting(model)
    list(score_texts(counting, texts))
    assert counting.calls[:2] == [(1, 1), (20, 1)]
    assert sum(batch for batch, _ in counting.calls[2:]) == 400
    assert len(counting.calls) <= 2 + math.ceil(400 / 128)


def test_texts_that_have_parted_are_read_many_tokens_at_a_time(model: OnnxModel) -> None:
    counting = Counting(model)
    list(score_texts(counting, ["the " * 1000, "sea " * 1000]))
    assert len(counting.calls) <= 1000 / 64 + 2
    assert max(batch * time for batch, time in counting.calls) <= 128


def test_scores_come_in_the_order_of_the_texts_across_chunks(model: OnnxModel, alone: Alone) -> None:
    kinds = {
        text: alone(text) for text in ["", "the", "the keeper", "sea\nthe sea", "keeper of the sea " * 9]
    }
    texts = list(itertools.islice(itertools.cycle(kinds), 2500))
    assert list(score_texts(model, texts)) == [kinds[text] for text in texts]


@pytest.mark.parametrize("text", ["the sea", "the sea " * 2000])
def test_texts_without_end_are_scored_as_they_come(model: OnnxModel, text: str) -> None:
    scores = score_texts(model, itertools.repeat(text))
    assert next(scores) == next(scores)


def test_no_texts_have_no_scores_and_an_empty_text_has_one_token(model: OnnxModel) -> None:
    assert list(score_texts(model, [])) == []
    (empty,) = score_texts(model, [""])
    assert (empty.tokens, empty.bytes, empty.words, empty.unknown) == (1, 1, 1, 0)
    logits, _ = model.step(np.array([[model.tokenizer.eos_id]]), lm_runtime.initial_state(model, 1))
    expected = log_softmax_at(logits[0], np.array([model.tokenizer.eos_id]))
    assert empty.log_probability == float(expected[0])


def test_a_lone_surrogate_is_refused(model: OnnxModel) -> None:
    with pytest.raises(UnicodeEncodeError):
        list(score_texts(model, ["the", "\ud800"]))


def test_int8_scores_hardly_depend_on_the_texts_beside_them(small_bundle: Path) -> None:
    model = lm_runtime.load(small_bundle, precision="int8", provider="cpu")
    texts = (TINY / "valid.txt").read_text(encoding="utf-8").splitlines()
    together = [score.log_probability for score in score_texts(model, texts)]
    singly = [next(score_texts(model, [text])).log_probability for text in texts]
    np.testing.assert_allclose(together, singly, rtol=0.01)  # a step of 127 is 0.8 %


def test_log_probabilities_do_not_depend_on_how_many_are_taken_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(1)
    logits = (generator.normal(size=(37, 1000)) * 5).astype(np.float32)
    targets = generator.integers(0, 1000, 37)
    found = log_softmax_at(logits, targets)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    assert np.abs(found - exact[np.arange(37), targets]).max() < FLOAT32_SUM
    for size in (1, 3000, 10_000):
        monkeypatch.setattr(softmax, "_CACHED_LOGITS", size)
        np.testing.assert_array_equal(log_softmax_at(logits, targets), found)


def test_hypotheses_come_best_first_by_the_combined_score(model: OnnxModel, alone: Alone) -> None:
    given = [
        Hypothesis("b", -3.0, "the sea"),
        Hypothesis("a", 0.0, "keeper keeper keeper"),
        Hypothesis("b", -1.0, "sea the the"),
        Hypothesis("a", 0.0, "the keeper of the sea"),
        Hypothesis("b", -3.0, "the sea"),
    ]
    for weight in (0.0, 0.5, 1.0, -2.0):
        rows = rescore(model, given, weight)
        assert [row.hypothesis.id for row in rows] == ["b", "b", "b", "a", "a"]
        for row in rows:
            assert row.lm == alone(row.hypothesis.text)
            assert row.combined == row.hypothesis.score + weight * row.lm.log_probability
        for one, other in itertools.pairwise(rows):
            assert one.hypothesis.id != other.hypothesis.id or one.combined >= other.combined
    ties = [row.hypothesis for row in rescore(model, given, 0.0) if row.combined == -3]
    assert [id(hypothesis) for hypothesis in ties] == [id(given[0]), id(given[4])]


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(model: OnnxModel, weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight must be from -1000000 to 1000000, got {weight}"):
        rescore(model, [], weight)


def test_lines_are_printed_with_their_scores_and_the_total_is_a_note(
    invoke: Invoke, model: OnnxModel, tmp_path: Path
) -> None:
    lines = ["the keeper", "", "漢字\tsea", "the keeper"]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    code, out, err = invoke(lm_score, FIXTURE, "lines.txt", "--lines")
    scores = list(score_texts(model, lines))
    assert code == 0
    assert out.split("\n")[:-1] == [
        f"{score.log_probability:.6f}\t{score.tokens}\t{score.perplexity:.4f}\t{line}"
        for line, score in zip(lines, scores, strict=True)
    ]
    assert err.count("\n") == 1
    assert f"log-probability {sum(score.log_probability for score in scores):.2f} over 10 tokens, 2 of" in err
    records = [
        json.loads(line)
        for line in invoke(lm_score, FIXTURE, "lines.txt", "--lines", "--json")[1].splitlines()
    ]
    assert [record["text"] for record in records] == lines
    assert [record["log_probability"] for record in records] == [score.log_probability for score in scores]


def test_n_best_lists_are_printed_in_their_new_order(
    invoke: Invoke, model: OnnxModel, tmp_path: Path
) -> None:
    (tmp_path / "lists.txt").write_text("\n".join(LISTS), encoding="utf-8")
    rows = rescore(model, rescoring.read_hypotheses("lists.txt"), 0.3)
    code, out, err = invoke(lm_score, FIXTURE, "lists.txt", "--nbest", "--lm-weight", 0.3)
    assert (code, err) == (0, "")
    assert out.split("\n")[:-1] == [
        f"{row.hypothesis.id}\t{row.combined:.6f}\t{row.lm.log_probability:.6f}\t{row.hypothesis.text}"
        for row in rows
    ]
    assert [line.split("\t")[0] for line in out.splitlines()] == ["u1", "u1", "u2", "u2"]
    assert {row.hypothesis.text for row in rows} == {
        "the keeper of the sea",
        "the sea of the keeper",
        "the clock",
        "",
    }
    records = invoke(lm_score, FIXTURE, "lists.txt", "--nbest", "--json", "--lm-weight", 0.3)[1].splitlines()
    assert [json.loads(line)["combined"] for line in records] == [row.combined for row in rows]
    parts = {"id", "combined", "log_probability", "score", "tokens", "unknown", "words", "parts", "text"}
    assert json.loads(records[0]).keys() == parts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a -1 b\nonly\n", "f.txt: line 2: not an id, a score and a text: 'only'"),
        ("a -1 b\n\na -1 b\n", "f.txt: line 2: not an id, a score and a text: ''"),
        ("a b c\n", "f.txt: line 1: the score is no number: 'b'"),
        ("a nan c\n", "f.txt: line 1: the score is no number: 'nan'"),
        ("x" * 1000, f"f.txt: line 1: not an id, a score and a text: {short('x' * 1000)}"),
        ("", "f.txt: empty: there is nothing to score"),
        (None, "f.txt: no such file"),
    ],
)
def test_bad_n_best_lists(invoke: Invoke, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "f.txt").write_text(content, encoding="utf-8")
    code, out, err = invoke(lm_score, FIXTURE, "f.txt", "--nbest", "--lm-weight", 1)
    assert (code, out, err) == (1, "", f"lm-score: {message}\n")


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"a\0"])
def test_bad_lines(invoke: Invoke, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "f.txt").write_bytes(content)
    code, out, err = invoke(lm_score, FIXTURE, "f.txt", "--lines")
    assert (code, out) == (1, "")
    assert one_line(err).startswith("lm-score: f.txt: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lines", "--tokens"], "give --tokens or --lines, not both"),
        (["--nbest", "--tokens"], "give --tokens or --nbest, not both"),
        (["--nbest", "--lines"], "give --lines or --nbest, not both"),
        (["--lines", "--lm-weight", 1], "--lm-weight is for --nbest"),
        (["--nbest", "--lm-weight", "nan"], "weight must be from -1000000 to 1000000, got nan"),
        (["--nbest", "--lm-weight", "x"], "Invalid value for '--lm-weight': 'x' is not a valid float."),
    ],
)
def test_bad_options(invoke: Invoke, tmp_path: Path, options: list[object], message: str) -> None:
    (tmp_path / "lists.txt").write_text("\n".join(LISTS), encoding="utf-8")
    code, out, err = invoke(lm_score, FIXTURE, "lists.txt", *options)
    assert (code, out) == (2, "")
    assert message in one_line(err)


@pytest.mark.parametrize("separator", ["\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u3000", "\u200b", "\x0b"])
def test_a_word_is_what_the_tokenizer_takes_for_one(model: OnnxModel, alone: Alone, separator: str) -> None:
    text = f"the{separator}keeper of{separator}the sea"
    score = alone(text)
    assert score.words == score.tokens  # of a word vocabulary, with <eos>
    assert score.perplexity_per_word == score.perplexity
    assert next(score_texts(model, [text])) == score
    assert count_words(text) == len(model.tokenizer.encode(text))


@given(st.text())
def test_words_are_counted_as_the_tokenizer_cuts_them(model: OnnxModel, text: str) -> None:
    text = text.replace("\n", " ").replace("\r", " ")
    if not any(0xD800 <= ord(character) < 0xE000 for character in text):
        assert count_words(text) == len(model.tokenizer.encode(text))


def test_a_perplexity_a_word_is_left_out_where_a_text_has_no_words(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Score(-20_000.0, 10_000, 0, 30_000, 11)
    far_off = Score(-700.0, 1, 0, 1, 1)
    assert score.perplexity_per_word is None
    assert Score(-20_000.0, 10_000, 0, 30_000, 9_000).perplexity_per_word == pytest.approx(math.exp(20 / 9))
    for result, printed in (
        (score, "perplexity 7.3891 a token; "),
        (far_off, "perplexity 1.0142e+304 a token; "),
    ):
        monkeypatch.setattr(scoring, "score_fragments", lambda *_, result=result, **__: result)
        assert invoke(lm_score, FIXTURE, TINY / "valid.txt")[1].startswith(printed)
        assert (
            json.loads(invoke(lm_score, FIXTURE, TINY / "valid.txt", "--json")[1])["perplexity_per_word"]
            is None
        )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a\u00a0b -1 the sea", Hypothesis("a\u00a0b", -1.0, "the sea")),
        ("a\u3000b\t-1e-3\tthe\u00a0sea", Hypothesis("a\u3000b", -0.001, "the\u00a0sea")),
        (" a  .5 \t the  sea\u00a0 ", Hypothesis("a", 0.5, "the  sea\u00a0")),
        ("a +3. ", Hypothesis("a", 3.0, "")),
        ("a 1_000 b", "the score is no number: '1_000'"),
        ("a ١٢ b", "the score is no number: '١٢'"),
        ("a 0x10 b", "the score is no number: '0x10'"),
        ("a 1e999 b", "the score is no number: '1e999'"),
        ("a -inf b", "the score is no number: '-inf'"),
        ("a\u00a0-1\u00a0b", "not an id, a score and a text: 'a\\xa0-1\\xa0b'"),
        ("a \u00a0-1 b", "the score is no number: '\\xa0-1'"),
    ],
)
def test_lines_of_n_best_lists_are_read_strictly(
    tmp_path: Path, line: str, expected: Hypothesis | str
) -> None:
    path = tmp_path / "lists.txt"
    path.write_text(f"first -1 x\n{line}\n", encoding="utf-8")
    if isinstance(expected, str):
        with pytest.raises(lm_runtime.UnusableFileError) as error:
            list(rescoring.read_hypotheses(path))
        assert str(error.value) == f"{path}: line 2: {expected}"
    else:
        assert list(rescoring.read_hypotheses(path))[1] == expected
