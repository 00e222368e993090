"""A family is one thing: one that is defined here goes the whole way without a change in any package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import SMALL, TINY, Invoke, one_line
from lm_export.command import main as lm_export
from lm_runtime.bundle import StateTensor
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_trainer.command import main as lm_train
from lm_trainer.config import ModelConfig
from lm_trainer.families import FAMILIES, Family, Implementation, implementation, register
from lm_trainer.networks.base import LanguageModel, TorchState
from lm_trainer.networks.dropout import NO_DROPOUT, Dropout
from lm_trainer.networks.family import NetworkFamily
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.training.loop import Trainer

DECAY = 0.5
PERPLEXITY_TOLERANCE = 1e-3
"""Relative, between torch's and onnxruntime's sums of float32 losses."""


class DecayLM(LanguageModel):
    """A bag of words that forgets: the sum of the embeddings, halved at each step, and an output layer."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__(config, (StateTensor("bag", "bag_out", "float32", (None, config.embedding_dim)),))
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.head = nn.Linear(config.embedding_dim, config.vocab_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)

    def read(
        self, token: Tensor, state: TorchState, dropout: Dropout = NO_DROPOUT
    ) -> tuple[Tensor, TorchState]:
        time = token.shape[1]
        age = torch.arange(time)[:, None] - torch.arange(time)  # (time, time)
        weights = torch.where(age >= 0, DECAY ** age.clamp(min=0).float(), 0.0)
        before = DECAY ** (1 + torch.arange(time).float())[:, None]  # (time, 1)
        bag = weights @ self.embedding(token) + before * state[0][:, None]  # (batch, time, embedding)
        return dropout.on(bag, dropout.output), (bag[:, -1],)


IMPLEMENTATION: Implementation = NetworkFamily(DecayLM)


@pytest.fixture
def toy() -> Iterator[None]:
    unused = "it has one layer"
    register(
        "toy",
        Family(
            "bag of words that forgets",
            __name__,
            {name: (value, unused) for name, value in [("num_layers", 1), ("tied", False), ("window", 0)]}
            | {name: (value, unused) for name, value in [("order", 0), ("projection", 0)]},
            fixed_training={"weight_drop": (0.0, "it has no recurrent weights")},
        ),
    )
    yield
    del FAMILIES["toy"]


TOY: list[object] = [TINY, "--model", "toy", *SMALL, "--layers", 1, "--out", "run"]


@pytest.mark.usefixtures("toy")
def test_a_family_from_outside_goes_the_whole_way(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def interrupt(self: Any) -> Tensor:
        loss = step(self)
        self._signals.stop = self.progress.step == 40
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        assert invoke(lm_train, *TOY, "--epochs", 3)[0] == 130
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 0
    assert "resumed from run/last.pt: step 40 of " in err
    assert load_checkpoint(tmp_path / "run").model_config.model_type == "toy"
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test"]["perplexity"] < 0.95 * summary["baselines"]["unigram"]
    assert "bag of words that forgets" in (tmp_path / "run/report.html").read_text()

    assert invoke(lm_export, "run", "--out", "bundle")[0] == 0
    code, out, _ = invoke(lm_generate, "bundle", "--prompt", "the", "--seed", 1)
    assert code == 0
    assert len(out.split()) > 5
    code, out, _ = invoke(lm_score, "bundle", TINY / "test.txt", "--json")
    assert code == 0
    expected = summary["test"]["perplexity"]
    assert json.loads(out)["perplexity"] == pytest.approx(expected, rel=PERPLEXITY_TOLERANCE)

    assert invoke(lm_train, TINY, "--init", "run", "--epochs", 1, "--out", "tuned", *SMALL[-6:])[0] == 0


@pytest.mark.usefixtures("toy")
def test_its_bounds_are_checked_as_those_of_every_family(invoke: Invoke) -> None:
    code, _, err = invoke(lm_train, *TOY, "--layers", 2)
    assert (code, "num_layers must be 1 with toy (it has one layer), got 2" in one_line(err)) == (2, True)


def test_a_family_that_is_not_registered_is_unknown(invoke: Invoke) -> None:
    code, _, err = invoke(lm_train, *TOY)
    assert (code, "Invalid value for '--model'" in one_line(err)) == (2, True)
    with pytest.raises(ValueError, match=r"model_type must be one of lstm, .+ got toy"):
        implementation("toy")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="there is a family lstm already"):
        register("lstm", FAMILIES["gru"])
