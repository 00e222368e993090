"""What a graph's file may have is looked at before onnxruntime is given it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lm_runtime
from conftest import FIXTURE
from damage import repair_hash
from lm_runtime.bundle import MODELS
from lm_runtime.files import UnusableFileError
from lm_runtime.models.graph_file import OPERATORS, check_graph_file

Change = Callable[[onnx.ModelProto], object]


def fixture_graph() -> onnx.ModelProto:
    return onnx.load(FIXTURE / MODELS["fp32"])


def endless() -> onnx.NodeProto:
    """A loop whose condition stays true."""
    true = helper.make_node("Identity", ["condition"], ["again"])
    count, condition, again = (
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (
            ("n", TensorProto.INT64),
            ("condition", TensorProto.BOOL),
            ("again", TensorProto.BOOL),
        )
    )
    body = helper.make_graph([true], "body", [count, condition], [again])
    return helper.make_node("Loop", ["", ""], [], body=body)


def doubling(model: onnx.ModelProto) -> None:
    """Functions of which each calls the one before twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for number in range(40):
        called = ("own", f"f{number - 1}") if number else ("", "Identity")
        nodes = [
            helper.make_node(called[1], [source], [target], domain=called[0])
            for source, target in (("x", "y"), ("y", "z"))
        ]
        model.functions.append(helper.make_function("own", f"f{number}", ["x"], ["z"], nodes, opsets))


def external(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def nested_external(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "t")
    external(tensor)
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


HOSTILE: list[tuple[Change, str]] = [
    (lambda m: m.graph.node.append(endless()), "has subgraphs"),
    (lambda m: m.graph.node.append(helper.make_node("Loop", [], [])), "has the operator 'Loop'"),
    (lambda m: m.graph.node.append(helper.make_node("Scan", [], [])), "has the operator 'Scan'"),
    (doubling, "has functions"),
    (lambda m: external(m.graph.initializer[0]), "has external data"),
    (nested_external, "has external data"),
    (lambda m: m.graph.sparse_initializer.add().dims.append(3), "has sparse tensors"),
    (lambda m: m.opset_import.append(helper.make_opsetid("own", 1)), "has operators of 'own'"),
    (lambda m: m.graph.node.append(helper.make_node("Run", [], [], domain="own")), "the operator 'own:Run'"),
    (
        lambda m: m.graph.node.append(helper.make_node("EPContext", [], [], domain="com.microsoft")),
        "has the operator 'com.microsoft:EPContext'",
    ),
    (lambda m: setattr(m.training_info.add().algorithm, "name", "x"), "has training information"),
    (
        lambda m: m.graph.node.extend(helper.make_node("Add", [], []) for _ in range(20_001)),
        "20,0.. operators",
    ),
    (lambda m: m.ClearField("graph"), "not an ONNX file, or damaged"),
    (lambda m: m.graph.initializer[0].dims.append(1 << 40), "has a dimension of 1099511627776"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_what_no_exporter_writes_is_refused_by_name(tmp_path: Path, change: Change, message: str) -> None:
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    model = fixture_graph()
    change(model)
    content = model.SerializeToString()
    (bundle / MODELS["fp32"]).write_bytes(content)
    repair_hash(FIXTURE, bundle, MODELS["fp32"], content)
    with pytest.raises(UnusableFileError, match=message) as error:
        lm_runtime.load(bundle)
    assert str(error.value).startswith(f"{bundle / MODELS['fp32']}: ")
    assert "\n" not in str(error.value)


def test_onnxruntime_s_own_format_does_not_pass_for_onnx() -> None:
    with pytest.raises(UnusableFileError, match="not an ONNX file"):
        check_graph_file(Path("x"), b"\x18\0\0\0ORTM" + bytes(64))


def test_weights_that_double_as_they_are_loaded_take_no_memory(tmp_path: Path) -> None:
    """Of what onnxruntime computes before the first step, the graph's file is the measure."""
    bundle = Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))
    model = fixture_graph()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "d0"))
    nodes = [helper.make_node("Concat", [f"d{n}"] * 2, [f"d{n + 1}"], axis=0) for n in range(29)]
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "plain"
    size = helper.make_node("ReduceMax", ["d29"], ["largest"], keepdims=0)
    nodes += [size, helper.make_node("Add", ["plain", "largest"], ["logits"])]
    model.graph.node.extend(nodes)
    content = model.SerializeToString()
    (bundle / MODELS["fp32"]).write_bytes(content)
    repair_hash(FIXTURE, bundle, MODELS["fp32"], content)
    check_graph_file(bundle / MODELS["fp32"], content)  # there is nothing to see in its structure
    import onnxruntime as ort

    from lm_runtime.models.onnx import _open_session

    begun = time.process_time()
    session = _open_session(bundle / MODELS["fp32"], content, "cpu", 1)
    assert isinstance(session, ort.InferenceSession)
    assert time.process_time() - begun < 2  # 2 GiB of zeros alone take longer


def test_every_family_s_graphs_pass(family_bundle: Path) -> None:
    for name in MODELS.values():
        path = family_bundle / name
        if path.exists():
            check_graph_file(path, path.read_bytes())


def test_the_allowed_operators_are_onnx_s_own_and_have_no_subgraphs() -> None:
    for name in OPERATORS[""]:
        schema = onnx.defs.get_schema(name)
        assert not any(
            entry.type == onnx.defs.OpSchema.AttrType.GRAPH for entry in schema.attributes.values()
        )
