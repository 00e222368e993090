"""sherpa-onnx: a recurrent model as its recognizers read one, in shallow fusion and in rescoring.

sherpa-onnx takes tensors by their place, not by their name. ``online.onnx`` is ``(x, h, c)`` to
``(log-probabilities, h, c)``: the step graph with a log-softmax after its logits, for shallow fusion in
streaming recognizers. ``offline.onnx`` is ``(x, x_lens)`` to ``nll``: the negative log-likelihood of whole
texts, ``<eos>`` included. Both are the step graph with nodes added, in fp32 and, if the bundle has it, int8.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lm_export.errors import ExportError
from lm_runtime.bundle import LOGITS, LOGITS_FROM, MODELS, TOKEN, BundleConfig
from lm_runtime.models.protocol import BundleModel
from lm_runtime.softmax import log_softmax, log_softmax_at

FOLDER = "sherpa"
ONLINE = {"fp32": f"{FOLDER}/online.onnx", "int8": f"{FOLDER}/online.int8.onnx"}
OFFLINE = {"fp32": f"{FOLDER}/offline.onnx", "int8": f"{FOLDER}/offline.int8.onnx"}

TOLERANCE = 1e-4
"""The largest difference allowed in the log-probability of a token. Another order of float32 sums gave 4e-6;
a missing ``<eos>`` or a padded token that is counted gives differences of 1 and more."""

_STEPS = 64
_LENGTHS = (17, 1, 40, 0)
"""Of the texts that the offline graph is proven on: one call, padded."""
_DUMMY = "c"
_BLANK = 0
"""The id that sherpa-onnx's recognizers have for no token at all."""


def refusal(config: BundleConfig) -> str:
    """As :meth:`lm_export.formats.registry.FormatWriter.refusal`."""
    wanted = [config.num_hidden_layers, None, config.hidden_size]
    states = [(state.dtype, list(state.shape)) for state in config.states]
    if len(states) in (1, 2) and all(state == ("float32", wanted) for state in states):
        return ""
    return "sherpa-onnx reads recurrent models, whose state is (layers, batch, hidden)"


def write(model: BundleModel) -> None:
    """As :meth:`lm_export.formats.registry.FormatWriter.write`."""
    (model.folder / FOLDER).mkdir()
    for precision in _precisions(model.folder):
        for make, names in ((online_graph, ONLINE), (offline_graph, OFFLINE)):
            graph = make(onnx.load(model.folder / MODELS[precision]), model.config)
            onnx.checker.check_model(graph, full_check=True)
            onnx.save(graph, model.folder / names[precision])


def prove(model: BundleModel, held_out: NDArray[np.int64]) -> str:
    """As :meth:`lm_export.formats.registry.FormatWriter.prove`."""
    worst = 0.0
    for precision in _precisions(model.folder):
        run = _runner(model.folder / MODELS[precision])
        for difference in (
            _online_difference(run, _runner(model.folder / ONLINE[precision]), model.config, held_out),
            _offline_difference(run, _runner(model.folder / OFFLINE[precision]), model.config, held_out),
        ):
            if not difference < TOLERANCE:
                raise ExportError(
                    f"the {precision} graphs for sherpa-onnx differ from the step graph by {difference:.1e} "
                    "in a log-probability; no bundle was written"
                )
            worst = max(worst, difference)
    proof = f"{_STEPS} steps and {len(_LENGTHS)} texts: largest difference {worst:.1e} in a log-probability"
    if model.config.eos_token_id == _BLANK:
        proof += f"; id {_BLANK} ends a line, not a recognizer's blank: only a vocabulary made for it fits"
    return proof


def online_graph(step: onnx.ModelProto, config: BundleConfig) -> onnx.ModelProto:
    """The step graph with log-probabilities in place of logits, and always ``h`` and ``c``."""
    graph = step.graph
    _without_logits_from(graph)
    logits = f"{LOGITS}_raw"
    _rename_output(graph, LOGITS, logits)
    graph.node.append(helper.make_node("LogSoftmax", [logits], [LOGITS], axis=-1))
    if len(config.states) == 1:  # sherpa-onnx feeds an LSTM's two
        shape: list[int | str | None] = [config.num_hidden_layers, "batch", config.hidden_size]
        graph.input.append(helper.make_tensor_value_info(_DUMMY, TensorProto.FLOAT, shape))
        graph.output.append(helper.make_tensor_value_info(f"{_DUMMY}_out", TensorProto.FLOAT, shape))
        graph.node.append(helper.make_node("Identity", [_DUMMY], [f"{_DUMMY}_out"]))
    return step


def offline_graph(step: onnx.ModelProto, config: BundleConfig) -> onnx.ModelProto:
    """``x`` int64 ``(N, L)``, zero-padded, and ``x_lens`` int64 ``(N,)`` to ``nll`` float32 ``(N,)``.

    Each text is read from the zero state after ``<eos>``, and ``<eos>`` is predicted at its end.
    """
    graph = step.graph
    _without_logits_from(graph)
    del graph.value_info[:]
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "first": np.array(0),
        "step_of_one": np.array(1),
        "eos": np.array([config.eos_token_id]),
        "layers": np.array([config.num_hidden_layers]),
        "hidden": np.array([config.hidden_size]),
        "last_axis": np.array([-1]),
        "no_loss": np.array(0, dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, _own(name)) for name, value in constants.items())

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        names = [name if name in ("x", "x_lens") or name == LOGITS else _own(name) for name in inputs]
        return helper.make_node(operator, names, [_own(output)], **attributes)

    int64_zero = numpy_helper.from_array(np.array([0]))
    before = [
        node("Shape", ["x"], "texts", start=0, end=1),
        node("Concat", ["texts", "one"], "column_shape", axis=0),
        node("Expand", ["eos", "column_shape"], "start_column"),
        node("ConstantOfShape", ["column_shape"], "padding_column", value=int64_zero),
        node("Concat", ["start_column", "x"], "read", axis=1),  # (N, 1 + L)
        node("Concat", ["layers", "texts", "hidden"], "state_shape", axis=0),
        node("ConstantOfShape", ["state_shape"], "zero_state"),
        helper.make_node("Identity", [_own("read")], [TOKEN]),
        *(helper.make_node("Identity", [_own("zero_state")], [state.name]) for state in config.states),
    ]
    after = [
        node("Concat", ["x", "padding_column"], "padded", axis=1),  # (N, L + 1)
        node("Shape", ["padded"], "width", start=1, end=2),
        node("Squeeze", ["width", "zero"], "steps"),
        node("Range", ["first", "steps", "step_of_one"], "places"),
        node("Unsqueeze", ["x_lens", "last_axis"], "lengths"),
        node("Equal", ["places", "lengths"], "is_end"),
        node("Where", ["is_end", "eos", "padded"], "targets"),
        node("LessOrEqual", ["places", "lengths"], "is_text"),
        node("LogSoftmax", [LOGITS], "log_probabilities", axis=-1),
        node("Unsqueeze", ["targets", "last_axis"], "target_column"),
        node("GatherElements", ["log_probabilities", "target_column"], "chosen_column", axis=-1),
        node("Squeeze", ["chosen_column", "last_axis"], "chosen"),
        node("Where", ["is_text", "chosen", "no_loss"], "of_text"),
        node("ReduceSum", ["of_text", "last_axis"], "log_probability", keepdims=0),
        helper.make_node("Neg", [_own("log_probability")], ["nll"]),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.extend(
        [
            helper.make_tensor_value_info("x", TensorProto.INT64, ["N", "L"]),
            helper.make_tensor_value_info("x_lens", TensorProto.INT64, ["N"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("nll", TensorProto.FLOAT, ["N"]))
    return step


def _own(name: str) -> str:
    """A name that no tensor of the step graph has."""
    return f"sherpa_{name}"


def _precisions(folder: Path) -> list[str]:
    return [precision for precision, name in MODELS.items() if (folder / name).is_file()]


def _without_logits_from(graph: onnx.GraphProto) -> None:
    """Leave the optional input at its default: what is taken by its place must not be optional."""
    for tensor in graph.input:
        if tensor.name == LOGITS_FROM:
            graph.input.remove(tensor)
            return


def _rename_output(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]


Run = Callable[[list[NDArray[np.generic]]], list[NDArray[np.float32]]]


def _runner(path: Path) -> Run:
    """Run a graph with its inputs in their order, as sherpa-onnx does."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]

    def run(arrays: list[NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(None, dict(zip(names, arrays, strict=True)))
        return found

    return run


def _zeros(config: BundleConfig, batch: int, count: int) -> list[NDArray[np.generic]]:
    shape = (config.num_hidden_layers, batch, config.hidden_size)
    return [np.zeros(shape, dtype=np.float32) for _ in range(count)]


def _online_difference(step: Run, online: Run, config: BundleConfig, held_out: NDArray[np.int64]) -> float:
    """The largest difference in a log-probability, step by step, each graph with its own state."""
    states = _zeros(config, 1, len(config.states)), _zeros(config, 1, 2)
    worst = 0.0
    for token in [config.bos_token_id, *np.resize(held_out, _STEPS - 1).tolist()]:
        x = np.array([[token]])
        logits, *own = step([x, *states[0]])
        found, *after = online([x, *states[1]])
        states = list(own), list(after)
        worst = max(worst, float(np.abs(found[0, 0] - log_softmax(logits[0, 0])).max()))
    return worst


def _offline_difference(step: Run, offline: Run, config: BundleConfig, held_out: NDArray[np.int64]) -> float:
    """The largest difference in a text's log-probability, divided by its tokens."""
    width = max(_LENGTHS)
    x = np.zeros((len(_LENGTHS), width), dtype=np.int64)
    targets = np.full((len(_LENGTHS), width + 1), config.eos_token_id)
    for row, length in enumerate(_LENGTHS):
        x[row, :length] = targets[row, :length] = np.resize(held_out[row:], length)
    (found,) = offline([x, np.array(_LENGTHS)])
    token = np.concatenate([np.full((len(x), 1), config.bos_token_id), x], axis=1)
    logits, *_ = step([token, *_zeros(config, len(x), len(config.states))])
    worst = 0.0
    for row, length in enumerate(_LENGTHS):
        expected = log_softmax_at(logits[row, : length + 1], targets[row, : length + 1])
        difference = float(-found[row]) - float(expected.sum(dtype=np.float64))
        worst = max(worst, abs(difference) / (length + 1))
    return worst
