"""Text by a bundle against text by torch: python tests/benchmarks/generation.py RUN BUNDLE

RUN is a folder with best.pt, BUNDLE its export with int8. Sampling is included on every side. The sides
take turns, and the medians of five rounds are compared, so that all see the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lm_runtime import bench
from lm_runtime.generation import generate_batch
from lm_runtime.model import OnnxModel
from lm_runtime.sampling import SamplingParams
from lm_runtime.session import Session
from lm_trainer.checkpoint import load_checkpoint, restore_model
from lm_trainer.model import RecurrentLM

_ROUNDS = 5


@torch.no_grad()
def tutorial_loop(model: RecurrentLM, tokens: int) -> None:
    """The tutorial's sampling code: exp, multinomial, item, fill_."""
    state = model.zero_state(1)
    token = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(tokens):
        output, state = model(token, state)
        probabilities = output[0, -1].exp()
        word = torch.multinomial(probabilities, num_samples=1).item()
        token.fill_(word)


@torch.inference_mode()
def eager_steps(model: RecurrentLM, tokens: int) -> None:
    """The best that torch does on the step alone: no sampling at all."""
    state = model.zero_state(1)
    token = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(tokens):
        _, state = model(token, state)


def bundle_text(model: OnnxModel, batch: int, tokens: int) -> None:
    """Text with top-p 0.95, decoded."""
    sessions = [Session.start(model, seed=1, index=index) for index in range(batch)]
    for _ in generate_batch(model, sessions, SamplingParams(top_p=0.95, max_tokens=tokens)):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    torch_model, _ = restore_model(options.run, load_checkpoint(options.run))
    fp32, int8 = (OnnxModel(options.bundle, precision=name, provider="cpu") for name in ("fp32", "int8"))
    sides: list[tuple[str, int, Callable[[], None]]] = [
        ("the tutorial's loop", 60, lambda: tutorial_loop(torch_model, 60)),
        ("torch, the step alone", 60, lambda: eager_steps(torch_model, 60)),
        ("fp32, one sequence", 300, lambda: bundle_text(fp32, 1, 300)),
        ("int8, one sequence", 1000, lambda: bundle_text(int8, 1, 1000)),
        ("int8, 64 sequences", 64 * 30, lambda: bundle_text(int8, 64, 30)),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for round_ in range(_ROUNDS + 1):
        for name, _, work in sides:
            begun = time.perf_counter()
            work()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    rates = {name: count / statistics.median(seconds[name]) for name, count, _ in sides}
    print(f"{'':24}{'tokens/s':>10}{'times':>8}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:10,.0f}{rate / rates[sides[0][0]]:8.1f}")
    limit = bench.memory_bandwidth() / bench.weights_bytes(fp32)
    print(
        f"fp32 reaches {rates['fp32, one sequence'] / limit:.0%} of {limit:,.0f} steps/s, the memory's limit"
    )


if __name__ == "__main__":
    main()
