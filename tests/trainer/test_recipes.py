"""Every preset, made small: a killed run ends with the same weights, and its graph equals the torch model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Invoke
from lm_export.command import main as lm_export
from lm_trainer.command import main as lm_train
from lm_trainer.families import FAMILIES
from lm_trainer.presets import PRESETS
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.run.device import pick_precision
from lm_trainer.training.loop import Trainer
from small_runs import made_small


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_killed_run_ends_with_the_same_bits(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    call = [*made_small(name), "--precision", precision, "--checkpoint-seconds", 0]
    assert invoke(lm_train, *call, "--out", "whole")[0] == 0
    whole = load_checkpoint(tmp_path / "whole/last.pt")

    class KilledError(Exception):
        pass

    def step_or_die(trainer: Trainer, lr: float | None = None) -> Tensor:
        if trainer.progress.step == whole.progress.step * 2 // 3:
            raise KilledError
        return step(trainer, lr)

    step = Trainer.step
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Trainer, "step", step_or_die)
        lm_train.main([str(argument) for argument in (*call, "--out", "killed")])
    stopped = load_checkpoint(tmp_path / "killed/last.pt")
    assert 0 < stopped.progress.step < whole.progress.step
    assert invoke(lm_train, *call, "--out", "killed", "--resume")[0] == 0
    resumed = load_checkpoint(tmp_path / "killed/last.pt")
    assert resumed.progress.step == whole.progress.step
    for key, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[key]), key


@pytest.mark.parametrize("name", PRESETS)
def test_its_graph_equals_the_torch_model(invoke: Invoke, tmp_path: Path, name: str) -> None:
    assert invoke(lm_train, *made_small(name), "--out", "run")[0] == 0
    assert invoke(lm_export, "run", "--out", "bundle")[0] == 0
    config: dict[str, Any] = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["parity"]["logits"] < 1e-4
    assert config["parity"]["greedy_equal"]
    assert config["num_hidden_layers"] == PRESETS[name].model["num_layers"]


def test_a_dropout_that_is_given_takes_the_place_of_all_that_the_recipe_has() -> None:
    def of(**given: Any) -> tuple[float | None, ...]:
        training = PRESETS["word"].with_options(given).training
        return training.dropout_input, training.dropout, training.dropout_output

    own = PRESETS["word"].training
    assert of() == (own.dropout_input, own.dropout, own.dropout_output)
    assert of(dropout=0.2) == (None, 0.2, None)
    assert of(dropout=0.2, dropout_output=0.6) == (None, 0.2, 0.6)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_is_for_every_family(family: str, name: str) -> None:
    """What a family has no use for is left out."""
    recipe = PRESETS[name].with_options({"model_type": family})
    assert recipe.model["model_type"] == family
    if family == "window":
        assert not recipe.training.locked_dropout
        with pytest.raises(ValueError, match="locked_dropout must be False with window"):
            PRESETS[name].with_options({"model_type": family, "locked_dropout": True})


@pytest.mark.parametrize(
    ("capabilities", "wide"),
    [
        ({}, "fp32"),  # a torch that does not tell
        ({"avx2": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_f": True, "avx512_vnni": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"arm_bf16": True}, "bf16"),
    ],
)
def test_bf16_is_picked_where_the_processor_has_it_and_layers_are_wide(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], wide: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision(512, torch.device("cpu")) == wide
    assert pick_precision(511, torch.device("cpu")) == "fp32"
