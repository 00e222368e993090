"""An n-gram bundle beside KenLM's Python module: python tests/benchmarks/ngrams.py BUNDLE TEXT

BUNDLE is the export of an n-gram model with --arpa; the texts are the lines of TEXT. Both read the same ARPA
file's probabilities, and the sums are compared. Scoring alternates, on one core, and medians count;
loading is timed in processes of their own. KenLM reads ARPA: its Python module makes no binary file.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = 7
LOADS = {
    "lm_runtime": "import lm_runtime as m; load = m.load",
    "kenlm": "import kenlm; load = kenlm.Model",
}
MEASURE = """
import sys, time, psutil
{imports}
resident = psutil.Process().memory_info
before = resident().rss
begun = time.perf_counter()
model = load(sys.argv[1])
print(time.perf_counter() - begun, resident().rss - before)
"""


def loading(name: str, path: Path) -> tuple[float, float]:
    """The seconds of a load, and the megabytes that the process has more after it (medians)."""
    call = [sys.executable, "-c", MEASURE.format(imports=LOADS[name]), str(path)]
    runs = [subprocess.run(call, check=True, capture_output=True, text=True).stdout.split() for _ in range(5)]
    return statistics.median(float(run[0]) for run in runs), statistics.median(
        int(run[1]) / 1e6 for run in runs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    import kenlm

    from lm_runtime import load, score_texts
    from lm_runtime.bundle import ARPA
    from lm_runtime.text_files import read_lines

    lines = list(read_lines(options.text))
    tokens = sum(len(line.split()) + 1 for line in lines)
    ours, theirs = load(options.bundle), kenlm.Model(str(options.bundle / ARPA))
    sides: dict[str, Any] = {
        "lm_runtime.score_texts": lambda: [score.log_probability for score in score_texts(ours, lines)],
        "kenlm.Model.score": lambda: [theirs.score(line) * math.log(10) for line in lines],
        "kenlm.Model.full_scores": lambda: [
            sum(word[0] for word in theirs.full_scores(line)) * math.log(10) for line in lines
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    sums = {}
    for _ in range(ROUNDS):
        for name, work in sides.items():
            begun = time.perf_counter()
            sums[name] = work()
            seconds[name].append(time.perf_counter() - begun)
    for name, times in seconds.items():
        print(f"{name:26}{tokens / statistics.median(times):12,.0f} tokens/s")
    first, second, _ = sums.values()
    print(f"largest difference of a line: {max(map(abs, map(float.__sub__, first, second))):.1e} nats")
    for name, path in (("lm_runtime", options.bundle), ("kenlm", options.bundle / ARPA)):
        took, memory = loading(name, path)
        print(f"{name + ', loading':26}{took * 1000:9.0f} ms, {memory:.0f} MB")


if __name__ == "__main__":
    main()
