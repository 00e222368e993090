"""Every family of models on one corpus, and the tutorial's questions: writes families.md and its pictures.

    python tests/benchmarks/families.py PTB --work WORK

PTB is a folder with the Penn Treebank's train.txt and valid.txt. Runs, bundles and figures are kept in WORK:
broken off, the command goes on; run again, it makes the page of what is there. Two and a half hours on two
cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pages import command, machine, measured_once, recipe, sample, samples, spread
from torch import nn

from lm_runtime.scoring.score import perplexity
from lm_trainer.networks.family import make_model
from lm_trainer.networks.recurrent import RecurrentLM
from lm_trainer.reports.reach import gradient_reach
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

HERE = Path(__file__).resolve().parent
NETWORK = "--preset tutorial --epochs 2"
OPTIONS = {
    "ngram": "--preset tutorial --model ngram",
    "window": f"{NETWORK} --model window --lr 0.001",
    "rnn": f"{NETWORK} --model rnn --lr 0.0005",
    "gru": f"{NETWORK} --model gru",
    "lstm": f"{NETWORK} --model lstm",
}
SEEDS = 3
"""Of each network, from 0."""
COLORS = dict(zip(OPTIONS, ("tab:gray", "tab:green", "tab:orange", "tab:purple", "tab:blue"), strict=True))
CLIPPING = ("", "--clip-norm 0.5", "--clip-value 0.5", "--clip-value 0.01", "--clip-value 0.001")
OPTIMIZERS = ("--optimizer adam --lr 0.002", "--optimizer sgd --lr 20")
CLIPPING_LINES = 4_000, 500
REACH = 100
"""How far back gradients are looked at, in tokens."""


def seeds(family: str) -> range:
    """Those of its runs; n-grams are estimated in one pass."""
    return range(1 if family == "ngram" else SEEDS)


def measure(family: str, seed: int, corpus: Path, work: Path) -> dict[str, Any]:
    """Train, export, score, generate and time one run of a family."""
    run, bundle = (work / part / f"{family}-{seed}" for part in ("runs", "bundles"))
    options = [*OPTIONS[family].split(), *(["--seed", seed] if seed else [])]
    command("lm-train", corpus, *options, "--out", run, "--resume")
    command("lm-export", run, "--out", bundle, "--force")
    score = json.loads(command("lm-score", bundle, corpus / "valid.txt", "--json"))
    bench = json.loads(command("lm-bench", bundle, "--batch", 1, "--json"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "summary": json.loads((run / "summary.json").read_text()),
        "perplexity": score["perplexity"],
        "bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
        "rate": bench["steps"][0]["generation"],
        "sample": sample(bundle),
        "records": records,
    }


def draw_time(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Perplexity against the seconds of training, of the first seed."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for family, (first, *_) in figures.items():
        steps = [record for record in first["records"] if record["event"] == "step"]
        epochs = [record for record in first["records"] if record["event"] == "epoch"]
        axes.loglog(
            [record["seconds"] for record in steps],
            [perplexity(record["loss"]) for record in steps],
            color=COLORS[family],
            alpha=0.35,
            linewidth=1,
        )
        seconds, values = zip(
            *((record["seconds"], record["valid_perplexity"]) for record in epochs), strict=True
        )
        axes.loglog(seconds, values, "o-", color=COLORS[family], label=f"{family} {min(values):.0f}")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("perplexity: valid (dots), training text (thin)")
    axes.set_yticks([50, 100, 200, 500, 1000, 2000], labels=["50", "100", "200", "500", "1000", "2000"])
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_reach(work: Path, path: Path) -> dict[str, dict[str, float]]:
    """The picture of vanishing gradients; returns the share that is left at some distances."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    left: dict[str, dict[str, float]] = {}
    for family in ("rnn", "gru", "lstm"):
        run = work / "runs" / f"{family}-0"
        checkpoint = load_checkpoint(run)
        model, _ = restore_model(checkpoint)
        assert isinstance(model, RecurrentLM)
        rows = checkpoint.facts.held_out.numpy()[: 64 * (REACH + 1)].reshape(64, REACH + 1)
        for label, candidate, style in (
            ("trained", model, "-"),
            ("before training", make_model(model.config, torch.Generator().manual_seed(0)), ":"),
        ):
            assert isinstance(candidate, RecurrentLM)
            reach = gradient_reach(candidate, rows)
            axes.semilogy(reach, style, color=COLORS[family], label=f"{family}, {label}")
            left[f"{family}, {label}"] = {str(far): float(reach[far]) for far in (5, 10, 20, 50)}
    axes.set_ylim(1e-12, 3)
    axes.set_xlabel("tokens back")
    axes.set_ylabel("gradient of one prediction's loss,\nshare of the newest token's")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    return left


def layouts(turns: int = 30) -> dict[str, float]:
    """Milliseconds of the tutorial's LSTM layer, forward and backward, in each layout."""
    times: dict[str, list[float]] = {"batch first": [], "time first": []}
    for _ in range(turns):
        for name, seconds in times.items():
            torch.manual_seed(0)
            first = name == "batch first"
            layer = nn.LSTM(128, 1024, batch_first=first)
            x = torch.randn(*((20, 30) if first else (30, 20)), 128, requires_grad=True)
            begun = time.perf_counter()
            torch.autograd.backward(layer(x)[0].sum())
            seconds.append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(seconds[3:]) for name, seconds in times.items()}


def clipping(corpus: Path, work: Path) -> list[tuple[str, list[str]]]:
    """Valid perplexity after one epoch of a part of the corpus, for each way to clip and optimizer."""
    part = work / "part"
    part.mkdir(exist_ok=True)
    for name, count in zip(("train", "valid"), CLIPPING_LINES, strict=True):
        lines = (corpus / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        (part / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    rows = []
    for clip in CLIPPING:
        row = []
        for optimizer in OPTIMIZERS:
            name = f"{optimizer} {clip}".replace("--", "").replace(" ", "-").strip("-")
            options = f"--preset tutorial --epochs 1 --clip-norm 0 {optimizer} {clip} --resume".split()
            found = []
            for seed in range(SEEDS):
                run = work / "clipping" / f"{name}-{seed}"
                try:
                    command("lm-train", part, *options, "--seed", seed, "--out", run, quiet=True)
                except subprocess.CalledProcessError as error:
                    if "the loss became" not in error.stderr:
                        sys.exit(error.stderr)
                    found.append(math.inf)
                else:
                    summary = json.loads((run / "summary.json").read_text())
                    value, uniform = summary["valid"]["perplexity"], summary["baselines"]["uniform"]
                    found.append(value if value < uniform else math.inf)
            lost = sum(math.isinf(value) for value in found)
            row.append(f"diverged ({lost} of {SEEDS})" if lost else spread(found, ".1f"))
        rows.append((clip.removeprefix("--").replace("-", " ") or "none", row))
    return rows


def interpolation(corpus: Path, work: Path) -> dict[str, list[float]]:
    """The LSTM and the n-grams as one model, the weight fitted on the first half of valid.

    Returns:
        of each seed the perplexities on the second half, alone and as one, and the weight of the n-grams.
    """
    lines = (corpus / "valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    halves = [work / "valid-1.txt", work / "valid-2.txt"]
    for half, part in zip(halves, (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=True):
        half.write_text("".join(part), encoding="utf-8")
    lstms, [ngram] = (
        [work / "bundles" / f"{family}-{seed}" for seed in seeds(family)] for family in ("lstm", "ngram")
    )
    pairs = [
        json.loads(command("lm-score", lstm, halves[1], "--with", ngram, "--fit", halves[0], "--json"))
        for lstm in lstms
    ]
    alone = [
        [json.loads(command("lm-score", bundle, halves[1], "--json"))["perplexity"] for bundle in bundles]
        for bundles in (lstms, [ngram])
    ]
    return {
        "lstm": alone[0],
        "ngram": alone[1],
        "both": [pair["perplexity"] for pair in pairs],
        "weight": [pair["weight"] for pair in pairs],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    corpus, work = arguments.corpus.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    figures = {
        family: [
            measured_once(
                work / f"{family}-{seed}.json", recipe(options), measure, family, seed, corpus, work
            )
            for seed in seeds(family)
        ]
        for family, options in OPTIONS.items()
    }
    draw_time(figures, HERE / "families_time.png")
    page = [
        "# The families side by side",
        "",
        "Written by `python tests/benchmarks/families.py PTB --work WORK`, `PTB` being a folder with the "
        "Penn Treebank's `train.txt` and `valid.txt` (929,589 and 73,760 tokens with `<eos>`, 10,000 types). "
        f"Measured on {torch.get_num_threads()} cores ({machine()}), torch {torch.__version__}. Networks "
        f"with {SEEDS} seeds, mean and range; samples and gradients are of the first. "
        "Others use the machine too: from hour to hour times were seen to vary by a half.",
        "",
        "All by the same commands; networks have the tutorial's sizes (embedding 128, hidden 1024, Adam, "
        "two epochs, after which the LSTM overfits), and nothing against overfitting: baselines, as the "
        "tutorial has them. Perplexity is `lm-score`'s, of the exported bundle without torch; tokens/s are "
        "`lm-bench`'s, of text in fp32 at batch 1.",
        "",
        "| family | options of `lm-train` | valid perplexity | parameters | training | bundle | tokens/s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for family, runs in figures.items():
        perplexities, seconds, rates = (
            spread([run[name] for run in summaries], form)
            for summaries, name, form in (
                (runs, "perplexity", ".1f"),
                ([run["summary"] for run in runs], "seconds", ",.0f"),
                (runs, "rate", ",.0f"),
            )
        )
        page.append(
            f"| {family} | `{OPTIONS[family]}` | {perplexities} | {runs[0]['summary']['parameters']:,} | "
            f"{seconds} s | {runs[0]['bytes'] / 1e6:.1f} MB | {rates} |"
        )
    pair = interpolation(corpus, work)
    page += [
        "",
        "![Perplexity against the seconds of training](families_time.png)",
        "",
        "Two models err in different places: LSTM and 5-gram interpolated, "
        "`lm-score lstm valid-2.txt --with ngram --fit valid-1.txt`, the weight fitted on the first half of "
        f"valid, scored on the second: LSTM {spread(pair['lstm'], '.1f')}, n-gram "
        f"{spread(pair['ngram'], '.1f')}, both **{spread(pair['both'], '.1f')}**; weight of the n-gram "
        f"{spread(pair['weight'], '.3f')}.",
        "",
        *samples({family: runs[0]["sample"] for family, runs in figures.items()}),
    ]
    left = draw_reach(work, HERE / "families_reach.png")
    page += [
        "## How far back a gradient reaches",
        "The norm of the gradient of one prediction's loss by the embedding of each token before it, as a "
        f"share of that of the newest; a mean over 64 texts of {REACH} tokens of valid.",
        "",
        "![The gradient's norm against the distance in tokens](families_reach.png)",
        "",
        "| | 5 tokens back | 10 | 20 | 50 |",
        "|---|---:|---:|---:|---:|",
    ]
    page += [
        f"| {name} | " + " | ".join(f"{value:.1e}" for value in shares.values()) + " |"
        for name, shares in left.items()
    ]
    layers = measured_once(work / "layouts.json", {}, layouts)
    page += [
        "",
        "## Batch first or time first",
        "torch's LSTM layer of the tutorial (batch 20, 30 steps, 128 to 1024), forward and backward in fp32: "
        + ", ".join(f"{name} {value:.0f} ms" for name, value in layers.items())
        + f" (ratio {layers['batch first'] / layers['time first']:.2f}, medians). lm-train turns "
        "the ids, which costs nothing, and works time first within.",
        "",
        "## Clipping by norm or by value",
        f"The tutorial's LSTM, one epoch of the first {CLIPPING_LINES[0]:,} lines, valid perplexity on "
        f"{CLIPPING_LINES[1]} lines, {SEEDS} seeds:",
        "",
        "| clipping | " + " | ".join(f"`{optimizer}`" for optimizer in OPTIMIZERS) + " |",
        "|---|" + "---:|" * len(OPTIMIZERS),
    ]
    page += [f"| {name} | {' | '.join(row)} |" for name, row in clipping(corpus, work)]
    (HERE / "families.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print(HERE / "families.md")


if __name__ == "__main__":
    main()
