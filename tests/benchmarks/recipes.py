"""The presets on the Penn Treebank, each by one command: writes recipes.md and its picture.

    python tests/benchmarks/recipes.py PTB --work WORK

PTB is a folder with the Penn Treebank's train.txt and valid.txt. Runs, bundles and figures are kept in WORK:
broken off, the command begins the run in hand anew; run again, it makes the page of what is there. Two
hours and a quarter on two cores, which nothing else should use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from pages import command, machine, measured_once, recipe, sample, samples, spread

HERE = Path(__file__).resolve().parent
TRAIN_TOKENS, TUTORIAL_EPOCHS, TUTORIAL_BEST = 929_589, 2, 134.1
"""What the tutorial's loop needs for its best valid perplexity, from a plain transcript of it."""


@dataclass(frozen=True)
class Recipe:
    """One row."""

    options: str
    """Of lm-train."""
    color: str
    """In the picture."""
    seeds: int = 1
    """Runs, with seeds from 0."""


RECIPES = {
    "tutorial": Recipe("--preset tutorial --epochs 2", "tab:gray", seeds=3),
    "quick": Recipe("--preset quick", "tab:orange", seeds=3),
    "word": Recipe("--preset word", "tab:blue"),
}


def measure(name: str, seed: int, corpus: Path, work: Path) -> dict[str, Any]:
    """Train, export and score one run."""
    run, bundle = work / "runs" / f"{name}-{seed}", work / "bundles" / f"{name}-{seed}"
    options = [*RECIPES[name].options.split(), *(["--seed", seed] if seed else [])]

    def train() -> float:  # from start to finish, or not at all
        begun = time.perf_counter()
        command("lm-train", corpus, *options, "--out", run, "--force")
        return time.perf_counter() - begun

    seconds = measured_once(work / f"{name}-{seed}-seconds.json", recipe(RECIPES[name].options), train)
    command("lm-export", run, "--out", bundle, "--quantize", "int8", "--force")
    scores = {
        precision: json.loads(
            command("lm-score", bundle, corpus / "valid.txt", "--precision", precision, "--json")
        )
        for precision in ("fp32", "int8")
    }
    return {
        "seconds": seconds,
        "summary": json.loads((run / "summary.json").read_text()),
        "perplexities": {precision: score["perplexity"] for precision, score in scores.items()},
        "bytes": {path.name: path.stat().st_size for path in (bundle / "onnx").iterdir()},
        "sample": sample(bundle),
        "records": [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()],
    }


def tutorial_seconds(work: Path) -> float:
    """How long the tutorial's loop takes for its two epochs, from its rate on this machine."""

    def rates() -> dict[str, float]:
        call = [sys.executable, str(HERE / "training.py"), "--json"]
        out = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured: dict[str, float] = json.loads(out)
        return measured

    rate: float = measured_once(work / "training.json", {}, rates)["the tutorial's loop"]
    return TUTORIAL_EPOCHS * TRAIN_TOKENS / rate


def seconds_until(perplexity: float, run: dict[str, Any]) -> float | None:
    """The seconds of training, validation included, after which an epoch ended below a valid perplexity."""
    for record in run["records"]:
        if record["event"] == "epoch" and record["valid_perplexity"] < perplexity:
            return float(record["seconds"])
    return None


def draw(figures: dict[str, list[dict[str, Any]]], tutorial: float, path: Path) -> None:
    """Valid perplexity against the minutes of training."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in figures.items():
        for number, found in enumerate(runs):
            epochs = [record for record in found["records"] if record["event"] == "epoch"]
            best = mean(run["perplexities"]["fp32"] for run in runs)
            axes.loglog(
                [record["seconds"] / 60 for record in epochs],
                [record["valid_perplexity"] for record in epochs],
                "o-",
                markersize=4,
                color=RECIPES[name].color,
                label=None if number else f"{name} {best:.1f}",
            )
    axes.plot(
        [tutorial / 60], [TUTORIAL_BEST], "k*", markersize=12, label=f"the tutorial's loop {TUTORIAL_BEST}"
    )
    axes.set_xlabel("minutes of training")
    axes.set_xticks([2, 5, 10, 20, 40, 70], labels=["2", "5", "10", "20", "40", "70"])
    axes.set_xticks([], minor=True)
    axes.set_ylabel("valid perplexity")
    axes.set_yticks([80, 100, 120, 150, 200], labels=["80", "100", "120", "150", "200"])
    axes.set_yticks([], minor=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    corpus, work = arguments.corpus.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    tutorial = tutorial_seconds(work)
    figures = {
        name: [
            measured_once(
                work / f"{name}-{seed}.json", recipe(row.options), measure, name, seed, corpus, work
            )
            for seed in range(row.seeds)
        ]
        for name, row in RECIPES.items()
    }
    draw(figures, tutorial, HERE / "recipes.png")
    page = [
        "# Recipes on the Penn Treebank",
        "",
        "Written by `python tests/benchmarks/recipes.py PTB --work WORK`, `PTB` being a folder with the "
        "Penn Treebank's `train.txt` and `valid.txt` (929,589 and 73,760 tokens with `<eos>`, 10,000 types). "
        f"Measured on {torch.get_num_threads()} cores ({machine()}), torch {torch.__version__}.",
        "",
        "One model, no adaptation to the text that is scored. Perplexity is `lm-score`'s, of the exported "
        "bundle without torch. Times are the whole command's, from start to finish; the tutorial's is that "
        "of its steps alone, without validation, at the rate that `tests/benchmarks/training.py` found just "
        f"before. The last column is the training until an epoch ended below {TUTORIAL_BEST}, validation "
        "included. Recipes were tuned on this valid text: the corpus's test text was not at hand. All were "
        "trained in bf16, as lm-train takes it on a processor with AVX512-BF16; the tutorial's loop is in "
        "fp32, as it is written.",
        "",
        "| command | valid perplexity, fp32 | int8 | parameters | graph, fp32 / int8 | time | seeds | "
        f"below {TUTORIAL_BEST} |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
        f"| the tutorial's loop in torch, {TUTORIAL_EPOCHS} epochs | {TUTORIAL_BEST} | | | | "
        f"{tutorial:,.0f} s for its steps alone, from their rate | one | |",
    ]
    for name, runs in figures.items():
        cells = []
        for precision in ("fp32", "int8"):
            cells.append(spread([run["perplexities"][precision] for run in runs], ".2f"))
        first = runs[0]
        sizes = " / ".join(f"{size / 1e6:.1f}" for size in sorted(first["bytes"].values(), reverse=True))
        seconds = mean(run["seconds"] for run in runs)
        until = [passed for run in runs if (passed := seconds_until(TUTORIAL_BEST, run)) is not None]
        passed_in = f"{mean(until):,.0f} s, {mean(until) / tutorial:.2f} times" if until else "never"
        if 0 < len(until) < len(runs):
            passed_in += f", {len(until)} of {len(runs)} seeds"
        page.append(
            f"| `lm-train PTB {RECIPES[name].options}` | {' | '.join(cells)} | "
            f"{first['summary']['parameters']:,} | {sizes} MB | "
            f"{seconds:,.0f} s, {seconds / tutorial:.2f} times the tutorial's steps | "
            f"{'one' if len(runs) == 1 else f'{len(runs)}, mean and range'} | {passed_in} |"
        )
    page += [
        "",
        "![Valid perplexity against the minutes of training](recipes.png)",
        "",
        *samples({name: runs[0]["sample"] for name, runs in figures.items()}),
    ]
    (HERE / "recipes.md").write_text("\n".join(page), encoding="utf-8")
    print(HERE / "recipes.md")


if __name__ == "__main__":
    main()
