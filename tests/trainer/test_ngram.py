"""The n-gram model: its numbers are those of a plain implementation; it steps like any model."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
from conftest import FIXTURE, TINY
from lm_runtime.files import UnusableFileError
from lm_runtime.generation.session import Session
from lm_runtime.models.ngram import NgramModel
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.models.state import initial_state, join_states, read
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import score_file
from lm_runtime.text_files import read_fragments
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig, TokenizerConfig
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.ngram import estimation as ngram
from lm_trainer.ngram.estimation import FALLBACK_DISCOUNTS, discounts_of, estimate
from small_runs import skewed

FLOAT32 = 1e-5
"""Natural-log units: float32's rounding of logarithms down to -20, added over the orders."""

EOS = 0
ORDERS = [1, 2, 3, 4, 5]
orders = st.integers(1, 5)
texts = st.lists(st.integers(0, 4), min_size=1, max_size=60)  # the token 5 is never seen
VOCABULARY = 6


def ids_of(tokens: Sequence[int]) -> NDArray[np.uint16]:
    return np.array(tokens, dtype=np.uint16)


class Plain:
    """Interpolated modified Kneser-Ney in dictionaries, word for word as Chen and Goodman (1998) define it.

    The beginning of a line is a word of its own, "^", that is never predicted.
    """

    def __init__(self, tokens: Sequence[int], vocab_size: int, order: int, prune: Sequence[int] = ()) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.prune = [0, *prune, *[prune[-1] if prune else 0] * order]
        seen: list[Counter[tuple[Any, ...]]] = [Counter() for _ in range(order + 1)]
        line: list[Any] = ["^"]
        for token in tokens:
            line.append(token)
            for length in range(1, min(order, len(line)) + 1):
                seen[length][tuple(line[-length:])] += 1
            if token == EOS:
                line = ["^"]
        self.seen = seen
        self.counts: list[dict[tuple[Any, ...], int]] = [{} for _ in range(order + 1)]
        for length in range(1, order + 1):
            if length < order:
                before = Counter(longer[1:] for longer in seen[length + 1])
            for words, count in seen[length].items():
                whole = length == order or words[0] == "^"
                self.counts[length][words] = count if whole else before[words]
        self.discounts = [self._discounts(list(counts.values())) for counts in self.counts]
        self.after: dict[tuple[Any, ...], list[tuple[Any, int]]] = defaultdict(list)
        for counts in self.counts:
            for words, count in counts.items():
                self.after[words[:-1]].append((words[-1], count))

    @staticmethod
    def _discounts(counts: list[int]) -> list[float]:
        n = [counts.count(number) for number in range(5)]
        if 0 in n[1:]:
            return [0, *FALLBACK_DISCOUNTS]
        y = n[1] / (n[1] + 2 * n[2])
        found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        usable = 0 < found[0] < 1 and 0 < found[1] < 2 and 0 < found[2] < 3
        return [0, *(found if usable else FALLBACK_DISCOUNTS)]

    def probability(self, context: tuple[Any, ...], token: int) -> float:
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        after = self.after[context]
        if not after:
            return lower
        discounts = self.discounts[len(context) + 1]
        total = sum(count for _, count in after)
        count, left = 0, 0.0
        for word, each in after:
            kept = self.seen[len(context) + 1][*context, word] > self.prune[len(context) + 1]
            left += (discounts[min(each, 3)] if kept else each) / total
            if kept and word == token:
                count = each
        return (count - discounts[min(count, 3)]) / total + left * lower

    def distribution(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """After a text that follows a line's end."""
        words: list[Any] = ["^"]
        for token in tokens:
            words = ["^"] if token == EOS else [*words, token]
        context = tuple(words[max(0, len(words) - self.order + 1) :])
        return np.array([self.probability(context, token) for token in range(self.vocab_size)])


def vocabulary_of(size: int) -> Tokenizer:
    """A tokenizer of ``size`` tokens: <eos>, <unk>, and words."""
    words = [[f"w{number}"] for number in range(size - 2)]
    return make_tokenizer(TokenizerConfig("word", size), [" ".join(word) for word in words])


def model_of(tokens: Sequence[int], order: int, vocab_size: int = VOCABULARY) -> NgramModel:
    return NgramModel(estimate(ids_of(tokens), vocab_size, EOS, order), vocabulary_of(vocab_size))


@given(texts, orders, st.lists(st.integers(0, 2), max_size=4))
def test_a_pruned_model_is_the_definition_without_what_is_left_out(
    tokens: list[int], order: int, numbers: list[int]
) -> None:
    prune = [0, *sorted(numbers)][:order]
    plain = Plain(tokens, VOCABULARY, order, prune)
    tables = estimate(ids_of(tokens), VOCABULARY, EOS, order, prune)
    model = NgramModel(tables, vocabulary_of(VOCABULARY))
    NgramTables.from_bytes(tables.to_bytes())  # what a reader checks holds
    for end in range(0, len(tokens), 3):
        found = np.exp(logits_after(model, tokens[:end]))
        np.testing.assert_allclose(found, plain.distribution(tokens[:end]), rtol=0, atol=FLOAT32)
        assert found.sum() == pytest.approx(1, abs=FLOAT32)
    for length, count in enumerate(tables.counts[1:], 2):
        above = sum(number > plain.prune[length] for number in plain.seen[length].values())
        assert count == above


def logits_after(model: NgramModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    logits, _ = model.step(np.array([[EOS, *tokens]]), initial_state(model, 1))
    return logits[0, -1]


@pytest.fixture(scope="module")
def tiny() -> NgramModel:
    """Of data/tiny, with every word of it and some that never occur: <unk> is one of them."""
    tokenizer = make_tokenizer(
        TokenizerConfig("word", 1000),
        [*(text for text, _ in read_fragments(TINY / "train.txt")), "never seen"],
    )
    (ids,) = tokenizer.encode_fragments(read_fragments(TINY / "train.txt"))
    return NgramModel(estimate(ids.astype(np.uint16), tokenizer.vocab_size, tokenizer.eos_id), tokenizer)


@given(texts, orders, texts)
@settings(deadline=None)
def test_the_probabilities_of_every_context_are_above_0_and_sum_to_1(
    text: list[int], order: int, context: list[int]
) -> None:
    logits, _ = model_of(text, order).step(np.array([context]), (np.zeros((1, order - 1), dtype=np.int64),))
    assert np.isfinite(logits).all()
    sums = np.exp(logits.astype(np.float64)).sum(axis=-1)
    assert np.abs(sums - 1).max() < FLOAT32, np.abs(sums - 1).max()


@given(texts, orders, texts)
@settings(deadline=None)
def test_probabilities_are_those_of_a_plain_implementation(
    text: list[int], order: int, context: list[int]
) -> None:
    expected = Plain(text, VOCABULARY, order).distribution(context)
    difference = np.abs(logits_after(model_of(text, order), context) - np.log(expected)).max()
    assert difference < FLOAT32, difference


@pytest.mark.parametrize("order", ORDERS)
def test_so_they_are_where_the_discounts_come_from_the_counts(order: int) -> None:
    text = skewed(4000 if order > 1 else 1000)
    plain, model = Plain(text, 300, order), model_of(text, order, 300)
    assert all(tuple(discounts[1:]) != FALLBACK_DISCOUNTS for discounts in plain.discounts[1:])
    for end in range(0, 4000, 397):
        context = text[:end]
        difference = np.abs(logits_after(model, context) - np.log(plain.distribution(context))).max()
        assert difference < FLOAT32, difference


@pytest.mark.parametrize("order", ORDERS)
def test_the_tables_do_not_depend_on_how_much_is_worked_on_at_a_time(
    monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    ids = ids_of(skewed(2000))
    whole = estimate(ids, 300, EOS, order)
    for size in (7, 400):
        monkeypatch.setattr(ngram, "_PART", size)
        assert estimate(ids, 300, EOS, order).sha256 == whole.sha256


def test_discounts_are_chen_and_goodman_s() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 10, 5, 2, 8]).astype(np.uint32)
    y = 40 / 60
    np.testing.assert_allclose(discounts_of(counts), [1 - 2 * y / 4, 2 - 3 * y / 2, 3 - 4 * y * 2 / 5])


@pytest.mark.parametrize("counts", [[], [1], [1, 2, 3], [5, 5, 9], [1] * 40 + [2] * 2 + [3] * 30 + [4]])
def test_where_the_counts_tell_no_discounts_fixed_ones_are_taken(counts: list[int]) -> None:
    assert discounts_of(np.array(counts, dtype=np.uint32)) == FALLBACK_DISCOUNTS


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("text", [[1], [EOS], [EOS] * 50, [1, EOS] * 50, [1] * 50, [*range(6)] * 2])
def test_degenerate_texts_give_models_that_can_be_written_and_read(
    tmp_path: Path, text: list[int], order: int
) -> None:
    model = model_of(text, order)
    expected = Plain(text, VOCABULARY, order).distribution(text)
    assert np.abs(logits_after(model, text) - np.log(expected)).max() < FLOAT32
    model.tables.write(tmp_path / "model.ngram")
    assert NgramTables.read(tmp_path / "model.ngram").sha256 == model.tables.sha256


@pytest.mark.parametrize(
    ("text", "vocab_size", "eos_id", "order", "message"),
    [
        ([1], 6, 0, 0, "order must be from 1 to 32, got 0"),
        ([1], 6, 0, 33, "order must be from 1 to 32, got 33"),
        ([1], 1 << 25, 0, 5, "vocab_size must be from 1 to 16777216, got 33554432"),
        ([], 6, 0, 5, "a text must have from 1 to 4294967294 tokens, got 0"),
        ([1, 6], 6, 0, 5, "a token must be from 0 to 5, got 6"),
        ([1, -1], 6, 0, 5, "a token must be from 0 to 5, got -1"),
        ([1], 6, 6, 5, "a token must be from 0 to 5, got 6"),
    ],
)
def test_what_cannot_be_estimated_is_refused(
    text: list[int], vocab_size: int, eos_id: int, order: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(np.array(text, dtype=np.int64), vocab_size, eos_id, order)


@given(
    orders,
    st.lists(st.lists(st.integers(0, 5), min_size=12, max_size=12), min_size=1, max_size=4),
    st.lists(st.integers(0, 12), max_size=4),
)
@settings(deadline=None)
def test_batches_cuts_and_single_steps_are_exact(order: int, rows: list[list[int]], cuts: list[int]) -> None:
    model = model_of([token % 6 for token in skewed(300)], order)
    token = np.array(rows)
    whole, end = model.step(token, initial_state(model, len(rows)))
    state = initial_state(model, len(rows))
    parts = []
    bounds = [0, *sorted(cuts), 12]
    for start, stop in itertools.pairwise(bounds):
        logits, state = model.step(token[:, start:stop], state)
        parts.append(logits)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(state[0], end[0])
    stepper = model.stepper(initial_state(model, len(rows)))
    for time in range(12):
        np.testing.assert_array_equal(stepper.step(token[:, time].tolist()), whole[:, time])
    np.testing.assert_array_equal(stepper.state()[0], end[0])
    stepper.undo()
    np.testing.assert_array_equal(
        stepper.state()[0], model.step(token[:, :11], initial_state(model, len(rows)))[1][0]
    )
    np.testing.assert_array_equal(stepper.step(token[:, 11].tolist()), whole[:, 11])
    np.testing.assert_array_equal(stepper.state()[0], end[0])
    alone = [model.step(token[row : row + 1], initial_state(model, 1)) for row in range(len(rows))]
    np.testing.assert_array_equal(np.concatenate([logits for logits, _ in alone]), whole)
    np.testing.assert_array_equal(join_states(model, [state for _, state in alone])[0], end[0])


def test_the_state_is_the_last_ids_and_a_batch_of_int64(tiny: NgramModel) -> None:
    (tensor,) = tiny.states
    assert (tensor.name, tensor.output, tensor.dtype) == ("context", "context_out", "int64")
    assert (tensor.shape, tensor.batch_axis) == ((None, 4), 0)
    (context,) = read(tiny, [0, 7], initial_state(tiny, 1))
    assert (context.dtype, context.tolist()) == (np.int64, [[0, 0, 1, 8]])


def test_nothing_before_a_line_s_end_is_known_after_it(tiny: NgramModel) -> None:
    line = tiny.tokenizer.encode("the keeper of\n")
    np.testing.assert_array_equal(logits_after(tiny, line), logits_after(tiny, []))


@pytest.mark.parametrize("token", [-1, 10_000])
def test_an_id_out_of_the_vocabulary_is_refused(tiny: NgramModel, token: int) -> None:
    with pytest.raises(ValueError, match=f"a token must be from 0 to .*, got {token}"):
        tiny.step(np.array([[token]]), initial_state(tiny, 1))
    with pytest.raises(ValueError, match="a number of the context is not from 0 to"):
        tiny.stepper((np.array([[0, 0, 0, token + 1 or -3]]),))


def test_a_text_is_scored_by_the_rules_of_all_models(tiny: NgramModel) -> None:
    (ids,) = tiny.tokenizer.encode_fragments(read_fragments(TINY / "valid.txt"))
    score = score_file(tiny, TINY / "valid.txt")
    assert score.tokens == ids.size == 132
    found = log_probabilities(tiny.tables, ids)
    assert abs(score.log_probability - found.astype(np.float64).sum()) < FLOAT32 * ids.size
    dense, _ = tiny.step(np.array([[EOS, *ids[:-1]]]), initial_state(tiny, 1))
    difference = np.abs(dense[0, np.arange(ids.size), ids] - found).max()
    assert difference < FLOAT32, difference


@pytest.mark.parametrize("order", ORDERS)
def test_a_session_saved_and_loaded_goes_on_bit_for_bit(tiny: NgramModel, tmp_path: Path, order: int) -> None:
    (ids,) = tiny.tokenizer.encode_fragments(read_fragments(TINY / "train.txt"))
    model = NgramModel(estimate(ids, tiny.tokenizer.vocab_size, EOS, order), tiny.tokenizer)
    whole = Session.start(model, "the keeper", seed=2)
    text = "".join(lm_runtime.generate(model, whole, SamplingParams(max_tokens=7)))
    model.tables.write(tmp_path / "model.ngram")
    whole.save(tmp_path / "session.npz", model)
    again = NgramModel(NgramTables.read(tmp_path / "model.ngram"), tiny.tokenizer)
    session = Session.load(tmp_path / "session.npz", again)
    text += "".join(lm_runtime.generate(again, session, SamplingParams(max_tokens=23)))
    expected = lm_runtime.generate(model, "the keeper", SamplingParams(max_tokens=30), seed=2)
    assert text == "".join(expected)
    other = NgramModel(estimate(ids[1:], tiny.tables.vocab_size, EOS, order), tiny.tokenizer)
    with pytest.raises(UnusableFileError, match="saved with another model"):
        Session.load(tmp_path / "session.npz", other)


def test_what_runs_any_model_runs_this_one(tiny: NgramModel) -> None:
    params = SamplingParams(max_tokens=12)
    requests = [lm_runtime.Request(prompt, params, seed=3) for prompt in ("", "the", "Mara wrote")]
    together = list(lm_runtime.complete(tiny, requests))
    assert [done.text for done in together] == [
        next(iter(lm_runtime.complete(tiny, [one]))).text for one in requests
    ]
    (best, *_) = lm_runtime.beam_search(tiny, "the keeper", beams=4)
    assert best.text
    lines = ["the keeper of the clock", "the sea", ""]
    for line, score in zip(lines, lm_runtime.score_texts(tiny, lines), strict=True):
        found = log_probabilities(tiny.tables, np.array(tiny.tokenizer.encode(line + "\n")))
        assert abs(score.log_probability - found.sum()) < FLOAT32 * found.size


def test_the_tables_file_is_what_was_written_and_its_sha256_the_identity(
    tiny: NgramModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.ngram"
    tiny.tables.write(path)
    found = NgramTables.read(path)
    assert (found.order, found.vocab_size, found.eos_id) == (5, tiny.tokenizer.vocab_size, EOS)
    for name in ("words", "log_probabilities", "backoffs", "offsets"):
        for one, other in zip(getattr(found, name), getattr(tiny.tables, name), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert tiny.identity == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_tokenizer_of_another_size_is_refused(tiny: NgramModel) -> None:
    with pytest.raises(ValueError, match=r"the n-grams are of \d+ tokens with <eos> 0, the tokenizer has"):
        NgramModel(tiny.tables, Tokenizer.from_file(FIXTURE / "tokenizer.json"))


def complaint(path: Path) -> str:
    with pytest.raises(UnusableFileError) as error:
        NgramTables.read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def small_file(path: Path) -> bytes:
    estimate(ids_of([token % 6 for token in skewed(200)]), 6, EOS, 3).write(path)
    return path.read_bytes()


def test_a_file_of_any_other_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ngram"
    data = small_file(path)
    for length in [*range(0, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:length])
        assert "not a file of n-grams, or damaged" in complaint(path)
    path.write_bytes(data + b"\0")
    assert f"{len(data) + 1} bytes, not {len(data)}" in complaint(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "other"}, "format other 1"),
        ({"format_version": 2}, "format steplm ngram 2"),
        ({"order": 2}, "n-grams"),
        ({"order": 0}, "order 0"),
        ({"order": "3"}, "a size is no number"),
        ({"eos_id": 6}, "<eos> 6"),
        ({"eos_id": True}, "a size is no number"),
        ({"vocab_size": 7}, "n-grams"),
        ({"vocab_size": 1 << 40}, "tokens"),
        ({"counts": [6, 1 << 40, 1]}, "n-grams"),
        ({"counts": [6, 1, -1]}, "n-grams"),
        ({"counts": 3}, "damaged"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = tmp_path / "model.ngram"
    header, rest = small_file(path).split(b"\n", 1)
    length = len(header)
    changed = json.dumps({**json.loads(header), **change}, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(changed + b"\n" + rest)
    assert problem in complaint(path)


@pytest.mark.parametrize(
    ("name", "level", "index", "value", "problem"),
    [
        ("log_probabilities", 0, 3, np.nan, "log_probabilities of length 1"),
        ("log_probabilities", 2, 0, -np.inf, "log_probabilities of length 3"),
        ("log_probabilities", 1, -1, 0.5, "log_probabilities of length 2"),
        ("backoffs", 1, 0, np.inf, "backoffs of length 2"),
        ("offsets", 0, 0, 1, "offsets of length 1 do not rise"),
        ("offsets", 0, 2, 1000, "offsets of length 1 do not rise"),
        ("offsets", 1, -1, 1, "offsets of length 2 do not rise"),
        ("words", 0, -1, 6, "a word of length 2 is not in the vocabulary"),
        ("words", 0, 1, 0, "words of length 2 do not rise"),
    ],
)
def test_numbers_that_no_estimate_gives_are_refused(
    tmp_path: Path, name: str, level: int, index: int, value: float, problem: str
) -> None:
    path = tmp_path / "model.ngram"
    tables = estimate(ids_of([token % 6 for token in skewed(200)]), 6, EOS, 3)
    getattr(tables, name)[level][index] = value
    tables.write(path)
    assert problem in complaint(path)


@given(st.data())
@settings(deadline=None)
def test_no_byte_makes_a_file_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.ngram"
    content = bytearray(small_file(path))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        model = NgramModel(NgramTables.read(path), vocabulary_of(6))
    except UnusableFileError as error:
        assert "\n" not in str(error)
    except ValueError as error:
        assert "the tokenizer has" in str(error)
    else:
        logits, _ = model.step(np.array([[token % 6 for token in skewed(40)]]), initial_state(model, 1))
        assert np.isfinite(logits).all()


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none").endswith("no such file")
    assert "a folder" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ("1 1", "prune must begin with 0"),
        ("0 2 1", "the numbers of prune must not fall, got 0 2 1"),
        ("0 0 0 1", "prune must have at most 3 numbers, one for each length, got 4"),
        ("0 x", "prune must be numbers such as '0 0 1', got '0 x'"),
    ],
)
def test_bad_pruning_is_said_before_any_work(prune: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(
            10,
            model_type="ngram",
            order=3,
            prune=prune,
            embedding_dim=0,
            hidden_size=0,
            num_layers=0,
            tied=False,
        )
