"""Models of bundles: what a folder holds decides, it is read once, and what goes in is checked."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.bundle import (
    CONFIG_FILE,
    GENERATION_CONFIG,
    MODELS,
    TABLES,
    TOKENIZER,
    TOKENS_FILE,
    BundleConfig,
)
from lm_runtime.commands.bench import main as lm_bench
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_runtime.files import UnusableFileError
from lm_runtime.generation.session import Session
from lm_runtime.models import opened
from lm_runtime.models.interpolation import InterpolatedModel
from lm_runtime.models.ngram import NgramBundle
from lm_runtime.models.protocol import BundleModel, StepModel
from lm_runtime.models.state import initial_state
from toy_bundles import ngram_bundle, set_config, toy_bundle

VALID = TINY / "valid.txt"


@pytest.fixture(scope="module")
def ngrams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ngram_bundle(tmp_path_factory.mktemp("ngrams") / "bundle")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module", params=["graph", "tables", "pair", "toy"])
def model(request: pytest.FixtureRequest, ngrams: Path, toy: Path) -> StepModel:
    match request.param:
        case "graph":
            return lm_runtime.load(FIXTURE, provider="cpu")
        case "tables":
            return lm_runtime.load(ngrams)
        case "toy":
            return lm_runtime.load(toy, provider="cpu")
    return InterpolatedModel(lm_runtime.load(FIXTURE, provider="cpu"), lm_runtime.load(ngrams), 0.3)


def test_a_family_of_no_package_generates_scores_and_is_measured(
    invoke: Invoke, toy: Path, tmp_path: Path
) -> None:
    code, out, _ = invoke(lm_generate, toy, "--prompt", "the", "--max-tokens", 8, "--seed", 1)
    assert code == 0
    assert len(out.split()) >= 4
    code, score, _ = invoke(lm_score, toy, VALID)
    assert (code, "132 tokens" in score) == (0, True)
    assert invoke(lm_bench, toy, "--batch", 2, "--tokens", 2)[0] == 0
    options = [toy, "--max-tokens", 4]
    first = invoke(lm_generate, *options, "--prompt", "the", "--seed", 1, "--save-state", "s.npz")[1]
    second = invoke(lm_generate, *options, "--load-state", "s.npz")[1]
    assert (first.removesuffix("\n") + second).split() == out.split()


def test_what_is_in_the_folder_decides_whatever_the_type_is_called(ngrams: Path, tmp_path: Path) -> None:
    named, tables = (Path(shutil.copytree(ngrams, tmp_path / name)) for name in ("named", "tables"))
    set_config(named, model_type="lstm")
    assert isinstance(lm_runtime.load(named), NgramBundle)
    expected = lm_runtime.score_file(lm_runtime.load(tables), VALID)
    assert lm_runtime.score_file(lm_runtime.load(named), VALID) == expected


def test_a_folder_without_graph_and_tables_is_refused(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    shutil.rmtree(bundle / "onnx")
    set_config(bundle)
    with pytest.raises(UnusableFileError, match=r"config\.json: lists no onnx/model\.onnx"):
        lm_runtime.load(bundle)


def test_what_is_checked_is_what_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ngrams: Path
) -> None:
    """Files that change after they were checked change nothing."""
    read = opened.read_files
    for source in (FIXTURE, ngrams):
        expected = lm_runtime.score_file(lm_runtime.load(source, provider="auto"), VALID)
        bundle = Path(shutil.copytree(source, tmp_path / source.parent.name))

        def read_and_damage(folder: Path, config: BundleConfig, names: Any) -> dict[str, bytes]:
            contents = read(folder, config, names)
            for name in names:
                (folder / name).write_bytes(b"damaged")
            return contents

        monkeypatch.setattr(opened, "read_files", read_and_damage)
        assert lm_runtime.score_file(lm_runtime.load(bundle), VALID) == expected
        monkeypatch.setattr(opened, "read_files", read)
        with pytest.raises(UnusableFileError, match="changed since the export"):
            lm_runtime.load(bundle)


def test_a_bundle_that_is_replaced_as_it_is_read_is_the_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy: Path
) -> None:
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    after = Path(shutil.copytree(toy, tmp_path / "new"))
    read = opened.read_files

    def replace_and_read(folder: Path, config: BundleConfig, names: Any) -> dict[str, bytes]:
        if after.exists():
            bundle.rename(tmp_path / "old")
            after.rename(bundle)
        return read(folder, config, names)

    monkeypatch.setattr(opened, "read_files", replace_and_read)
    model = lm_runtime.load(bundle, provider="cpu")
    assert model.config.model_type == "adder"
    assert model.identity == lm_runtime.load(toy, provider="cpu").identity


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("put", [pipe, endless, listener, Path.mkdir])
@pytest.mark.parametrize(
    "name", [CONFIG_FILE, GENERATION_CONFIG, TOKENIZER, TOKENS_FILE, MODELS["fp32"], TABLES]
)
def test_anything_but_a_regular_file_is_refused_by_name(
    tmp_path: Path, ngrams: Path, name: str, put: Callable[[Path], None]
) -> None:
    bundle = Path(shutil.copytree(ngrams if name == TABLES else FIXTURE, tmp_path / "bundle"))
    (bundle / name).unlink()
    put(bundle / name)
    with pytest.raises(UnusableFileError, match=r"not a regular file|a folder, where") as error:
        lm_runtime.load(bundle)
    assert str(error.value).startswith(f"{bundle / name}: ")


def test_a_file_far_too_large_is_not_read(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    for name in (CONFIG_FILE, TOKENIZER):
        os.truncate(bundle / name, 1 << 40)  # which takes no room
        with pytest.raises(UnusableFileError, match=r"1,099,511,627,776 bytes, more than"):
            lm_runtime.load(bundle)
        shutil.copyfile(FIXTURE / name, bundle / name)


def test_reprs_fit_on_a_line(model: StepModel) -> None:
    for value in (model, model.tokenizer, getattr(model, "config", None), getattr(model, "tables", None)):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 300


def scores(model: StepModel) -> list[lm_runtime.Score]:
    return list(lm_runtime.score_texts(model, ["the keeper", "the sea"]))


def test_a_pickled_model_is_the_model(model: StepModel) -> None:
    again = pickle.loads(pickle.dumps(model))
    assert again.identity == model.identity
    assert scores(again) == scores(model)


def test_worker_processes_are_given_a_model(ngrams: Path) -> None:
    models = [lm_runtime.load(FIXTURE, provider="cpu"), lm_runtime.load(ngrams)]
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
        assert list(pool.map(scores, models)) == [scores(model) for model in models]


def test_a_pickle_of_a_bundle_that_was_replaced_is_refused(tmp_path: Path, toy: Path) -> None:
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    pickled = pickle.dumps(lm_runtime.load(bundle, provider="cpu"))
    shutil.rmtree(bundle)
    shutil.copytree(toy, bundle)
    with pytest.raises(UnusableFileError, match="replaced by another bundle since the model was pickled"):
        pickle.loads(pickled)


def readings(model: StepModel, batch: int) -> Iterator[Callable[[Any], object]]:
    """The ways in which a model reads ids, given as lists of one for each sequence."""
    state = initial_state(model, batch)
    yield lambda rows: model.step(np.array(rows, dtype=np.int64), state)
    yield lambda rows: model.advance(np.array(rows, dtype=np.int64), state)
    yield lambda rows: model.stepper(state).step([row[0] for row in rows])


@pytest.mark.parametrize("wrong", [-1, -100, 200, 1 << 40])
def test_ids_out_of_the_vocabulary_are_refused(model: StepModel, wrong: int) -> None:
    for read in readings(model, 2):
        with pytest.raises(ValueError, match=f"a token must be from 0 to 199, got {wrong}"):
            read([[3], [wrong]])


def test_other_batches_than_the_state_s_are_refused(model: StepModel) -> None:
    for read in readings(model, 2):
        with pytest.raises(ValueError, match=r"the state is not this model's|a step reads 2 tokens"):
            read([[3]])


def test_a_batch_of_0_is_refused(model: StepModel) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        initial_state(model, 0)
    empty = tuple(np.zeros(tensor.sizes(0), tensor.dtype) for tensor in model.states)
    for read in (model.step, model.advance):
        with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
            read(np.zeros((0, 1), dtype=np.int64), empty)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        model.stepper(empty)


def test_a_time_of_0_leaves_the_state(model: StepModel) -> None:
    _, state = model.step(np.array([[3, 4], [5, 6]]), initial_state(model, 2))
    nothing = np.zeros((2, 0), dtype=np.int64)
    logits, after = model.step(nothing, state)
    assert (logits.shape, logits.dtype) == ((2, 0, 200), np.float32)
    assert all(map(np.array_equal, after, state))
    assert all(map(np.array_equal, model.advance(nothing, state), state))


@pytest.mark.parametrize("token", [np.zeros((1, 1)), np.zeros((1, 1), np.int32), np.zeros(1, np.int64)])
def test_tokens_of_another_type_or_shape_are_refused(model: StepModel, token: Any) -> None:
    with pytest.raises(ValueError, match=r"token must be int64 .batch, time."):
        model.step(token, initial_state(model, 1))


def test_another_model_s_state_is_refused(model: StepModel, toy: Path) -> None:
    other = (np.zeros((1, 3), np.float32),)
    for read in (model.advance, model.step):
        with pytest.raises(ValueError, match="the state is not this model's"):
            read(np.array([[1]]), other)
    with pytest.raises(ValueError, match="the state is not this model's"):
        model.stepper(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision must be fp32 or int8, got 'int4'"),
        ({"provider": "gpu"}, "provider gpu is not available"),
        ({"threads": 0}, "threads must be from 1 to 1024, got 0"),
        ({"threads": "2"}, "threads must be a whole number, got '2'"),
    ],
)
def test_arguments_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lm_runtime.load(FIXTURE, **options)


def test_names_of_a_pair_s_states_are_its_own(ngrams: Path, tmp_path: Path) -> None:
    """Also of pairs of pairs: a session has a tensor by each name."""
    graph, tables = lm_runtime.load(FIXTURE, provider="cpu"), lm_runtime.load(ngrams)
    left = InterpolatedModel(InterpolatedModel(graph, tables, 0.5), graph, 0.3)
    right = InterpolatedModel(graph, InterpolatedModel(tables, graph, 0.5), 0.3)
    both = InterpolatedModel(left, right, 0.5)
    for pair in (left, right, both):
        names = [tensor.name for tensor in pair.states]
        assert len(set(names)) == len(names)
    assert [tensor.name for tensor in left.states] == [
        *["h", "c", "second_context", "second_h", "second_c"],
    ]
    for pair in (left, both):
        session = Session.start(pair, "the keeper of", seed=1)
        session.save(tmp_path / "s.npz", pair)
        again = Session.load(tmp_path / "s.npz", pair)
        assert all(map(np.array_equal, again.state, session.state))


def test_each_of_a_pair_takes_what_it_has(invoke: Invoke, ngrams: Path, toy: Path) -> None:
    options = ["--weight", 0.3, "--json"]
    code, int8, err = invoke(lm_score, FIXTURE, VALID, "--with", ngrams, *options, "--precision", "int8")
    assert (code, err) == (0, "")
    code, fp32, _ = invoke(lm_score, FIXTURE, VALID, "--with", ngrams, *options)
    assert code == 0
    assert int8 != fp32
    swapped = [ngrams, VALID, "--with", FIXTURE, "--weight", 0.7, "--json", "--precision", "int8"]
    assert invoke(lm_score, *swapped)[0] == 0
    code, _, err = invoke(lm_score, FIXTURE, VALID, "--with", toy, *options, "--precision", "int8")
    assert (code, err) == (0, f"{toy} has no int8 graph and runs in fp32\n")


def test_what_neither_of_a_pair_has_is_one_line(invoke: Invoke, ngrams: Path, toy: Path) -> None:
    for first, second, option, message in (
        (toy, ngrams, ["--precision", "int8"], "none has an int8 graph; export one with --quantize int8"),
        (ngrams, ngrams, ["--provider", "cuda"], "n-gram models run on the CPU"),
    ):
        code, out, err = invoke(lm_score, first, VALID, "--with", second, "--weight", 0.5, *option)
        assert (code, out) == (2, "")
        assert one_line(err) == f"lm-score: {first} and {second}: {message}"


def test_a_bundle_says_what_a_step_reads(model: StepModel, ngrams: Path) -> None:
    graph, tables = lm_runtime.load(FIXTURE), lm_runtime.load(ngrams)
    embedding = 4 * graph.config.vocab_size * graph.config.embedding_dim
    assert graph.step_bytes == (FIXTURE / MODELS["fp32"]).stat().st_size - embedding
    assert tables.step_bytes is None


def test_additional_fields_of_a_newer_format_are_ignored(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    states = [
        {**{"name": name, "output": f"{name}_out", "dtype": "float32", "shape": [2, None, 24]}, "new": 1}
        for name in "hc"
    ]
    set_config(bundle, surprise={"x": 1}, states=states)
    loaded: BundleModel = lm_runtime.load(bundle)
    assert scores(loaded) == scores(lm_runtime.load(FIXTURE))
