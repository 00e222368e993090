"""How fast training is, beside the tutorial's own loop on the same text, and where a step's time goes.

    python tests/benchmarks/training.py                           the tutorial's configuration, random tokens
    python tests/benchmarks/training.py --family gru --seconds 60

Every side is a process of its own, with the memory settings it has in life, and takes a few steps when it is
its turn, so that all of them see the same machine; figures are medians. The limit is the time of the step's
matrix products alone, each measured by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lm_trainer.config import ModelConfig
from lm_trainer.families import make_model
from lm_trainer.memory import keep_freed_memory
from lm_trainer.metrics import MetricsLog
from lm_trainer.presets import PRESETS
from lm_trainer.training import Trainer

SIDES = (
    "the tutorial's loop",
    "lm-train, fp32",
    "lm-train, bf16",
    "matrix products alone, fp32",
    "matrix products alone, bf16",
)
VOCABULARY, TOKENS, TURN = 10_000, 900_000, 3
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def tutorial(ids: torch.Tensor, family: str, batch: int, length: int) -> Callable[[], object]:
    """A step of the tutorial's loop: batch first, states detached, the loss read every 100 steps."""
    embed, layer = nn.Embedding(VOCABULARY, 128), MODULES[family](128, 1024, 1, batch_first=True)
    linear = nn.Linear(1024, VOCABULARY)
    parameters = [*embed.parameters(), *layer.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.002)
    columns = ids[: len(ids) // batch * batch].view(batch, -1)
    zero = torch.zeros(1, batch, 1024)
    place, states = 0, (zero, zero) if family == "lstm" else (zero,)

    def step() -> object:
        nonlocal place, states
        inputs = columns[:, place : place + length]
        targets = columns[:, place + 1 : place + 1 + length]
        states = tuple(state.detach() for state in states)
        outputs, after = layer(embed(inputs), states if family == "lstm" else states[0])
        states = after if family == "lstm" else (after,)
        loss = nn.functional.cross_entropy(linear(outputs.reshape(-1, 1024)), targets.reshape(-1))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        place += length
        return loss.item() if place // length % 100 == 0 else None

    return step


def ours(ids: np.ndarray, family: str, precision: str, folder: Path) -> Trainer:
    """The same step as ``lm-train --preset tutorial`` takes it."""
    preset = PRESETS["tutorial"]
    config = ModelConfig(**{**preset.model, "vocab_size": VOCABULARY, "model_type": family})
    return Trainer(
        folder,
        make_model(config, torch.Generator().manual_seed(0)),
        replace(preset.training, precision=precision),
        train=ids,
        valid=ids[:100],
        eos_id=0,
        facts={},
        metrics=MetricsLog(folder / precision),
        checkpoint_seconds=1e9,
    )


def products(family: str, batch: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products of one step, forward and backward, each written to memory of its own."""
    gates, tokens = {"lstm": 4, "gru": 3, "rnn": 1}[family] * 1024, batch * length

    def pair(rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        matrices = torch.randn(rows, inner), torch.randn(columns, inner).t(), torch.empty(rows, columns)
        return tuple(matrix.to(dtype) for matrix in matrices)

    head, layer = (tokens, 1024, VOCABULARY), (tokens, 128, gates)
    whole = [pair(*head), pair(tokens, VOCABULARY, 1024), pair(VOCABULARY, tokens, 1024)]
    whole += [pair(*layer), pair(tokens, gates, 128), pair(gates, tokens, 128), pair(gates, tokens, 1024)]
    steps = [pair(batch, 1024, gates), pair(batch, gates, 1024)]

    def run() -> object:
        for a, b, out in whole + steps * length:
            torch.mm(a, b, out=out)
        return None

    return run


def make_step(side: str, family: str, folder: Path) -> Callable[[], object]:
    """What a side does at each step; ``folder`` is for its files."""
    training = PRESETS["tutorial"].training
    batch, length = training.batch_size, training.seq_len
    ids = np.random.default_rng(0).zipf(1.3, TOKENS) % VOCABULARY
    name, _, precision = side.partition(", ")
    match name:
        case "lm-train":
            keep_freed_memory()
            return ours(ids.astype(np.uint16), family, precision, folder).step
        case "matrix products alone":
            return products(family, batch, length, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    return tutorial(torch.from_numpy(ids), family, batch, length)


def serve(side: str, family: str, profiled: bool) -> None:
    """Be a side: take a turn for each line of standard input, and print its seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(side, family, Path(folder))
        for _ in sys.stdin:
            begun = time.perf_counter()
            for _ in range(TURN):
                step()
            print((time.perf_counter() - begun) / TURN, flush=True)
        if profiled:
            with torch.profiler.profile() as profile:
                for _ in range(10):
                    step()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15), file=sys.stderr)


def take_turns(family: str, seconds: float, profiled: bool) -> dict[str, list[float]]:
    """Have all sides take turns for so long: the seconds a step of each turn, by the sides' names."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        pipes = {}
        for side in SIDES:
            call = [sys.executable, __file__, "--family", family, "--side", side]
            call += ["--profile"] if profiled and side == "lm-train, bf16" else []
            # What lm-train sets before it loads torch.
            env = {**os.environ, **({"THP_MEM_ALLOC_ENABLE": "1"} if side.startswith("lm-train") else {})}
            process = subprocess.Popen(
                call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env
            )
            pipes[side] = stack.enter_context(process)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for side, process in pipes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                times[side].append(float(process.stdout.readline()))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", choices=list(MODULES), default="lstm")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--json", action="store_true", help="the medians, seconds a step")
    parser.add_argument("--profile", action="store_true", help="where the time of a step in bf16 goes")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments.side, arguments.family, arguments.profile)
        return
    times = take_turns(arguments.family, arguments.seconds, arguments.profile)
    medians = {side: statistics.median(values[2:]) for side, values in times.items()}
    if arguments.json:
        print(json.dumps(medians))
        return
    training = PRESETS["tutorial"].training
    batch, length = training.batch_size, training.seq_len
    turns = min(map(len, times.values()))
    print(
        f"{arguments.family}, batch {batch}, {length} steps, {torch.get_num_threads()} threads, "
        f"{turns} turns of {TURN} steps"
    )
    print(f"{'':28} {'a step':>9} {'tokens/s':>9} {'times the tutorial':>18}")
    base = medians["the tutorial's loop"]
    for side, median in medians.items():
        print(f"{side:28} {median * 1e3:6.0f} ms {batch * length / median:9,.0f} {base / median:18.2f}")


if __name__ == "__main__":
    main()
