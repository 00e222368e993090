"""Peak memory of lm-train on a text larger than it may use: python tests/benchmarks/large_corpus.py

Writes a text of 1 GB by repeating and shuffling the lines of a corpus, trains on it for a minute, stops
the run by Ctrl-C, and prints the peak resident memory of the process (the kernel's figure, mapped pages
included).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lm_trainer.corpora.corpus import find_corpus


def write_text(path: Path, lines: list[str], size: int) -> None:
    """Write about ``size`` bytes of shuffled repetitions of ``lines``."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            generator.shuffle(lines)
            file.writelines(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", default="pydocs")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizer", default="bpe")
    parser.add_argument("--training-seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pieces = find_corpus(options.corpus, folder / "data").splits["train"].fragments()
        write_text(folder / "large.txt", [f"{text}\n" for text, _ in pieces], options.megabytes * 1_000_000)
        size = (folder / "large.txt").stat().st_size
        command = [str(Path(sys.executable).parent / "lm-train"), "large.txt", "--out", "run"]
        begun = time.monotonic()
        process = subprocess.Popen([*command, "--tokenizer", options.tokenizer], cwd=folder)
        while not (folder / "run/metrics.jsonl").exists():
            time.sleep(1)
            if process.poll() is not None:
                sys.exit(f"lm-train ended with {process.returncode}")
        prepared = time.monotonic() - begun
        time.sleep(options.training_seconds)
        process.send_signal(signal.SIGINT)
        _, _, usage = os.wait4(process.pid, 0)
        print(
            f"{size / 1e6:,.0f} MB of text, tokenizer {options.tokenizer}: {prepared:.0f} s to the first "
            f"record, then trained for {options.training_seconds:.0f} s; "
            f"peak memory {usage.ru_maxrss / 1024:,.0f} MiB"
        )


if __name__ == "__main__":
    main()
