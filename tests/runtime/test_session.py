"""A session is a value: saved, forked and resumed, the text goes on bit for bit."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_runtime
from conftest import FIXTURE, Invoke, run_command
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.files import UnusableFileError
from lm_runtime.generation.generate import generate_batch
from lm_runtime.generation.session import Session
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.sampling.history import WINDOW
from lm_runtime.sampling.params import SamplingParams

PENALTIES = {"repetition_penalty": 1.3, "top_p": 0.9, "stop": ("\n\n\n\n\n",)}
PROMPTS = ["", "the keeper", "Mara wrote a letter\nand", "xyzzy " * 30]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def model(request: pytest.FixtureRequest) -> OnnxModel:
    return lm_runtime.load(FIXTURE, precision=request.param, provider="cpu")


def go_on(model: OnnxModel, session: Session, tokens: int, **params: Any) -> str:
    sampling = SamplingParams(max_tokens=tokens, **{**PENALTIES, **params})
    return "".join(lm_runtime.generate(model, session, sampling))


@given(st.lists(st.integers(1, 25), min_size=1, max_size=5), st.sampled_from(PROMPTS))
@settings(max_examples=25, deadline=None)
def test_wherever_a_text_is_saved_it_goes_on_bit_for_bit(
    model: OnnxModel, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], prompt: str
) -> None:
    path = tmp_path_factory.mktemp("session") / "session.npz"
    whole = Session.start(model, prompt, seed=4)
    expected = go_on(model, whole, sum(cuts)) + whole.flush()
    session, text = Session.start(model, prompt, seed=4), ""
    for cut in cuts:
        text += go_on(model, session, cut)
        session.save(path, model)
        session = Session.load(path, model)
    assert text + session.flush() == expected
    assert all(map(np.array_equal, session.state, whole.state))
    assert session.position == whole.position == len(model.tokenizer.encode(prompt)) + sum(cuts)


def test_a_saved_session_is_a_few_kilobytes_however_long_the_text(model: OnnxModel, tmp_path: Path) -> None:
    sizes = []
    for tokens in (2 * WINDOW, 4 * WINDOW):
        session = Session.start(model, "the")
        go_on(model, session, tokens, repetition_penalty=1.0)
        session.save(tmp_path / "session.npz", model)
        sizes.append((tmp_path / "session.npz").stat().st_size)
    assert max(sizes) < 8000
    assert abs(sizes[1] - sizes[0]) < 50  # the digits of counters


def test_the_history_is_kept_whether_or_not_it_is_penalized(model: OnnxModel) -> None:
    session = Session.start(model, "the keeper", seed=1)
    text = go_on(model, session, 30, repetition_penalty=1.0, stop=())
    assert session.history.tokens == model.tokenizer.encode("the keeper" + text)


def test_a_fork_leaves_the_session_alone_and_is_another_text(model: OnnxModel) -> None:
    session = Session.start(model, "the keeper of", seed=1)
    forks = [session.fork(seed=1, index=index) for index in (0, 1, 2)]
    texts = [go_on(model, fork, 30) for fork in forks]
    assert len(set(texts)) == 3
    assert go_on(model, session, 30) == texts[0]


def test_a_prompt_read_in_two_parts_is_the_prompt(model: OnnxModel) -> None:
    session = Session.start(model, "the keeper of", seed=1)
    session.read(model, "the clock")
    whole = Session.start(model, "the keeper of the clock", seed=1)
    # One read its text in two calls: exact in fp32, where a call's length does not matter.
    if model.precision == "fp32":
        assert all(map(np.array_equal, session.state, whole.state))
    assert (session.token, session.position) == (whole.token, whole.position)


def test_sessions_of_other_prompts_and_lengths_go_on_together_as_alone() -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    params = SamplingParams(max_tokens=40, stop=("\n",), top_p=0.95)
    together = [Session.start(model, prompt, seed=6, index=number) for number, prompt in enumerate(PROMPTS)]
    pieces = list(generate_batch(model, together, params))
    lengths = set()
    for number, prompt in enumerate(PROMPTS):
        alone = Session.start(model, prompt, seed=6, index=number)
        expected = [piece.token for piece in generate_batch(model, [alone], params)]
        assert [piece.token for piece in pieces if piece.index == number] == expected
        assert all(map(np.array_equal, together[number].state, alone.state))
        lengths.add(len(expected))
    assert len(lengths) > 1  # so some left before others


def test_breaking_off_leaves_the_session_where_the_text_is(model: OnnxModel) -> None:
    whole = Session.start(model, "the", seed=2)
    expected = go_on(model, whole, 20, stop=())
    session, text = Session.start(model, "the", seed=2), ""
    for number, piece in enumerate(
        lm_runtime.generate(model, session, SamplingParams(**{**PENALTIES, "stop": ()}))
    ):
        text += piece
        if number == 7:
            break
    assert text + go_on(model, session, 12, stop=()) == expected


def damage_array(path: Path) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "h": arrays["h"][..., :-1]})


def damage_facts(path: Path) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "facts": np.frombuffer(b"{}", dtype=np.uint8)})


def edited(**changes: Any) -> Any:
    def damage(path: Path) -> None:
        with np.load(path) as archive:
            arrays = dict(archive)
        facts = {**json.loads(arrays["facts"].tobytes()), **changes}
        np.savez(path, **{**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)})

    return damage


def directory_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 6] = 0xFF
    path.write_bytes(data)


DAMAGE = [
    edited(token=1.5),
    edited(token=True),
    edited(token=10**6),
    edited(position="x"),
    edited(held=5),
    edited(generator={}),
    directory_byte,
]


def pickled(path: Path) -> None:
    np.savez(path, h=np.array([object()], dtype=object), facts=np.array([object()], dtype=object))


def flip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("h.npy")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 200] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [*DAMAGE, damage_array, damage_facts, pickled, flip, lambda p: p.write_bytes(b"junk")]
)
def test_a_damaged_session_is_refused_in_one_line(tmp_path: Path, damage: Any) -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    path = tmp_path / "session.npz"
    Session.start(model, "the").save(path, model)
    damage(path)
    with pytest.raises(UnusableFileError, match="not a session, or damaged") as error:
        Session.load(path, model)
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_refused_without_numpy_s_advice(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"a\0b")
    code, _, err = invoke(lm_generate, FIXTURE, "--load-state", "s.npz")
    assert (code, err) == (1, "lm-generate: s.npz: not a session, or damaged (not an npz archive)\n")


def test_a_session_of_another_model_is_refused(invoke: Invoke, tmp_path: Path, small_bundle: Path) -> None:
    assert invoke(lm_generate, FIXTURE, "--save-state", "s.npz", "--max-tokens", 3)[0] == 0
    for other in ([small_bundle], [FIXTURE, "--precision", "int8"]):
        code, out, err = invoke(lm_generate, *other, "--load-state", "s.npz")
        assert (code, out) == (1, "")
        assert "saved with another model's bundle" in err
    code, _, err = invoke(lm_generate, FIXTURE, "--load-state", "nowhere.npz")
    assert (code, err) == (1, "lm-generate: nowhere.npz: no such session\n")
    assert invoke(lm_generate, FIXTURE, "--load-state", "s.npz", "--samples", 2)[0] == 2


def test_the_command_goes_on_in_another_process(tmp_path: Path) -> None:
    options = ["--temperature", 0.9, "--repetition-penalty", 1.2]
    prompt = ["--prompt", "the keeper", "--seed", 8]
    shutil.copytree(FIXTURE, tmp_path / "bundle")
    parts = [
        [*prompt, "--max-tokens", 30, "--save-state", "a.npz"],
        ["--load-state", "a.npz", "--max-tokens", 20, "--save-state", "b.npz"],
        ["--load-state", "b.npz", "--max-tokens", 10],
    ]
    text = "".join(
        run_command("lm-generate", "bundle", *options, *part, cwd=tmp_path).stdout.removesuffix("\n")
        for part in parts
    )
    whole = run_command("lm-generate", "bundle", *options, *prompt, "--max-tokens", 60, cwd=tmp_path).stdout
    assert text.replace("\n", "") == whole.replace("\n", "")
