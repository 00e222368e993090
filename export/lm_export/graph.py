"""The step graph: the torch model traced to one ONNX graph, finished and checked."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from lm_export.forms.recurrent import TRANSLATIONS, RecurrentStep
from lm_runtime.bundle import LOGITS, LOGITS_FROM, TOKEN, BundleConfig
from lm_trainer.networks.base import LanguageModel
from lm_trainer.networks.recurrent import CELLS, RecurrentLM

OLDEST_OPSET = 15
"""Older ones fail in the conversion from the exporter's own operator set."""
NEWEST_OPSET = onnx.defs.onnx_opset_version()
"""What the installed onnx knows."""

_LARGEST_FILE = 2**31
# Below, torch's version converter hands over to onnx's; both were tested.
_TRACED_OPSET = 18
_LARGE_HEAD = 1 << 20
# Tracing at 1 would freeze an axis.
_TRACED_BATCH, _TRACED_TIME = 2, 3


class ExportError(Exception):
    """An export that did not come out as it must; nothing was written."""


def check_opset(opset: int) -> None:
    """Refuse an operator set that cannot be written.

    Raises:
        ValueError: with the bounds.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"opset must be from {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}")


def make_step_graph(model: LanguageModel, config: BundleConfig) -> onnx.ModelProto:
    """Trace ``model`` into the graph that ``config`` describes, and check it.

    Raises:
        ValueError: the operator set is out of its bounds.
        ExportError: the graph is not what it has to be.
    """
    check_opset(config.opset)
    names = [state.name for state in config.states]
    outputs = [state.output for state in config.states]
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    token = torch.zeros((_TRACED_BATCH, _TRACED_TIME), dtype=torch.int64)
    model = model.cpu().eval()
    module = RecurrentStep(model) if isinstance(model, RecurrentLM) else model
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            module,
            (token, model.zero_state(_TRACED_BATCH)),
            dynamo=True,
            opset_version=config.opset,
            input_names=[TOKEN, *names],
            output_names=[LOGITS, *outputs],
            dynamic_shapes=({0: batch, 1: time}, tuple({state.batch_axis: batch} for state in config.states)),
            custom_translation_table=TRANSLATIONS,
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise ExportError("torch's exporter returned no program")
        path = Path(folder) / "model.onnx"
        program.save(path)
        graph = onnx.load(path)
    onnx.helper.set_model_props(graph, config.metadata("fp32"))
    graph.producer_name = "steplm"
    if isinstance(model, RecurrentLM) and config.vocab_size * config.hidden_size >= _LARGE_HEAD:
        _let_skip_logits(graph.graph)
    for node in graph.graph.node:  # where in the program each node came from is of no use to a reader
        del node.metadata_props[:]
    _check(graph, config)
    return graph


def _let_skip_logits(graph: onnx.GraphProto) -> None:
    """Let the output layer leave out what comes before :data:`LOGITS_FROM`, as a prompt's reader wants it.

    The input has a default value, so that whoever knows only token and state never sees it. On the
    tutorial's model a prompt is read in two thirds of the time; the step takes 1 us more, which a small
    output layer would not pay back.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    add = made_by[LOGITS]
    product = next(made_by[name] for name in add.input if name in made_by)
    transpose = made_by[product.input[0]]
    between = {*product.output}
    while transpose.op_type == "MatMul":  # the projection
        between.update(transpose.output)
        transpose = made_by[transpose.input[0]]
    if (add.op_type, product.op_type, transpose.op_type) != ("Add", "MatMul", "Transpose"):
        raise ExportError("the output layer is not where it was looked for")
    hidden = transpose.input[0]  # (time, batch, hidden)
    last = onnx.numpy_helper.from_array(np.array([np.iinfo(np.int64).max]), "to_the_end")
    default = onnx.numpy_helper.from_array(np.zeros(1, dtype=np.int64), LOGITS_FROM)
    graph.initializer.extend([last, default])
    graph.input.append(onnx.helper.make_tensor_value_info(LOGITS_FROM, onnx.TensorProto.INT64, [1]))
    wanted = f"{hidden}_wanted"
    transpose.input[0] = wanted
    place = list(graph.node).index(transpose)
    graph.node.insert(place, onnx.helper.make_node("Slice", [hidden, LOGITS_FROM, "to_the_end"], [wanted]))
    # How many logits there are is no longer the number of tokens.
    stale = {*transpose.output, *between}
    kept = [value for value in graph.value_info if value.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _check(graph: onnx.ModelProto, config: BundleConfig) -> None:
    found = {entry.domain: entry.version for entry in graph.opset_import}
    if found != {"": config.opset}:
        raise ExportError(f"the exporter wrote opset {found}, not {config.opset}")
    initializers = {tensor.name for tensor in graph.graph.initializer}
    if cell := CELLS.get(config.model_type):
        recurrent = [node for node in graph.graph.node if node.op_type == cell.name]
        if len(recurrent) != config.num_hidden_layers:
            raise ExportError(f"{len(recurrent)} {cell.name} operators for {config.num_hidden_layers} layers")
        for node in recurrent:
            if not initializers.issuperset(node.input[1:4]):
                raise ExportError(f"the weights of {node.name} are no initializers")
    onnx.checker.check_model(graph, full_check=True)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)


def check_size(model: nn.Module) -> None:
    """Refuse a model whose weights do not fit one ONNX file.

    Raises:
        ValueError: with the size and the bound.
    """
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size >= _LARGEST_FILE:
        raise ValueError(f"the weights are {size:,} bytes; one ONNX file holds fewer than {_LARGEST_FILE:,}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of other packages, and of conversions that are checked here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
