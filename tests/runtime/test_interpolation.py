"""Two models as one: the mean of their probabilities, everywhere where one model goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, ROOT, TINY, Invoke, one_line, run_command
from lm_runtime.commands.score import main as lm_score
from lm_runtime.generation.generate import generate_samples
from lm_runtime.generation.session import Session
from lm_runtime.models.interpolation import InterpolatedModel, fit_weight
from lm_runtime.models.ngram import NgramModel
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.state import initial_state, read
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import score_file
from lm_runtime.softmax import log_softmax
from lm_trainer.ngram.estimation import estimate

PAIR = (FIXTURE, TINY / "valid.txt", "--json", "--with", FIXTURE)


@pytest.fixture(scope="module")
def lstm() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


@pytest.fixture(scope="module")
def ngram(lstm: OnnxModel) -> NgramModel:
    tokenizer = lstm.tokenizer
    ids = np.array(tokenizer.encode((TINY / "train.txt").read_text()), dtype=np.uint16)
    return NgramModel(estimate(ids, tokenizer.vocab_size, tokenizer.eos_id, order=3), tokenizer)


@pytest.mark.parametrize("weight", [0.01, 0.3, 0.99])
def test_the_probability_is_the_weighted_mean(lstm: OnnxModel, ngram: NgramModel, weight: float) -> None:
    model = InterpolatedModel(lstm, ngram, weight)
    token = np.array([[0, 5, 7, 2], [0, 2, 3, 4]])
    mixed, state = model.step(token, initial_state(model, 2))
    ours, after = lstm.step(token, initial_state(lstm, 2))
    theirs, also_after = ngram.step(token, initial_state(ngram, 2))
    expected = (1 - weight) * np.exp(log_softmax(ours)) + weight * np.exp(log_softmax(theirs))
    assert np.exp(mixed) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert all(map(np.array_equal, state, (*after, *also_after)))


def test_stepping_is_reading_and_can_be_undone(lstm: OnnxModel, ngram: NgramModel) -> None:
    model = InterpolatedModel(lstm, ngram, 0.4)
    stepper, state = model.stepper(initial_state(model, 1)), initial_state(model, 1)
    for token in (0, 5, 7):
        before = stepper.state()
        logits, state = model.step(np.array([[token]]), state)
        assert stepper.step([token])[0] == pytest.approx(logits[0, 0], abs=1e-6)
        assert all(map(np.array_equal, stepper.state(), state))
    stepper.undo()
    assert all(map(np.array_equal, stepper.state(), before))
    assert all(map(np.array_equal, read(model, [0, 5, 7], initial_state(model, 1)), state))


def test_the_fitted_weight_is_the_best(lstm: OnnxModel, ngram: NgramModel, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"  # networks read it in several parts
    text.write_text((TINY / "valid.txt").read_text() * 5)
    weight = fit_weight(lstm, ngram, text)

    def perplexity(weight: float) -> float:
        return score_file(InterpolatedModel(lstm, ngram, weight), text).perplexity

    assert 0 < weight < 1
    best = perplexity(weight)
    for other in (weight / 2, weight * 0.9, weight + (1 - weight) / 10, (1 + weight) / 2):
        assert best <= perplexity(other) + 1e-6
    assert best <= min(score_file(lstm, text).perplexity, score_file(ngram, text).perplexity) + 1e-6


def test_a_text_is_generated_and_saved_by_a_pair(lstm: OnnxModel, ngram: NgramModel, tmp_path: Path) -> None:
    model = InterpolatedModel(lstm, ngram, 0.5)
    params = SamplingParams(max_tokens=20)
    expected = [piece.token for piece in generate_samples(model, "the", params, seed=1)]
    session, found = Session.start(model, "the", seed=1), []
    for _ in range(4):
        part = SamplingParams(max_tokens=5)
        found += [piece.token for piece in lm_runtime.generate_batch(model, [session], part)]
        session.save(tmp_path / "s.npz", model)
        session = Session.load(tmp_path / "s.npz", model)
    assert found == expected
    with pytest.raises(lm_runtime.UnusableFileError, match="saved with another model"):
        Session.load(tmp_path / "s.npz", InterpolatedModel(lstm, ngram, 0.6))


@pytest.mark.parametrize("weight", [0, 1, -1, float("nan")])
def test_a_weight_out_of_its_range_is_refused(lstm: OnnxModel, ngram: NgramModel, weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight must be above 0 and below 1, got {weight}"):
        InterpolatedModel(lstm, ngram, weight)


def test_the_command_interpolates(invoke: Invoke) -> None:
    text = TINY / "valid.txt"
    alone = json.loads(invoke(lm_score, FIXTURE, text, "--json")[1])
    # With itself, whatever the weight, nothing changes.
    for option in (["--weight", 0.3], ["--fit", TINY / "test.txt"]):
        code, out, err = invoke(lm_score, FIXTURE, text, "--json", "--with", FIXTURE, *option)
        assert code == 0
        assert json.loads(out)["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    assert err == f"weight 0.5000 of the second model, fitted on {TINY / 'test.txt'}\n"
    record = json.loads(invoke(lm_score, FIXTURE, text, "--with", FIXTURE, "--weight", 0.3, "--json")[1])
    assert record["weight"] == 0.3
    assert invoke(lm_score, FIXTURE, text, "--lines", "--with", FIXTURE, "--weight", 0.5)[0] == 0


def test_the_weight_is_fitted_on_a_stream(tmp_path: Path) -> None:
    """Which can be read only once."""
    expected = run_command("lm-score", *PAIR, "--fit", TINY / "test.txt", cwd=tmp_path).stdout
    text = (TINY / "test.txt").read_bytes()
    read, write = os.pipe()
    os.write(write, text)
    os.close(write)
    for name, options in (("-", {"input": text}), (f"/dev/fd/{read}", {"pass_fds": [read]})):
        command = [str(Path(sys.executable).parent / "lm-score"), *map(str, PAIR), "--fit", name]
        found: Any = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True, **options)
        assert found.stdout.decode() == expected
    os.close(read)


def test_two_texts_cannot_both_be_standard_input(invoke: Invoke) -> None:
    code, out, err = invoke(lm_score, FIXTURE, "-", "--with", FIXTURE, "--fit", "-")
    assert (code, out) == (2, "")
    assert "FILE and --fit cannot both be standard input" in one_line(err)


def test_bad_pairs_are_one_line(invoke: Invoke, small_bundle: Path) -> None:
    text = TINY / "valid.txt"
    for options, status, message in (
        (["--with", FIXTURE], 2, "--with takes a second bundle, and either its --weight"),
        (["--weight", 0.5], 2, "--with takes a second bundle"),
        (["--with", FIXTURE, "--weight", 0.5, "--fit", text], 2, "--with takes a second bundle"),
        (["--with", FIXTURE, "--weight", 1], 2, "weight must be above 0 and below 1, got 1.0"),
        (["--with", small_bundle, "--weight", 0.5], 2, "do not have the same tokens"),
        (["--with", "nowhere", "--weight", 0.5], 1, "nowhere: no such bundle"),
        (["--with", FIXTURE, "--fit", "nowhere.txt"], 1, "nowhere.txt: no such file"),
    ):
        code, out, err = invoke(lm_score, FIXTURE, text, *options)
        assert (code, out) == (status, "")
        assert message in one_line(err)


def test_a_bundle_of_format_1_mixes_with_its_vocabulary_of_today(lstm: OnnxModel) -> None:
    old = lm_runtime.load(ROOT / "tests/fixtures/format1_bundle", provider="cpu")
    assert old.tokenizer.json_text != lstm.tokenizer.json_text
    assert old.tokenizer.tokens == lstm.tokenizer.tokens
    assert InterpolatedModel(old, lstm, 0.5).weight == 0.5
