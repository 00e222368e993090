"""Bundles with one damaged file, and what the runtime makes of them: python tests/damage.py BUNDLE FILE COUNT

Every second file has changed bytes, every other one a changed structure; hashes are those of the damaged
file, so that its reader is reached. Prints, as JSON, how many bundles loaded, how many were refused, the
processor's time in seconds and the memory's peak in megabytes; any other error ends it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_runtime
from lm_runtime.bundle import CONFIG_FILE
from lm_runtime.files import UnusableFileError

VALUES: list[Any] = [
    *[
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        1e308,
        -0.5,
        float("nan"),
        "",
        "x" * 1000,
        "<eos>",
        "\ud800",
    ],
    *["BPE", "WordLevel", "Unigram", "ByteLevel", "Split", [], [1, 2], [[]], {}, {"type": "x"}],
    *[{"Regex": "("}, {"String": ""}, {"type": "Sequence", "normalizers": []}, {"type": "Precompiled"}],
]
"""What stands in the place of a JSON value."""


def change_bytes(content: bytes, generator: random.Random) -> bytes:
    """Flip, cut, repeat or insert."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(changed) or 1)
        match generator.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([generator.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes(
                    [(changed[at : at + 1] or b"\0")[0] ^ 1 << generator.randrange(8)]
                )
            case 2:
                del changed[at : at + generator.randint(1, 64)]
            case 3:
                changed[at:at] = changed[at : at + generator.randint(1, 64)]
            case 4:
                changed[at : at + 8] = generator.choice([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7])
    return bytes(changed)


def change_json(content: bytes, generator: random.Random) -> bytes:
    """Replace or remove a value, or add one."""
    data = json.loads(content)
    for _ in range(generator.randint(1, 3)):
        place: Any = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = generator.choice(keys) if keys else None
            inner = place[key] if keys else None
            if not isinstance(inner, dict | list) or not inner or generator.random() < 0.3:
                break
            place = inner
        if key is None:
            continue
        match generator.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[generator.choice(["", "type", "x"])] = copy.deepcopy(generator.choice(VALUES))
            case _:
                place[key] = copy.deepcopy(generator.choice(VALUES))
        if not data:
            break
    return json.dumps(data).encode("utf-8", "surrogatepass")


def change_graph(content: bytes, generator: random.Random) -> bytes:
    """Change a message of the graph: a node, its attributes, a tensor, an input, an output."""
    import onnx
    from onnx import TensorProto

    model = onnx.load_from_string(content)
    graph = model.graph
    for _ in range(generator.randint(1, 3)):
        node = generator.choice(graph.node)
        tensor = generator.choice(graph.initializer)
        value = generator.choice([*graph.input, *graph.output])
        match generator.randrange(9):
            case 0:
                node.op_type = generator.choice(
                    ["Loop", "Tile", "Expand", "Concat", "LSTM", "Gather", "Add", ""]
                )
            case 1 if node.input:
                node.input[generator.randrange(len(node.input))] = generator.choice(
                    [name for other in graph.node for name in (*other.input, *other.output)]
                )
            case 2 if node.attribute:
                attribute = generator.choice(node.attribute)
                attribute.i = generator.choice([-1, 0, 1, 2**31, 2**62])
                attribute.type = generator.choice([0, 1, 2, 3, 4, 5, 7, 8])
            case 3 if tensor.dims:
                axis = generator.randrange(len(tensor.dims))
                tensor.dims[axis] = generator.choice([-1, 0, 1, 2, 2**31, 2**40, 2**62])
            case 4:
                tensor.data_type = generator.choice([0, 1, 6, 7, 8, 9, 10, 11, 99])
            case 5:
                tensor.raw_data = generator.randbytes(generator.randrange(64))
            case 6 if value.type.tensor_type.shape.dim:
                dimension = generator.choice(value.type.tensor_type.shape.dim)
                dimension.dim_value = generator.choice([-1, 0, 1, 7, 2**31, 2**62])
            case 7 if value.type.tensor_type.elem_type:
                value.type.tensor_type.elem_type = generator.choice([0, 6, TensorProto.INT64, 8, 99])
            case 8:
                node.output[0] = generator.choice(["logits", "h_out", "x", ""])
    return model.SerializeToString()


def change_tables(content: bytes, generator: random.Random) -> bytes:
    """Change the header, and make its length fit again."""
    header, rest = content.split(b"\n", 1)
    changed = change_json(header, generator)
    return changed.replace(b"\n", b" ").ljust(len(header)) + b"\n" + rest


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": change_json,
    ".onnx": change_graph,
    ".ngram": change_tables,
}


def main(bundle: Path, name: str, count: int) -> None:
    generator = random.Random(name)
    content = (bundle / name).read_bytes()
    change = CHANGES[Path(name).suffix]
    outcomes = {"loaded": 0, "refused": 0}
    lm_runtime.load(bundle, provider="cpu", threads=1)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of(bundle, Path(temporary))
        for number in range(count):
            damaged = (change_bytes, change)[number % 2](content, generator)
            (folder / name).write_bytes(damaged)
            if name != CONFIG_FILE:
                repair_hash(bundle, folder, name, damaged)
            try:
                model = lm_runtime.load(folder, provider="cpu", threads=1)
                list(lm_runtime.score_texts(model, ["the keeper xyzzy é"]))
                outcomes["loaded"] += 1
            except UnusableFileError as error:
                assert "\n" not in str(error), str(error)
                outcomes["refused"] += 1
    seconds = time.process_time() - begun
    print(json.dumps({**outcomes, "seconds": seconds, "megabytes": peak_megabytes()}))


def peak_megabytes() -> float:
    """The process's peak; getrusage has that of the process before this program, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def copy_of(bundle: Path, folder: Path) -> Path:
    for path in bundle.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(bundle)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def repair_hash(bundle: Path, folder: Path, name: str, content: bytes) -> None:
    config = json.loads((bundle / CONFIG_FILE).read_text())
    config["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / CONFIG_FILE).write_text(json.dumps(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
