"""The step graph: the torch model traced to one ONNX graph, finished and checked."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

from lm_export.errors import ExportError
from lm_export.forms.registry import form_of
from lm_export.hidden import add_hidden
from lm_runtime.bundle import LOGITS, TOKEN, BundleConfig
from lm_trainer.networks.base import LanguageModel

OLDEST_OPSET = 15
"""Older ones fail in the conversion from the exporter's own operator set."""
NEWEST_OPSET = onnx.defs.onnx_opset_version()
"""The newest operator set that the installed onnx knows."""

_LARGEST_FILE = 2**31
# Tracing at 1 would freeze an axis.
_TRACED_BATCH, _TRACED_TIME = 2, 3


def check_opset(opset: int) -> None:
    """Refuse an operator set that cannot be written.

    Raises:
        ValueError: with the bounds.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"opset must be from {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}")


def make_step_graph(model: LanguageModel, config: BundleConfig, *, adaptive: bool = False) -> onnx.ModelProto:
    """Trace ``model``, in its family's form, into the graph that ``config`` describes, and check it.

    Args:
        model: the network.
        config: its sizes, its states, and the operator set.
        adaptive: whether the graph has the output ``hidden``.

    Raises:
        ValueError: the operator set or the size of the weights is out of its bounds.
        ExportError: the graph fails a check.
    """
    check_opset(config.opset)
    check_size(model)
    form = form_of(config.model_type)
    outputs = [LOGITS, *(state.output for state in config.states)]
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    token = torch.zeros((_TRACED_BATCH, _TRACED_TIME), dtype=torch.int64)
    model = model.cpu().eval()
    with _silenced(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            form.module(model),
            (token, model.zero_state(_TRACED_BATCH)),
            dynamo=True,
            opset_version=config.opset,
            input_names=[TOKEN, *(state.name for state in config.states)],
            output_names=outputs,
            dynamic_shapes=({0: batch, 1: time}, tuple({state.batch_axis: batch} for state in config.states)),
            custom_translation_table=dict(form.translations),
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
    if adaptive:
        add_hidden(graph.graph, model.head.in_features)
    form.finish(graph.graph, config)
    for node in graph.graph.node:  # the place in the program that each node came from
        del node.metadata_props[:]
    _check(graph, config)
    form.check(graph.graph, config)
    return graph


def _check(graph: onnx.ModelProto, config: BundleConfig) -> None:
    found = {entry.domain: entry.version for entry in graph.opset_import}
    if found != {"": config.opset}:
        raise ExportError(f"the exporter wrote opset {found}, not {config.opset}")
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
def _silenced() -> Iterator[None]:
    """Silence the exporter's remarks on other packages, and on conversions that are checked here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
