"""A session is a value: saved, forked and resumed, the text goes on bit for bit."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from random import Random
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
SECONDS = 20
"""For a thousand sessions, of the processor's time; they take about a second."""
KILOBYTES = 500_000
"""Of memory for them, beyond what there was."""
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
    np.savez(path, **{**arrays, "state_h": arrays["state_h"][..., :-1]})


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
        info = archive.getinfo("state_h.npy")
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


def as_of_version_2(path: Path) -> None:
    """The same session as it was saved before: numbers of any length, and tensors by their bare names."""
    with np.load(path) as archive:
        arrays = {name.removeprefix("state_"): array for name, array in archive.items()}
    facts = json.loads(arrays["facts"].tobytes())
    numbers = {name: int(number) for name, number in facts["generator"]["state"].items()}
    facts |= {"format_version": 2, "generator": {**facts["generator"], "state": numbers}}
    np.savez(path, **{**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)})


def test_a_session_of_version_2_goes_on(model: OnnxModel, tmp_path: Path) -> None:
    session = Session.start(model, "the keeper", seed=3)
    session.save(tmp_path / "s.npz", model)
    as_of_version_2(tmp_path / "s.npz")
    again = Session.load(tmp_path / "s.npz", model)
    assert go_on(model, again, 20) == go_on(model, session, 20)


def test_no_number_of_a_saved_session_is_too_long_for_other_readers(model: OnnxModel, tmp_path: Path) -> None:
    """JSON's numbers have 53 bits in JavaScript."""
    Session.start(model, "the", seed=3).save(tmp_path / "s.npz", model)
    with np.load(tmp_path / "s.npz") as archive:
        text = archive["facts"].tobytes().decode()
        assert set(archive) == {"facts", "history", *(f"state_{tensor.name}" for tensor in model.states)}
    assert not re.search(r"[^\"0-9a-f][0-9]{16}", text)
    generator = json.loads(text)["generator"]
    assert {name: int(number) for name, number in generator["state"].items()} == (
        np.random.default_rng([3, 0]).bit_generator.state["state"]
    )


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


def rewrite(path: Path, members: dict[str, bytes]) -> None:
    """An archive with checksums that are right."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change(content: bytes, random: Random) -> bytes:
    """Flip, overwrite, cut, repeat or insert."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(data) + 1), random.choice((1, 2, 8, 100))
        match random.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1:
                data[at : at + length] = random.choice((b"\0", b"\xff", b"9")) * length
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case _:
                data[at:at] = random.randbytes(length)
    return bytes(data)


JUNK = [None, True, -1, 1.5, 1e400, 2**200, "", "x" * 5000, [], [[]], {}, "\ud800", "00"]
HEADERS = ["(2, 1, 64), }", "(999999999999,), }", "(-1,), }", "(1" + ",1" * 40 + "), }", "(,), }"]


def change_structure(members: dict[str, bytes], random: Random) -> dict[str, bytes]:
    """Change a fact, an array's header or numbers, a name, or what there is, and repair all checksums."""
    changed = dict(members)
    name = random.choice(sorted(members))
    match random.randrange(7):
        case 0 | 1 | 2:
            facts = json.loads(members["facts.npy"][128:])
            place = random.choice([facts, facts["decoder"], facts["generator"], facts["generator"]["state"]])
            key = random.choice(sorted(place))
            if random.random() < 0.2:
                del place[key]
            else:
                place[key] = random.choice([*JUNK, list(range(300))])
            file = io.BytesIO()
            np.save(file, np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8))
            changed["facts.npy"] = file.getvalue()
        case 3:
            text = members[name].decode("latin-1").replace("), }", random.choice(HEADERS)[1:], 1)
            changed[name] = text.encode("latin-1")
        case 4:
            changed[name] = members[random.choice(sorted(members))]
        case 5:
            del changed[name]
        case _:
            changed[name] = change(members[name], random)
    return changed


def test_a_thousand_damaged_sessions_are_loaded_or_refused(tmp_path: Path, family_bundle: Path) -> None:
    """And the text of one that loads goes on."""
    model = lm_runtime.load(family_bundle, provider="cpu")
    good, path = tmp_path / "good.npz", tmp_path / "session.npz"
    session = Session.start(model, "the keeper", seed=1)
    go_on(model, session, 5)
    session.save(good, model)
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    random, loaded = Random(7), 0
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for number in range(1000):
        if number % 2:
            path.write_bytes(change(good.read_bytes(), random))
        else:
            rewrite(path, change_structure(members, random))
        try:
            session = Session.load(path, model)
        except UnusableFileError as error:
            assert "\n" not in str(error)
            continue
        loaded += 1
        go_on(model, session, 2)
    assert 10 < loaded < 500
    assert time.process_time() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < KILOBYTES


def test_what_an_archive_declares_takes_no_memory(tmp_path: Path) -> None:
    """Half a megabyte that declares half a gigabyte, of an array and of a compressed member."""
    model = lm_runtime.load(FIXTURE, provider="cpu")
    path = tmp_path / "session.npz"
    Session.start(model, "the").save(path, model)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    header = (
        members["state_h.npy"][:128].replace(b"(2, 1, ", b"(9999, 9999, ").replace(b" " * 14 + b"\n", b"\n")
    )
    rewrite(path, {**members, "state_h.npy": header})
    with pytest.raises(UnusableFileError, match="h has"):
        Session.load(path, model)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
                for _ in range(500 if name == "state_h.npy" else 0):
                    member.write(bytes(1 << 20))
    assert path.stat().st_size < 600_000
    with pytest.raises(UnusableFileError, match="compressed, or too large"):
        Session.load(path, model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_two_that_save_into_one_file_never_show_a_part(tmp_path: Path) -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    path = tmp_path / "session.npz"
    Session.start(model, "the").save(path, model)
    code = (
        "import sys, time, lm_runtime\n"
        f"model = lm_runtime.load({str(FIXTURE)!r}, provider='cpu')\n"
        "session = lm_runtime.Session.start(model, sys.argv[1])\n"
        "print(flush=True)\n"
        "until = time.monotonic() + 2\n"
        "while time.monotonic() < until:\n"
        f"    session.save({str(path)!r}, model)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, prompt], stdout=subprocess.PIPE)
        for prompt in ("the keeper", "a")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    positions = set()
    while any(writer.poll() is None for writer in writers):
        positions.add(Session.load(path, model).position)
    for writer in writers:
        assert writer.wait() == 0
        assert writer.stdout is not None
        writer.stdout.close()
    assert positions >= {1, 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["session.npz"]


def test_a_pipe_is_no_session(tmp_path: Path) -> None:
    """And nobody waits for what it brings."""
    model = lm_runtime.load(FIXTURE, provider="cpu")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(UnusableFileError, match="not a regular file"):
            Session.load(tmp_path / name, model)


def test_a_state_in_fortran_s_order_is_read_as_it_was(tmp_path: Path) -> None:
    """Which numpy chooses for some arrays."""
    model = lm_runtime.load(FIXTURE, provider="cpu")
    session = Session.start(model, "the")
    state = session.state
    session.state = tuple(np.asfortranarray(array) for array in state)
    session.save(tmp_path / "session.npz", model)
    loaded = Session.load(tmp_path / "session.npz", model)
    assert all(map(np.array_equal, loaded.state, state))
