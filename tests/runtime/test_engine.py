"""One batch that sessions enter and leave at any step, each as if it were alone."""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lm_runtime
from conftest import FIXTURE
from lm_runtime.generation.complete import Request, complete
from lm_runtime.generation.engine import Engine
from lm_runtime.generation.generate import generate_batch
from lm_runtime.generation.rows import Piece, most_probable
from lm_runtime.generation.session import Session
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.protocol import PlainStepper, State
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.softmax import log_softmax

PARAMS = [
    SamplingParams(max_tokens=12, top_p=0.9),
    SamplingParams(max_tokens=30, temperature=0),
    SamplingParams(max_tokens=20, stop=("\n",), temperature=0.8),
    SamplingParams(max_tokens=25, no_repeat_ngram_size=2, frequency_penalty=0.4, presence_penalty=0.2),
    SamplingParams(max_tokens=15, typical_p=0.8, repetition_penalty=1.3, banned=("the", "keeper of")),
    SamplingParams(max_tokens=18, top_k=5, logprobs=3, logit_bias={5: 2.0}),
]
PROMPTS = ["", "the keeper", "Mara wrote a letter\nand", "xyzzy"]


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


def alone(model: OnnxModel, session: Session, params: SamplingParams) -> list[Piece]:
    return list(generate_batch(model, [session], params))


def tokens(model: OnnxModel, prompt: str, seed: int = 1, **params: Any) -> list[int]:
    return [
        piece.token
        for piece in alone(model, Session.start(model, prompt, seed=seed), SamplingParams(**params))
    ]


@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from(PROMPTS), st.sampled_from(PARAMS)), max_size=8),
    st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_whenever_a_session_enters_its_text_is_the_one_it_has_alone(
    model: OnnxModel, entries: list[tuple[int, str, SamplingParams]], max_batch: int
) -> None:
    engine, pieces = Engine(model, max_batch=max_batch), {number: [] for number in range(len(entries))}
    sessions: list[Session] = []
    for wait, prompt, params in entries:
        for _ in range(wait):
            for piece in engine.step():
                pieces[piece.index].append(piece)
        sessions.append(Session.start(model, prompt, seed=9, index=len(sessions)))
        assert engine.add(sessions[-1], params) == len(sessions) - 1
    while len(engine):
        step = engine.step()
        assert 1 <= len(step) <= max_batch
        for piece in step:
            pieces[piece.index].append(piece)
    assert engine.step() == []
    for number, (_, prompt, params) in enumerate(entries):
        other = Session.start(model, prompt, seed=9, index=number)
        expected = [replace(piece, index=number) for piece in alone(model, other, params)]
        assert pieces[number] == expected
        assert all(map(np.array_equal, sessions[number].state, other.state))
        assert sessions[number].position == other.position


def test_sessions_wait_for_room_first_come_first_served(model: OnnxModel) -> None:
    engine = Engine(model, max_batch=2)
    for index, length in enumerate((2, 5, 1, 1)):
        engine.add(Session.start(model, seed=index), SamplingParams(max_tokens=length))
    steps = []
    while len(engine):
        steps.append([piece.index for piece in engine.step()])
    assert steps == [[0, 1], [0, 1], [1, 2], [1, 3], [1]]


def test_who_is_cancelled_can_go_on_elsewhere(model: OnnxModel) -> None:
    params = SamplingParams(max_tokens=30, top_p=0.9)
    expected = [tokens(model, "the", index, max_tokens=30, top_p=0.9) for index in range(3)]
    engine = Engine(model)
    sessions = [Session.start(model, "the", seed=index) for index in range(3)]
    for session in sessions:
        engine.add(session, params)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number in range(20):
        for piece in engine.step():
            found[piece.index].append(piece.token)
        if number == 6:
            engine.cancel(1)
            engine.cancel(1)
            engine.cancel(77)
    engine.close()
    assert not len(engine)
    for index, session in enumerate(sessions):
        rest = SamplingParams(max_tokens=30 - len(found[index]), top_p=0.9)
        assert len(found[index]) == (7 if index == 1 else 20)
        assert found[index] + [piece.token for piece in alone(model, session, rest)] == expected[index]


def test_log_probabilities_are_the_model_s_whatever_the_sampling(model: OnnxModel) -> None:
    params = SamplingParams(max_tokens=30, temperature=0.3, repetition_penalty=2, logprobs=4, allow_unk=True)
    session = Session.start(model, "the keeper", seed=1)
    twin = session.copy()
    for piece in alone(model, session, params):
        logits, twin.state = model.step(np.array([[twin.token]]), twin.state)
        values = log_softmax(logits[0, 0])
        assert piece.log_probability == values[piece.token]
        assert [value for _, value in piece.alternatives] == np.sort(values)[::-1][:4].tolist()
        assert all(values[token] == value for token, value in piece.alternatives)
        twin.token = piece.token
    plain = alone(model, Session.start(model), SamplingParams(max_tokens=3))
    assert all(piece.log_probability is None and not piece.alternatives for piece in plain)


def test_no_n_gram_comes_twice(model: OnnxModel) -> None:
    for size in (1, 2, 3):
        text = tokens(model, "", temperature=0, max_tokens=150, no_repeat_ngram_size=size, allow_unk=True)
        grams = Counter(tuple(text[at : at + size]) for at in range(len(text) - size + 1))
        assert max(grams.values()) == 1


def test_banned_words_and_sequences_are_not_generated(model: OnnxModel) -> None:
    free = model.tokenizer.decode(tokens(model, "", max_tokens=500))
    banned = ("the", "of the", "a")
    text = model.tokenizer.decode(tokens(model, "", max_tokens=500, banned=banned)).split()
    assert {"the", "a"} <= set(free.split())
    assert not {"the", "a"} & set(text)
    pair = next(pair for pair, _ in Counter(pairwise(free.split())).most_common(1))
    again = model.tokenizer.decode(tokens(model, "", max_tokens=500, banned=(" ".join(pair),))).split()
    assert pair not in set(pairwise(again))
    assert {pair[0], pair[1]} <= set(again)


def test_a_bias_moves_tokens_and_minus_infinity_rules_them_out(model: OnnxModel) -> None:
    (word,) = model.tokenizer.encode("the")
    counts = [
        tokens(model, "", max_tokens=200, logit_bias={word: bias}).count(word) for bias in (-math.inf, 0, 3)
    ]
    assert counts[0] == 0 < counts[1] < counts[2]


def test_penalties_see_the_prompt(model: OnnxModel) -> None:
    favourite = tokens(model, "the keeper of", temperature=0, max_tokens=1)
    word = model.tokenizer.decode(favourite)
    assert (
        tokens(model, f"{word} the keeper of", temperature=0, max_tokens=1, presence_penalty=50) != favourite
    )


def test_a_text_that_nothing_can_continue_is_stuck_and_leaves_the_others_alone(model: OnnxModel) -> None:
    vocab_size = model.tokenizer.vocab_size
    params = SamplingParams(logit_bias=dict.fromkeys(range(vocab_size), -math.inf), max_tokens=5)
    engine = Engine(model)
    engine.add(Session.start(model, "the"), params)
    engine.add(Session.start(model, "the", seed=1), SamplingParams(max_tokens=5))
    pieces = [piece for _ in range(5) for piece in engine.step()]
    assert [piece for piece in pieces if piece.index == 0] == [Piece(0, "", None, "stuck")]
    assert [piece.token for piece in pieces if piece.index == 1] == tokens(model, "the", max_tokens=5)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logprobs": 201}, "logprobs must be from 0 to 200, got 201"),
        ({"logit_bias": {200: 1.0}}, "logit_bias must name ids from 0 to 199, got 200"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must name ids from 0 to 199, got -1"),
    ],
)
def test_what_does_not_fit_the_vocabulary_is_refused(
    model: OnnxModel, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(model).add(Session.start(model), SamplingParams(**params))


def test_a_batch_holds_at_least_one(model: OnnxModel) -> None:
    with pytest.raises(ValueError, match="max_batch must be at least 1, got 0"):
        Engine(model, max_batch=0)


@pytest.mark.parametrize(
    "params",
    [SamplingParams(logit_bias=dict.fromkeys(range(200), -math.inf)), SamplingParams(regex=" keeper|xx")],
)
def test_a_text_that_ends_without_a_token_goes_on_from_there(
    model: OnnxModel, params: SamplingParams
) -> None:
    session = Session.start(model, "the", seed=1)
    pieces = alone(model, session, params)
    text = "the" + "".join(piece.text for piece in pieces)
    whole = Session.start(model, text)
    assert (session.token, session.position) == (whole.token, whole.position)
    assert all(map(np.array_equal, session.state, whole.state))


class Breaking:
    """A generator that raises at its n-th draw."""

    def __init__(self, generator: np.random.Generator, draws: int) -> None:
        self._generator, self._left = generator, draws

    def random(self) -> float:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return self._generator.random()


def test_an_interruption_within_a_step_leaves_every_session_whole(model: OnnxModel) -> None:
    params = SamplingParams(max_tokens=30)
    sessions = [Session.start(model, "the", seed=index) for index in range(3)]
    sessions[1].generator = Breaking(sessions[1].generator, 6)
    engine, found = Engine(model), []
    for session in sessions:
        engine.add(session, params)
    with pytest.raises(KeyboardInterrupt):
        while True:
            found += [piece.token for piece in engine.step() if piece.index == 2]
    engine.close()
    assert len(found) == 5
    # The generator of the first has drawn one number more; the last one's text is the one it has alone.
    assert sessions[2].position == 1 + 5
    rest = [piece.token for piece in alone(model, sessions[2], SamplingParams(max_tokens=25))]
    assert found + rest == tokens(model, "the", 2, max_tokens=30)
    assert sessions[0].position == 1 + 5
    replayed = Session.start(model, "the")
    replayed.read(model, model.tokenizer.decode(list(sessions[0].history.tokens)[1:]))
    assert all(map(np.array_equal, replayed.state, sessions[0].state))


def test_a_session_that_runs_cannot_be_used_elsewhere(model: OnnxModel) -> None:
    session, engine = Session.start(model, "the"), Engine(model)
    engine.add(session, SamplingParams(max_tokens=3))
    engine.step()
    for use in (
        lambda: engine.add(session),
        session.copy,
        lambda: session.fork(seed=1),
        lambda: session.read(model, "a"),
        lambda: session.save("session.npz", model),
        lambda: lm_runtime.suggest(model, session),
        lambda: lm_runtime.beam_search(model, session),
    ):
        with pytest.raises(ValueError, match="the session is in an engine"):
            use()
    engine.close()
    assert session.copy().position == 2
    with pytest.raises(ValueError, match="the session is in an engine"):
        list(generate_batch(model, [session, session]))


def test_a_session_of_another_model_is_refused(model: OnnxModel) -> None:
    session = Session.start(model, "the")
    session.state = tuple(array[..., :-1] for array in session.state)
    with pytest.raises(ValueError, match="the state is not this model's"):
        Engine(model).add(session)


class Faulty:
    """A model whose logits for a text are no numbers once that text has reached a length."""

    def __init__(self, model: OnnxModel, position: int, fault: float) -> None:
        self._model, self._position, self._fault = model, position, fault
        self.tokenizer, self.states, self.advance = model.tokenizer, model.states, model.advance

    def stepper(self, state: State) -> PlainStepper:
        def step(token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
            logits, after = self._model.step(token, state)
            self._position -= 1
            if not self._position:
                logits = logits.copy()
                logits[1, 0, 7] = self._fault
            return logits, after

        return PlainStepper(step, state)


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0), SamplingParams(presence_penalty=1.0, top_k=5)]
)
def test_logits_that_are_no_numbers_end_their_text_and_no_other(
    model: OnnxModel, params: SamplingParams, fault: float
) -> None:
    params = replace(params, max_tokens=12)
    engine, found = Engine(Faulty(model, 5, fault)), {index: [] for index in range(3)}
    sessions = [Session.start(model, "the", seed=index) for index in range(3)]
    for session in sessions:
        engine.add(session, params)
    errors = []
    while len(engine):
        try:
            for piece in engine.step():
                found[piece.index].append(piece.token)
        except NotFiniteError as error:
            errors.append(error)
    assert [str(error) for error in errors] == ["text 1 ends: the model's logits are NaN or infinite"]
    assert [len(found[index]) for index in range(3)] == [12, 4, 12]
    for index in range(3):
        rest = [piece.token for piece in alone(model, sessions[index], replace(params, max_tokens=8))]
        expected = alone(model, Session.start(model, "the", seed=index), replace(params, max_tokens=12))
        assert (found[index] + rest)[:12] == [piece.token for piece in expected]


def test_only_one_thread_steps_and_others_may_add_and_cancel(model: OnnxModel) -> None:
    within, go_on = threading.Event(), threading.Event()

    class Waiting(Faulty):
        def stepper(self, state: State) -> PlainStepper:
            def step(token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
                within.set()
                assert go_on.wait(timeout=5)
                return model.step(token, state)

            return PlainStepper(step, state)

    params = SamplingParams(max_tokens=4)
    engine, pieces = Engine(Waiting(model, 0, 0)), []
    engine.add(Session.start(model, "the"), params)
    engine.add(Session.start(model, "the", seed=1), params)

    def run() -> None:
        while len(engine):
            pieces.extend(engine.step())

    threads = [threading.Thread(target=run)]
    threads[0].start()
    assert within.wait(timeout=30)
    with pytest.raises(RuntimeError, match="another thread is stepping this engine"):
        engine.step()
    late = Session.start(model, "the", seed=2)
    threads += [
        threading.Thread(target=engine.add, args=(late, params)),
        threading.Thread(target=engine.cancel, args=(1,)),
    ]
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(timeout=30)
    run()  # what was added when the last text had just ended
    for index in (0, 2):
        assert [piece.token for piece in pieces if piece.index == index] == tokens(
            model, "the", index, max_tokens=4
        )
    assert len([piece for piece in pieces if piece.index == 1]) <= 4
    assert engine.step() == []


def test_what_is_printed_of_a_value_fits_a_line(model: OnnxModel) -> None:
    params = SamplingParams(
        logit_bias=dict.fromkeys(range(200), 1.0), banned=["x" * 500] * 9, stop=("y" * 500,), logprobs=200
    )
    engine = Engine(model)
    engine.add(Session.start(model), SamplingParams(max_tokens=3))
    (completion,) = complete(model, [Request("the " * 200, SamplingParams(max_tokens=300, logprobs=50))])
    assert repr(engine) == "Engine(0 running, 1 waiting of 64)"
    assert (
        repr(SamplingParams(temperature=0.5, stop=("a",))) == "SamplingParams(temperature=0.5, stop=('a',))"
    )
    for value in (params, completion, completion.pieces[0], Request("the " * 500, SamplingParams(top_k=3))):
        assert len(repr(value)) < 400
        assert "\n" not in repr(value)


def test_the_most_probable_are_those_of_a_whole_sort() -> None:
    """Equal values, where partitions differ from sorts, go by their ids."""
    source = np.random.default_rng(0)
    for size in (1, 7, 300):
        values = np.round(source.normal(size=size), 1)
        for k in (0, 1, size // 2, size):
            expected = np.argsort(-values, kind="stable")[:k].tolist()
            assert most_probable(values, k) == expected
