"""What a notebook shows of a value fits one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lm_runtime
from conftest import FIXTURE, ROOT
from lm_runtime.models.protocol import BundleModel
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

LINE = 110
"""Characters, where paths are short."""


def shown() -> Iterator[tuple[str, object]]:
    model: BundleModel = lm_runtime.load(FIXTURE, provider="cpu")
    session = lm_runtime.Session.start(model, "the keeper of the sea " * 50)
    yield "Session", session
    params = lm_runtime.SamplingParams(max_tokens=3, logprobs=5)
    yield from (("Piece", piece) for piece in lm_runtime.generate_batch(model, [session], params))
    yield "Piece", lm_runtime.Piece(0, "a long text " * 1000, None)
    yield "Engine", lm_runtime.Engine(model)
    yield "OnnxModel", model
    yield "Tokenizer", model.tokenizer
    yield "InterpolatedModel", lm_runtime.InterpolatedModel(model, model, 0.5)
    yield "Score", next(lm_runtime.score_texts(model, ["the sea"]))


def test_a_value_is_shown_in_one_line() -> None:
    for name, value in shown():
        text = repr(value).replace(str(ROOT), "")
        assert text.startswith(f"{name}(")
        assert "\n" not in text
        assert len(text) <= LINE * (2 if name == "InterpolatedModel" else 1), text


def test_a_session_says_how_far_it_is_and_how_large() -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    session = lm_runtime.Session.start(model, "the keeper")
    size = sum(tensor.nbytes for tensor in session.state)
    assert repr(session) == f"Session(position=2, token={session.token}, state of {size:,} bytes)"


def test_networks_and_checkpoints_are_one_line(small_run: Path) -> None:
    checkpoint = load_checkpoint(small_run / "best.pt")
    model, tokenizer = restore_model(checkpoint)
    for value in (model, model.step_model(tokenizer), checkpoint):
        assert len(repr(value).splitlines()) == 1
        assert len(repr(value)) <= 2 * LINE
