"""What other software makes of one bundle, against this project's own figures: a table in Markdown.

Run it as python tests/benchmarks/consumers.py; it trains small models on data/tiny, and installs two npm
packages into a temporary folder. sherpa-onnx's recognizers are scripted, as in tests/export/test_sherpa.py.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "export"), str(ROOT / "tests" / "runtime")]

import test_other_readers as readers  # type: ignore[import-not-found]  # noqa: E402
import test_sherpa as recognizers  # type: ignore[import-not-found]  # noqa: E402

import lm_runtime  # noqa: E402
from conftest import SMALL, TINY, run_command  # noqa: E402
from lm_export.formats import sherpa  # noqa: E402
from lm_runtime.bundle import MODELS  # noqa: E402
from lm_runtime.lm_eval import StepLM  # noqa: E402
from lm_runtime.scoring.texts import score_ids  # noqa: E402

_KINDS = (("word", 180), ("words", 180), ("char", 100), ("bpe", 400))
_WEB = "onnxruntime-web@1.30.0"
_STEPS = """
import * as ort from "onnxruntime-web";
import { readFileSync } from "fs";
const { model, ids, states } = JSON.parse(readFileSync(0));
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)));
const tensor = (type, data, shape) => new ort.Tensor(type, data, shape);
let state = states.map(([name, shape]) =>
  [name, tensor("float32", new Float32Array(shape.reduce((a, b) => a * b)), shape)]);
const rows = [];
for (const id of ids) {
  const token = tensor("int64", BigInt64Array.from([BigInt(id)]), [1, 1]);
  const found = await session.run({ token, ...Object.fromEntries(state) });
  rows.push(Array.from(found.logits.data));
  state = states.map(([name]) => [name, found[name + "_out"]]);
}
console.log(JSON.stringify(rows));
"""

Row = tuple[str, str, str]


def main() -> None:
    print("| reader | version | largest difference |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for row in rows(Path(name)):
            print(f"| {' | '.join(row)} |", flush=True)


def rows(folder: Path) -> Iterator[Row]:
    node_folder = installed(folder / "node")
    bundles = {}
    for kind, size in _KINDS:
        recipe = [*SMALL, "--tokenizer", kind, "--vocab-size", size, "--epochs", 3]
        run_command("lm-train", TINY, "--out", f"{kind}-run", *recipe, cwd=folder)
        formats = ["--quantize", "int8", "--format", "sherpa"]
        run_command("lm-export", f"{kind}-run", "--out", kind, *formats, cwd=folder)
        bundles[kind] = folder / kind
    texts = [text for split in ("train", "valid", "test") for text in fragments(TINY / f"{split}.txt")]
    for library, reader in (("tokenizers", readers.library), ("transformers", readers.transformers_library)):
        found = compared(bundles, texts, functools.partial(read_all, reader, texts))
        yield library, version(library), found
    found = compared(bundles, texts, functools.partial(readers.in_node, node_folder, texts=texts))
    yield "@huggingface/tokenizers (Node)", readers.PACKAGE.rpartition("@")[2], found
    for precision in ("fp32", "int8"):
        yield (
            f"onnxruntime-web, {precision}",
            _WEB.rpartition("@")[2],
            in_web(node_folder, bundles["word"], precision),
        )
    for precision in ("fp32", "int8"):
        found = online(folder, bundles["word"], precision)
        yield f"sherpa-onnx, shallow fusion, {precision}", version("sherpa-onnx"), found
    for precision in ("fp32", "int8"):
        yield (
            f"sherpa-onnx, rescoring, {precision}",
            version("sherpa-onnx"),
            offline(folder, bundles["word"], precision),
        )
    yield "lm-evaluation-harness", version("lm_eval"), rolling(bundles["bpe"])


def fragments(path: Path) -> Iterator[str]:
    """A file as one text, and 40 parts of it with other line ends and special tokens' names among them."""
    text = path.read_text(encoding="utf-8")
    yield text
    for start in range(0, min(len(text), 4000), 100):
        part = text[start : start + 150]
        yield part.replace("\n", "\r\n").replace(" the ", " <unk> <eos>\n").replace(" a ", " a<unk>b\u0085")


def read_all(reader: Callable[[Path], Any], texts: list[str], bundle: Path) -> Iterator[Any]:
    """What a library of Python gives for each text."""
    return map(reader(bundle), texts)


def compared(bundles: dict[str, Path], texts: list[str], read: Callable[[Path], Any]) -> str:
    """How many ids and texts differ from ours, over all kinds."""
    ids = different = other_texts = 0
    for path in bundles.values():
        tokenizer = lm_runtime.load(path).tokenizer
        for text, (found, shown) in zip(texts, read(path), strict=True):
            own, back = readers.expected(tokenizer, text)
            ids += len(own)
            different += sum(a != b for a, b in zip(own, found, strict=False)) + abs(len(own) - len(found))
            other_texts += shown != back
    return f"{different} of {ids:,} ids, {other_texts} of {len(texts) * len(bundles)} texts"


def installed(folder: Path) -> Path:
    """A folder in which Node finds the packages."""
    folder.mkdir()
    (folder / "package.json").write_text("{}")
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", readers.PACKAGE, _WEB]
    subprocess.run(npm, cwd=folder, check=True, capture_output=True)
    (folder / "steps.mjs").write_text(_STEPS)
    return folder


def in_web(folder: Path, bundle: Path, precision: Any) -> str:
    """The largest difference in a logit over the validation text, step by step."""
    model = lm_runtime.load(bundle, precision=precision, provider="cpu")
    ids = [model.tokenizer.eos_id, *model.tokenizer.encode((TINY / "valid.txt").read_text())]
    states = [(state.name, state.sizes(1)) for state in model.states]
    asked = json.dumps({"model": str(bundle / MODELS[precision]), "ids": ids, "states": states})
    done = subprocess.run(
        ["node", "steps.mjs"], cwd=folder, input=asked, capture_output=True, text=True, check=True
    )
    state, worst = lm_runtime.initial_state(model, 1), 0.0
    for id_, found in zip(ids, json.loads(done.stdout), strict=True):
        logits, state = model.step(np.array([[id_]]), state)
        worst = max(worst, float(np.abs(logits[0, 0] - np.array(found)).max()))
    return f"{worst:.1e} in a logit, {len(ids)} steps"


def online(folder: Path, bundle: Path, precision: Any) -> str:
    model = lm_runtime.load(bundle, precision=precision, provider="cpu")
    ids = model.tokenizer.encode(recognizers.TEXT)
    ((values, _),) = score_ids(model, [np.array(ids)])
    table = recognizers.script(ids, model.tokenizer.vocab_size)
    _, found = recognizers.recognize_online(folder, bundle, table, sherpa.ONLINE[precision])
    worst = np.abs(np.array(found) - values).max()
    return f"{worst:.1e} in a log-probability, {len(found)} tokens"


def offline(folder: Path, bundle: Path, precision: Any) -> str:
    """The smallest margin by which acoustics must favour one of two texts that sherpa-onnx follows."""
    followed = [
        m for m in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if recognizers.decides(folder, bundle, precision, m)
    ]
    return f"decides where totals are {min(followed):.0e} apart" if followed else "above 0.1"


def rolling(bundle: Path) -> str:
    text = (TINY / "valid.txt").read_text(encoding="utf-8")
    (found,) = StepLM(str(bundle), device="cpu").loglikelihood_rolling([types.SimpleNamespace(args=(text,))])
    own = lm_runtime.score_file(lm_runtime.load(bundle, provider="cpu"), TINY / "valid.txt")
    bits = abs(found - own.log_probability) / np.log(2) / len(text.encode())
    return f"{bits:.1e} in bits per byte, rolling"


if __name__ == "__main__":
    main()
