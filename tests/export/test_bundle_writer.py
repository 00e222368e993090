"""What a bundle holds beside its models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import torch

import lm_runtime
from conftest import run_command
from lm_export.bundle_writer import _write_config
from lm_runtime.bundle import read_bundle_config
from lm_trainer.families import FAMILIES


def test_the_default_number_of_tokens_has_the_name_that_other_readers_look_for(family_bundle: Path) -> None:
    defaults = json.loads((family_bundle / "generation_config.json").read_text())
    assert defaults == {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "max_new_tokens": 200}
    assert lm_runtime.load(family_bundle).defaults.max_tokens == 200


def test_every_file_is_hashed_in_bounded_memory(small_bundle: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(read_bundle_config(small_bundle), files={})
    (tmp_path / "onnx").mkdir()
    with (tmp_path / "onnx/large").open("wb") as file:
        os.truncate(file.fileno(), 64 << 20)
    tracemalloc.start()
    written = _write_config(tmp_path, config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written.files == {"onnx/large": hashlib.sha256(bytes(64 << 20)).hexdigest()}
    assert read_bundle_config(tmp_path) == written
    assert peak < 4 << 20


def test_the_bundle_carries_its_proof_and_its_facts(small_bundle: Path) -> None:
    config = json.loads((small_bundle / "config.json").read_text())
    proof = config["parity"]
    assert proof["steps"] >= 200
    assert proof["batches"] == [1, 8]
    assert 0 <= max(proof["logits"], proof["states"]) < proof["tolerance"] == 1e-4
    assert proof["greedy_equal"] is True
    assert config["opset"] == 17
    assert config["quantization"]["cost_percent"] <= 1
    card = (small_bundle / "README.md").read_text()
    assert "Validation perplexity" in card
    assert "parity" in card.lower()


def test_a_bundle_and_its_card_name_the_family(family_bundle: Path) -> None:
    config = lm_runtime.load(family_bundle).config
    names = ", ".join(state.name for state in config.states)
    card = (family_bundle / "README.md").read_text()
    assert f"`(token, {names}) -> (logits, {names})`" in card
    assert FAMILIES[config.model_type].description in card
    if config.model_type != "ngram":
        assert f"In int8: {', '.join(config.quantization['layers']['int8'])}" in card
        assert "processors with VNNI and without compute the same" in card
    assert (config.model_type == "window") == (config.window == 5)
    assert (config.model_type == "ngram") == (config.order == 5) == (config.opset == 0)
    assert (names == "context") == (config.model_type in ("window", "ngram"))
    assert config.num_hidden_layers == {"window": 1, "ngram": 0}.get(config.model_type, 2)
    assert config.parity["greedy_equal"] is True


def test_the_newest_checkpoint_of_an_unfinished_run_is_exported_too(small_run: Path, tmp_path: Path) -> None:
    """In the middle of an epoch there is no figure for its weights, and the card says so."""
    content = torch.load(small_run / "last.pt", weights_only=True)
    content["progress"]["window"] = 7
    torch.save(content, tmp_path / "early.pt")
    run_command("lm-export", "early.pt", "--out", "bundle", cwd=tmp_path)
    assert "between two validations" in (tmp_path / "bundle/README.md").read_text()
