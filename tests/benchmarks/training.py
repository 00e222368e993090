"""How fast training is, beside the tutorial's own loop on the same text, and where a step's time goes.

    python tests/benchmarks/training.py                           the tutorial's configuration, random tokens
    python tests/benchmarks/training.py --family gru --seconds 60
    python tests/benchmarks/training.py --device cuda --batch 160     the tutorial's loop at 20, ours at 160

Every side is a process of its own, with the memory settings it has in life, and takes a few steps when it is
its turn, so that all of them see the same machine; figures are medians. Beside them stand the step's matrix
products alone, each by one call of torch.mm; in fp32 oneDNN's LSTM is faster than that.
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
from lm_trainer.networks.family import make_model
from lm_trainer.presets import PRESETS
from lm_trainer.reports.metrics import MetricsLog
from lm_trainer.training.job import Job
from lm_trainer.training.loop import Trainer
from lm_trainer.training.memory import keep_freed_memory
from lm_trainer.training.snapshot import Snapshot

SIDES = (
    "the tutorial's loop",
    "lm-train, fp32",
    "lm-train, bf16",
    "matrix products alone, fp32",
    "matrix products alone, bf16",
)
VOCABULARY, TOKENS = 10_000, 900_000
TURN = {"cpu": 3, "cuda": 20}
"""Steps in a turn."""
TUTORIAL = PRESETS["tutorial"].training
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def tutorial(ids: torch.Tensor, family: str, device: torch.device) -> Callable[[], object]:
    """A step of the tutorial's loop: batch first, states detached, the loss read every 100 steps."""
    batch, length = TUTORIAL.batch_size, TUTORIAL.seq_len
    embed, layer = nn.Embedding(VOCABULARY, 128), MODULES[family](128, 1024, 1, batch_first=True)
    linear = nn.Linear(1024, VOCABULARY)
    for module in (embed, layer, linear):
        module.to(device)
    parameters = [*embed.parameters(), *layer.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.002)
    columns = ids[: len(ids) // batch * batch].view(batch, -1)
    zero = torch.zeros(1, batch, 1024, device=device)
    place = 0
    states: tuple[torch.Tensor, ...] = (zero, zero) if family == "lstm" else (zero,)

    def step() -> object:
        nonlocal place, states
        inputs = columns[:, place : place + length].to(device)
        targets = columns[:, place + 1 : place + 1 + length].to(device)
        states = tuple(state.detach() for state in states)
        outputs, after = layer(embed(inputs), states if family == "lstm" else states[0])
        states = after if family == "lstm" else (after,)
        loss = nn.functional.cross_entropy(linear(outputs.reshape(-1, 1024)), targets.reshape(-1))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        place = place + length if place + 2 * length < columns.shape[1] else 0
        return loss.item() if place // length % 100 == 0 else None

    return step


class NoStore:
    """Single steps write no checkpoints."""

    kept = ""

    def save(self, snapshot: Snapshot, *, best: bool = False) -> None:
        raise NotImplementedError("no checkpoint is due within a benchmark")


def ours(
    ids: np.ndarray, family: str, precision: str, batch: int, device: torch.device, folder: Path
) -> Trainer:
    """The same step as ``lm-train --preset tutorial`` takes it."""
    sizes = ModelConfig(**{**PRESETS["tutorial"].model, "vocab_size": VOCABULARY, "model_type": family})
    job = Job(
        sizes,
        replace(TUTORIAL, precision=precision, batch_size=batch),
        train=ids,
        valid=ids[:100],
        eos_id=0,
        metrics=MetricsLog(folder / precision),
        store=NoStore(),
        device=device,
    )
    return Trainer(job, make_model(sizes, torch.Generator().manual_seed(0)).to(device))


def products(family: str, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """The matrix products of one step, forward and backward, each written to memory of its own."""
    length = TUTORIAL.seq_len
    gates, tokens = {"lstm": 4, "gru": 3, "rnn": 1}[family] * 1024, batch * length

    def pair(rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, b, out = torch.randn(rows, inner), torch.randn(columns, inner).t(), torch.empty(rows, columns)
        return a.to(device, dtype), b.to(device, dtype), out.to(device, dtype)

    head, layer = (tokens, 1024, VOCABULARY), (tokens, 128, gates)
    whole = [pair(*head), pair(tokens, VOCABULARY, 1024), pair(VOCABULARY, tokens, 1024)]
    whole += [pair(*layer), pair(tokens, gates, 128), pair(gates, tokens, 128), pair(gates, tokens, 1024)]
    steps = [pair(batch, 1024, gates), pair(batch, gates, 1024)]

    def run() -> object:
        for a, b, out in whole + steps * length:
            torch.mm(a, b, out=out)
        return None

    return run


def make_step(arguments: argparse.Namespace, folder: Path) -> Callable[[], object]:
    """What a side does at each step; ``folder`` is for its files."""
    name, _, precision = arguments.side.partition(", ")
    family, batch, device = arguments.family, arguments.batch, torch.device(arguments.device)
    ids = np.random.default_rng(0).zipf(1.3, TOKENS) % VOCABULARY
    if arguments.side != SIDES[0]:
        keep_freed_memory()
    match name:
        case "lm-train":
            trainer = ours(ids.astype(np.uint16), family, precision, batch, device, folder)

            def step() -> object:
                if trainer.progress.window == trainer.windows:
                    trainer.rewind()
                return trainer.step()

            return step
        case "matrix products alone":
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
            return products(family, batch, dtype, device)
    return tutorial(torch.from_numpy(ids), family, device)


def serve(arguments: argparse.Namespace) -> None:
    """Be a side: take a turn for each line of standard input, and print its seconds a step."""
    wait: Callable[[], object] = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    turn = TURN[arguments.device]
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(arguments, Path(folder))
        for _ in sys.stdin:
            step()  # to find the caches, and the processor's other core, as they are within a run
            wait()
            begun = time.perf_counter()
            for _ in range(turn):
                step()
            wait()
            print((time.perf_counter() - begun) / turn, flush=True)
        if arguments.profile and arguments.side == "lm-train, bf16":
            with torch.profiler.profile() as profile:
                for _ in range(10):
                    step()
                wait()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15), file=sys.stderr)


def take_turns(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Run all sides alternately for a time: the seconds a step of each turn, by side."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        pipes = {}
        for side in SIDES:
            call = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            # What lm-train sets before it loads torch.
            env = {**os.environ, **({} if side == SIDES[0] else {"THP_MEM_ALLOC_ENABLE": "1"})}
            process = subprocess.Popen(
                call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env
            )
            pipes[side] = stack.enter_context(process)
        end = time.perf_counter() + arguments.seconds
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
    parser.add_argument("--device", choices=list(TURN), default="cpu")
    parser.add_argument("--batch", type=int, default=TUTORIAL.batch_size, help="of lm-train's sides")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--json", action="store_true", help="tokens a second, by the sides' names")
    parser.add_argument("--profile", action="store_true", help="where the time of a step in bf16 goes")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments)
        return
    times = take_turns(arguments)
    medians = {side: statistics.median(values[2:]) for side, values in times.items()}
    batches = dict.fromkeys(SIDES, arguments.batch) | {SIDES[0]: TUTORIAL.batch_size}
    rates = {side: batches[side] * TUTORIAL.seq_len / medians[side] for side in SIDES}
    if arguments.json:
        print(json.dumps(rates))
        return
    turns, threads = min(map(len, times.values())), torch.get_num_threads()
    print(
        f"{arguments.family}, {TUTORIAL.seq_len} steps, {arguments.device}, {threads} threads, "
        f"{turns} turns of {TURN[arguments.device]} steps"
    )
    print(f"{'':28} {'batch':>6} {'a step':>9} {'tokens/s':>9} {'times the tutorial':>18}")
    for side, median in medians.items():
        ratio = rates[side] / rates[SIDES[0]]
        print(f"{side:28} {batches[side]:6} {median * 1e3:6.1f} ms {rates[side]:9,.0f} {ratio:18.2f}")


if __name__ == "__main__":
    main()
