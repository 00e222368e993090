"""The output ``hidden`` of adaptive graphs is what torch's output layer reads, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import lm_runtime
from conftest import Invoke, one_line, run_command, tree
from lm_export.command import main as lm_export
from lm_export.hidden import add_hidden
from lm_runtime.bundle import HIDDEN, MODELS
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.state import initial_state
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

PARITY = 1e-5
"""float32's rounding; the layers gave 1e-6."""


def test_every_recurrent_family_shows_what_its_output_layer_reads(tmp_path: Path, family_run: Path) -> None:
    network, _ = restore_model(load_checkpoint(family_run))
    if not hasattr(network, "layers"):
        result = run_command("lm-export", family_run, "--out", "b", "--adaptive", cwd=tmp_path, code=2)
        assert "--adaptive is for recurrent models" in one_line(result.stderr)
        assert tree(tmp_path) == set()
        return
    result = run_command("lm-export", family_run, "--out", "b", "--adaptive", cwd=tmp_path)
    assert "hidden: largest difference" in result.stderr
    model = lm_runtime.load(tmp_path / "b", provider="cpu")
    assert isinstance(model, OnnxModel)
    graph = onnx.load(tmp_path / "b" / MODELS["fp32"])
    assert graph.graph.output[-1].name == HIDDEN
    token = np.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected, _ = network.read(torch.from_numpy(token), network.zero_state(2))
    logits, hidden, state = model.step_hidden(token, initial_state(model, 2))
    np.testing.assert_allclose(hidden, expected.numpy(), atol=PARITY, rtol=0)
    alone, after = model.step(token, initial_state(model, 2))
    np.testing.assert_array_equal(alone, logits)
    read, advanced = model.advance_hidden(token, initial_state(model, 2))
    np.testing.assert_array_equal(read, hidden)
    for one, two, three in zip(state, after, advanced, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_what_is_not_equal_is_not_written(
    invoke: Invoke, tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(graph: onnx.GraphProto, width: int) -> None:
        add_hidden(graph, width)
        twice = onnx.helper.make_node("Add", [HIDDEN, HIDDEN], ["twice"])
        graph.node.append(twice)
        graph.output[-1].name = "twice"
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [{HIDDEN: "once", "twice": HIDDEN}.get(name, name) for name in names]
        graph.output[-1].name = HIDDEN

    monkeypatch.setattr("lm_export.graph.add_hidden", shifted)
    code, out, err = invoke(lm_export, small_run, "--out", "bundle", "--adaptive")
    assert (code, out) == (1, "")
    assert "hidden differs from the checkpoint's by" in one_line(err)
    assert tree(tmp_path) == set()
