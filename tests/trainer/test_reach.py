"""How far back a network's gradients reach, of any family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import Invoke, one_line
from lm_trainer.commands.reach import main as lm_reach
from lm_trainer.reports.reach import gradient_reach, reach_of
from lm_trainer.run.checkpoint import load_checkpoint
from small_runs import small_model

RELATIVE = 1e-3
"""Of finite differences in float64."""
TIME = 6


@pytest.mark.parametrize("family", ["lstm", "gru", "rnn", "window"])
def test_the_gradient_is_that_of_finite_differences(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(family).double()
    state = tuple(part.double() if part.is_floating_point() else part for part in model.zero_state(1))
    monkeypatch.setattr(model, "zero_state", lambda batch: state)
    row = torch.randperm(50, generator=torch.Generator().manual_seed(1))[: TIME + 1]  # no token twice
    shares = gradient_reach(model, row[None].numpy())
    weight = model.embedding.weight
    first = weight.shape[0] - 50

    def loss() -> float:
        with torch.no_grad():
            logits, _ = model(row[None, :-1], state)
            return float(F.cross_entropy(logits[0, -1:], row[-1:]))

    norms = []
    for place in reversed(range(TIME)):
        gradient = []
        for column in range(weight.shape[1]):
            found = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[first + row[place], column] += sign * 1e-5
                    found.append(loss())
                    weight[first + row[place], column] -= sign * 1e-5
            gradient.append((found[0] - found[1]) / 2e-5)
        norms.append(np.linalg.norm(gradient))
    assert shares == pytest.approx(np.array(norms) / norms[0], rel=RELATIVE, abs=1e-7)
    if family == "window":  # it sees three tokens
        assert (shares[:3] > 0).all()
        assert (shares[3:] == 0).all()


def test_a_run_s_network_is_left_as_it_was() -> None:
    model = small_model("lstm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient_reach(model, np.arange(14).reshape(2, 7))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_prints_and_draws_what_any_run_has(
    family_run: Path, tmp_path: Path, invoke: Invoke
) -> None:
    code, out, err = invoke(lm_reach, family_run, "--tokens", 30, "--png", "reach.png")
    if load_checkpoint(family_run).training_config is None:
        assert (code, out) == (1, "")
        assert "has no gradients" in one_line(err)
        return
    assert code == 0
    assert (tmp_path / "reach.png").read_bytes().startswith(b"\x89PNG")
    found = reach_of(family_run, 30)
    assert found.trained[0] == found.new[0] == 1
    assert found.texts == 4  # of 132 tokens
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        [str(far), f"{found.trained[far]:.1e}"] for far in (1, 2, 5, 10, 20)
    ]
    record = json.loads(invoke(lm_reach, family_run, "--tokens", 30, "--json")[1])
    assert record["trained"] == pytest.approx(found.trained.tolist(), rel=1e-5)
    code, _, err = invoke(lm_reach, family_run, "--tokens", 132)
    assert code == 2
    assert "tokens must be at most 131" in one_line(err)
