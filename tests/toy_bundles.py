"""Bundles of the fixture's vocabulary: one with n-gram tables, one of a family that no package knows."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from conftest import FIXTURE, TINY
from lm_runtime.bundle import CONFIG_FILE, LOGITS, MODELS, TABLES, TOKEN, read_bundle_config
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.ngram.estimation import estimate

WIDTH = 8
"""Of the toy family's embedding and state."""


def ngram_bundle(folder: Path, order: int = 3) -> Path:
    """The fixture with n-grams of data/tiny in place of its graphs."""
    tokenizer = Tokenizer.from_file(FIXTURE / "tokenizer.json")
    ids = np.array(tokenizer.encode((TINY / "train.txt").read_text(encoding="utf-8")), dtype=np.uint16)
    state = {"name": "context", "output": "context_out", "dtype": "int64", "shape": [None, order - 1]}
    shutil.copytree(FIXTURE, folder)
    shutil.rmtree(folder / "onnx")
    (folder / TABLES).parent.mkdir()
    estimate(ids, tokenizer.vocab_size, tokenizer.eos_id, order).write(folder / TABLES)
    set_config(folder, model_type="ngram", order=order, states=[state], opset=0)
    return folder


def toy_bundle(folder: Path) -> Path:
    """A family that no package knows: its state, ``sum``, adds up the embeddings of all tokens."""
    state = {"name": "sum", "output": "sum_out", "dtype": "float32", "shape": [None, WIDTH]}
    shutil.copytree(FIXTURE, folder)
    shutil.rmtree(folder / "onnx")
    set_config(
        folder, model_type="adder", hidden_size=0, embedding_dim=WIDTH, num_hidden_layers=0, states=[state]
    )
    config = read_bundle_config(folder)
    generator = np.random.default_rng(1)
    weights = {
        "embedding": generator.normal(size=(config.vocab_size, WIDTH)).astype(np.float32),
        "output": generator.normal(size=(WIDTH, config.vocab_size)).astype(np.float32) / 4,
        "time": np.array(1),
        "last": np.array([-1]),
        "end": np.array([np.iinfo(np.int64).max]),
        "times": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", TOKEN], ["x"]),  # (batch, time, width)
        helper.make_node("CumSum", ["x", "time"], ["added"]),
        helper.make_node("Unsqueeze", ["sum", "times"], ["before"]),
        helper.make_node("Add", ["added", "before"], ["sums"]),
        helper.make_node("MatMul", ["sums", "output"], [LOGITS]),
        helper.make_node("Slice", ["sums", "last", "end", "times"], ["of_the_last"]),
        helper.make_node("Squeeze", ["of_the_last", "times"], ["sum_out"]),
    ]
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, kind, shape)
            for name, kind, shape in (first, (state_name, TensorProto.FLOAT, ["batch", WIDTH]))
        ]
        for first, state_name in (
            ((TOKEN, TensorProto.INT64, ["batch", "time"]), "sum"),
            ((LOGITS, TensorProto.FLOAT, ["batch", "time", config.vocab_size]), "sum_out"),
        )
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "adder", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, config.metadata("fp32"))
    (folder / "onnx").mkdir()
    onnx.save(model, folder / MODELS["fp32"])
    set_config(folder)
    return folder


def set_config(folder: Path, **values: Any) -> None:
    """Change ``config.json``, and make its hashes those of the files that are there."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CONFIG_FILE]
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    data = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    (folder / CONFIG_FILE).write_text(json.dumps({**data, **values, "files": hashes}), encoding="utf-8")
