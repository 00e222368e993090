"""The proof of parity fails for the smallest wrong thing, and then there is no bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lm_runtime
from conftest import Invoke
from lm_export import graph, parity
from lm_export.command import main
from lm_trainer.networks.base import LanguageModel, TorchStepModel
from lm_trainer.run.checkpoint import load_checkpoint, restore_model


def wrong_gates(model: LanguageModel) -> LanguageModel:
    with torch.no_grad():
        model.get_parameter("layers.0.weight_hh_l0")[:1] += 0.01
    return model


def test_a_proof_that_fails_writes_no_bundle(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest wrong thing: one row of one gate is off by a hundredth."""
    trace = graph.make_step_graph
    monkeypatch.setattr(
        graph,
        "make_step_graph",
        lambda model, config, **options: trace(
            wrong_gates(restore_model(load_checkpoint(small_run))[0]), config, **options
        ),
    )
    code, out, err = invoke(main, small_run, "--out", "bundle")
    assert (code, out) == (1, "")
    assert "the bundle differs from the checkpoint, none was written" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_carried_fails_the_proof(family_run: Path, family_bundle: Path) -> None:
    model, tokenizer = restore_model(load_checkpoint(family_run))
    exported = lm_runtime.load(family_bundle)
    held_out = load_checkpoint(family_run).facts.held_out.numpy()
    reference = model.step_model(tokenizer)
    assert parity.compare(reference, exported, held_out).holds

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return getattr(reference, name)

        def step(self, token: Any, state: Any) -> Any:
            return reference.step(token, tuple(np.zeros_like(array) for array in state))

    assert not parity.compare(Forgetful(), exported, held_out).holds


def test_one_other_integer_in_a_state_fails_the_proof() -> None:
    """However large the integers are."""
    assert parity.difference(np.array([[70_000]]), np.array([[70_000]])) == 0
    assert parity.difference(np.array([[70_000]]), np.array([[70_001]])) == np.inf
    assert parity.relative_difference(np.array([[70_000]]), np.array([[70_001]])) == np.inf


def test_nan_fails_the_proof(small_run: Path, small_bundle: Path) -> None:
    model, tokenizer = restore_model(load_checkpoint(small_run))
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    held_out = load_checkpoint(small_run).facts.held_out.numpy()
    assert not parity.compare(TorchStepModel(model, tokenizer), lm_runtime.load(small_bundle), held_out).holds
