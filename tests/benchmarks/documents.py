"""Documents a second, by each way to score them: python tests/benchmarks/documents.py BUNDLE TEXT

The documents are made of lines of TEXT, at random and always the same. Each way scores the same file of JSON
Lines into JSON Lines: lm-score with one process and with all cores, datatrove's local executor, and Ray Data
where Ray is installed. What a way takes for one document is its start, and is given apart. Processor time is
given beside the clock's: on a busy machine it is the fairer figure.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lm_runtime.scoring.workers import usable_cores
from lm_runtime.text_files import read_lines

_LINES = (1, 20)
"""Of a document, from and to."""

_DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from lm_runtime.scoring.datatrove import PerplexityAnnotator

if __name__ == "__main__":
    folder, bundle, precision, tasks = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    steps = [
        JsonlReader(folder, glob_pattern="part-*.jsonl"),
        PerplexityAnnotator(bundle, precision=precision),
        JsonlWriter("out", compression=None),
    ]
    LocalPipelineExecutor(steps, tasks=tasks, workers=tasks, logging_dir="logs").run()
"""

_RAY = """
import sys, ray
from lm_runtime.scoring.documents import DocumentScorer

if __name__ == "__main__":
    source, bundle, precision, cores = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_json(source)
    scored = rows.map_batches(
        DocumentScorer,
        fn_constructor_args=(bundle,),
        fn_constructor_kwargs={"precision": precision},
        batch_size=256,
        concurrency=cores,
    )
    scored.write_json("out")
"""


def write_documents(path: Path, lines: Sequence[str], count: int) -> None:
    """Documents of one to twenty lines."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = "\n".join(draw.choices(lines, k=draw.randint(*_LINES)))
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")


def divide(path: Path, parts: int) -> None:
    """The same documents in several files, as executors of tasks want them."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for part in range(parts):
        (path.parent / f"part-{part}.jsonl").write_text("".join(lines[part::parts]), encoding="utf-8")


def timed(command: Sequence[object], folder: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a command takes, its processes included."""
    before, begun = os.times(), time.perf_counter()
    result = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{command[0]} failed:\n{result.stderr[-2000:]}")
    seconds, after = time.perf_counter() - begun, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def ways(bundle: Path, precision: str) -> dict[str, Callable[[Path], list[object]]]:
    """The commands that score ``documents.jsonl`` of a folder, by their names."""
    cores = usable_cores()
    score = [Path(sys.executable).parent / "lm-score", bundle]

    def local(workers: int) -> Callable[[Path], list[object]]:
        options = ["--documents", "--output", "out.jsonl", "--precision", precision, "--workers", workers]
        return lambda folder: [*score, folder / "documents.jsonl", *options]

    def script(text: str, source: str) -> Callable[[Path], list[object]]:
        def command(folder: Path) -> list[object]:
            (folder / "script.py").write_text(text)
            return [sys.executable, "script.py", folder / source, bundle, precision, cores]

        return command

    found = {
        "one process": local(1),
        f"{cores} processes": local(cores),
        "datatrove, local": script(_DATATROVE, "."),
    }
    if importlib.util.find_spec("ray"):
        found["Ray Data"] = script(_RAY, "documents.jsonl")
    return found


def tokens_of(folder: Path) -> int:
    """The tokens of the documents that ``lm-score`` wrote."""
    with (folder / "out.jsonl").open(encoding="utf-8") as file:
        return sum(json.loads(line)["tokens"] for line in file)


def check(folder: Path, expected: int) -> None:
    """Every way wrote every document once."""
    paths = (
        [path for path in (folder / "out").rglob("*") if path.is_file()] if (folder / "out").is_dir() else []
    )
    for path in paths or [folder / "out.jsonl"]:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        expected -= data.count(b"\n")
    if expected:
        raise SystemExit(f"{folder}: {expected} documents are missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    lines = [line for line in read_lines(options.text) if line.strip()]
    tokens = 0
    print(
        f"{'way':<18} {'start':>8} {'documents/s':>12} {'tokens/s':>10} {'tokens a second of processor':>30}"
    )
    for name, command in ways(options.bundle.resolve(), options.precision).items():
        figures = []
        for count in (usable_cores(), options.documents):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                write_documents(folder / "documents.jsonl", lines, count)
                divide(folder / "documents.jsonl", usable_cores())
                figures.append(timed(command(folder), folder))
                check(folder, count)
                tokens = tokens or (tokens_of(folder) if count == options.documents else 0)
        (start, start_used), (seconds, used) = figures
        net, net_used = max(seconds - start, 1e-9), used - start_used
        by_processor = f"{tokens / net_used:,.0f}" if net_used > 0 else "-"
        print(
            f"{name:<18} {start:6.1f} s {options.documents / net:12,.0f} {tokens / net:10,.0f} "
            f"{by_processor:>30}",
            flush=True,
        )


if __name__ == "__main__":
    main()
