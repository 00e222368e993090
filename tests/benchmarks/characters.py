"""`lm-train --preset char` beside a small transformer that trains as long on the same text.

    python tests/benchmarks/characters.py TEXT --work WORK

TEXT is one file. Its first nine tenths are trained on, by the next twentieth the best epoch is chosen, and
the last twentieth is what both are held against, in bits a character, line breaks included. The transformer
is the well-known small recipe for characters on a CPU (pre-norm, 4 layers of 4 heads, width 128, 64
characters of context, batch 12, AdamW at 0.001 falling as a cosine, no dropout), in the precision that is
faster, with as many steps as fit into the time that the preset took. The LSTM is scored as an exported
bundle, by lm-score; the transformer with at least half its context before each character. One after the
other, with --seeds seeds each, on a quiet machine. Figures are kept in WORK: run again, the command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import command, measured_once, recipe, spread
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, RATE = 4, 4, 128, 64, 12, 1e-3


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a pre-norm and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """x ``(batch, time, width)``."""
        batch, length, _ = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        z: Tensor = x + self.feed(self.norms[1](x))
        return z


class Transformer(nn.Module):
    """Characters and their places to logits; the output layer shares the embedding's weights."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_shortcut = name.endswith(("out.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS if into_shortcut else 1))

    def forward(self, ids: Tensor) -> Tensor:
        """ids ``(batch, time)`` to logits ``(batch, time, characters)``."""
        places = self.places(torch.arange(ids.shape[1]))
        return F.linear(self.blocks(self.embedding(ids) + places), self.embedding.weight)


def train_transformer(
    train: Tensor, characters: int, seconds: float, precision: str, seed: int
) -> tuple[Transformer, int]:
    """The transformer after as many steps as fit into ``seconds``, and their number."""
    torch.manual_seed(seed)
    model, bfloat16 = Transformer(characters), precision == "bf16"
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.99), fused=True)
    begun, step = time.perf_counter(), 0
    while (done := (time.perf_counter() - begun) / seconds) < 1:
        rate = RATE * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))  # by time: it ends when it must
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100)
        starts = torch.randint(len(train) - CONTEXT, (BATCH, 1))
        ids = train[starts + torch.arange(CONTEXT + 1)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    return model, step


@torch.no_grad()
def transformer_bits(model: Transformer, text: Tensor) -> float:
    """Bits a character of a text; each is predicted from at least half a context, but for the first ones."""
    half, total = CONTEXT // 2, 0.0
    for start in range(0, len(text) - 1, half):
        ids = text[max(0, start - half) : start + half + 1]
        new = min(half, len(text) - 1 - start)
        logits = model(ids[None, :-1])[0, -new:]
        total += float(F.cross_entropy(logits, ids[-new:], reduction="sum"))
    return total / (len(text) - 1) / math.log(2)


def measure_preset(work: Path, options: list[str], seed: int) -> dict[str, Any]:
    """Train, export and score on the parts of the text in ``work``."""
    run, bundle = work / f"run-{seed}", work / f"bundle-{seed}"
    command("lm-train", work, *options, "--seed", seed, "--out", run, "--resume")
    command("lm-export", run, "--out", bundle, "--force")
    score = json.loads(command("lm-score", bundle, work / "test.txt", "--json"))
    summary = json.loads((run / "summary.json").read_text())
    characters = len((work / "test.txt").read_text(encoding="utf-8"))
    return {
        "bits": -score["log_probability"] / math.log(2) / characters,
        "seconds": summary["seconds"],
        "parameters": summary["parameters"],
    }


def measure_transformer(text: str, parts: dict[str, str], seconds: float, seed: int) -> dict[str, Any]:
    """Train for as long, and score."""
    known = {character: id_ for id_, character in enumerate(sorted(set(text)))}
    ids = {
        name: torch.from_numpy(np.array([known[character] for character in part]))
        for name, part in parts.items()
    }
    rates = {name: train_transformer(ids["train"], len(known), 5, name, 0)[1] for name in ("fp32", "bf16")}
    precision = max(rates, key=rates.__getitem__)
    model, steps = train_transformer(ids["train"], len(known), seconds, precision, seed)
    return {
        "bits": transformer_bits(model, ids["test"]),
        "seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "precision": precision,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="from 0 (default: %(default)s)")
    parser.add_argument("--options", default="", help="more options for lm-train")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    text = arguments.text.read_text(encoding="utf-8")
    first, second = (text.rfind("\n", 0, len(text) * twentieths // 20) + 1 for twentieths in (18, 19))
    parts = {"train": text[:first], "valid": text[first:second], "test": text[second:]}
    for name, part in parts.items():
        (work / f"{name}.txt").write_text(part, encoding="utf-8")
    options = f"--preset char {arguments.options}"
    settings = {"text": hashlib.sha256(text.encode()).hexdigest(), **recipe(options)}
    figures: dict[str, list[dict[str, Any]]] = {"preset char": [], "transformer": []}
    for seed in range(arguments.seeds):
        ours = measured_once(
            work / f"preset-{seed}.json", settings, measure_preset, work, options.split(), seed
        )
        theirs = measured_once(
            work / f"transformer-{seed}.json",
            settings,
            measure_transformer,
            text,
            parts,
            ours["seconds"],
            seed,
        )
        for runs, found in zip(figures.values(), (ours, theirs), strict=True):
            runs.append(found)
    for name, runs in figures.items():
        steps = [f"{found['steps']:,} steps in {found['precision']}" for found in runs if "steps" in found]
        cells = [
            f"{spread([found['bits'] for found in runs], '.3f')} bits a character",
            f"{spread([found['seconds'] for found in runs], '.0f')} s",
            f"{runs[0]['parameters']:,} parameters",
            *steps,
        ]
        print(f"{name}: {', '.join(cells)}")


if __name__ == "__main__":
    main()
