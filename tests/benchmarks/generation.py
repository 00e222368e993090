"""Text by a bundle against text by torch, and every other figure that the README quotes of the runtime.

    python tests/benchmarks/generation.py [--tutorial RUN BUNDLE] [--picture FILE]

RUN is a folder with best.pt of `lm-train --preset tutorial`, BUNDLE its export with int8. Without them a
model of the same size is made, trained for seconds: the speed is the same. Each side is a process of its
own that waits while the others work; they alternate, and medians of the rounds are compared, so that all
see the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ROUNDS = 7
_PROMPT = 512
_BATCH = 64
_SIDES: dict[str, Callable[[Path, Path], tuple[int, Callable[[], object]]]] = {}
Work = tuple[int, Callable[[], object]]


def side(function: Callable[[Path, Path], Work]) -> Callable[[Path, Path], Work]:
    """A side: given a run and its bundle, how many tokens its work makes, and the work."""
    _SIDES[function.__name__] = function
    return function


def torch_model(run: Path) -> Any:
    from lm_trainer.run.checkpoint import load_checkpoint, restore_model

    return restore_model(load_checkpoint(run))[0]


@side
def tutorial_loop(run: Path, bundle: Path) -> Work:
    """The tutorial's sampling code: exp, multinomial, item, fill_."""
    import torch

    model, tokens = torch_model(run), 60

    @torch.no_grad()
    def work() -> None:
        state = model.zero_state(1)
        token = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(tokens):
            output, state = model(token, state)
            word = torch.multinomial(output[0, -1].exp(), num_samples=1).item()
            token.fill_(word)

    return tokens, work


@side
def torch_step(run: Path, bundle: Path) -> Work:
    """The best that torch does on the step alone: no sampling at all."""
    import torch

    model, tokens = torch_model(run), 60

    @torch.inference_mode()
    def work() -> None:
        state = model.zero_state(1)
        token = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(tokens):
            _, state = model(token, state)

    return tokens, work


def text(bundle: Path, precision: Any, batch: int, tokens: int) -> Work:
    """Text with top-p 0.95, decoded."""
    from lm_runtime import SamplingParams, Session, generate_batch, load

    model = load(bundle, precision=precision, provider="cpu")
    params = SamplingParams(top_p=0.95, max_tokens=tokens)

    def work() -> None:
        sessions = [Session.start(model, seed=1, index=index) for index in range(batch)]
        for _ in generate_batch(model, sessions, params):
            pass

    return batch * tokens, work


def graph(bundle: Path, precision: Any, batch: int, tokens: int) -> Work:
    """The graph's runs alone."""
    from lm_runtime import initial_state, load

    model = load(bundle, precision=precision, provider="cpu")
    stepper = model.stepper(initial_state(model, batch))
    read = [model.tokenizer.eos_id] * batch

    def work() -> None:
        for _ in range(tokens):
            stepper.step(read)

    return batch * tokens, work


def made(make: Callable[..., Work], precision: str, batch: int, tokens: int) -> Callable[[Path, Path], Work]:
    """A side of a bundle alone."""
    return lambda run, bundle: make(bundle, precision, batch, tokens)


for _precision, _long in (("fp32", 200), ("int8", 1000)):
    for _kind, _make in (("text", text), ("graph", graph)):
        _SIDES[f"{_precision}_{_kind}"] = made(_make, _precision, 1, _long)
        _SIDES[f"{_precision}_{_kind}_{_BATCH}"] = made(_make, _precision, _BATCH, 50)


@side
def prompt_at_once(run: Path, bundle: Path) -> Work:
    """A prompt of 512 tokens as a session reads it."""
    from lm_runtime import initial_state, load
    from lm_runtime.models.state import read

    model = load(bundle, provider="cpu")
    ids, state = list(range(_PROMPT)), initial_state(model, 1)
    return _PROMPT, lambda: read(model, ids, state)


@side
def memory(run: Path, bundle: Path) -> Work:
    """How often a second the weights that an fp32 step needs can be read from memory."""
    from lm_runtime import bench, load

    weights = load(bundle, provider="cpu").step_bytes
    assert weights is not None  # tables only
    return 8, bench.reader(8 * weights)  # far more than a cache holds


class Worker:
    """A side in its own process."""

    def __init__(self, name: str, run: Path, bundle: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, run, bundle],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.tokens = int(self._read())
        self.seconds: list[float] = []

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def work(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run_side(name: str, run: Path, bundle: Path) -> None:
    """The other end of a :class:`Worker`."""
    tokens, work = _SIDES[name](run, bundle)
    work()  # warms up
    print(tokens, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        work()
        print(time.perf_counter() - begun, flush=True)


def rates(names: list[str], run: Path, bundle: Path) -> dict[str, float]:
    """Tokens a second of each side: medians of rounds in which the sides alternate."""
    workers = {name: Worker(name, run, bundle) for name in names}
    for _ in range(_ROUNDS):
        for worker in workers.values():
            worker.seconds.append(worker.work())
    for worker in workers.values():
        worker.end()
    return {name: worker.tokens / statistics.median(worker.seconds) for name, worker in workers.items()}


def process(arguments: list[Any]) -> tuple[float, float]:
    """Seconds and peak memory in bytes of a command."""
    begun = time.perf_counter()
    child = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, arguments
    return time.perf_counter() - begun, usage.ru_maxrss * 1024


def make_models(folder: Path, names: Sequence[str] = ("words", "characters")) -> dict[str, tuple[Path, Path]]:
    """Models of the tutorial's size and of a character model's, trained for seconds on random text."""
    binaries, draw = Path(sys.executable).parent, random.Random(0)
    words = [f"w{number}" for number in range(9998)]
    likely = [1 / (number + 1) for number in range(len(words))]
    lines = (" ".join(draw.choices(words, likely, k=20)) for _ in range(600))
    (folder / "words.txt").write_text("\n".join([" ".join(words), *lines]))
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    spelled = ["".join(draw.choices(alphabet, k=draw.randint(2, 9))) for _ in range(300)]
    lines = (" ".join(draw.choices(spelled, likely[: len(spelled)], k=10)) for _ in range(3000))
    (folder / "characters.txt").write_text("\n".join([alphabet, *lines]))
    recipes = {
        "words": "--tokenizer word --vocab-size 10000 --embedding-dim 128 --hidden-size 1024 --layers 1",
        "characters": "--tokenizer char --embedding-dim 256 --hidden-size 256 --layers 2",
    }
    models = {}
    for name in names:
        recipe = recipes[name]
        run, bundle = folder / name, folder / f"{name}-bundle"
        train = [binaries / "lm-train", folder / f"{name}.txt", "--out", run, "--no-tied", "--epochs", "1"]
        export = [binaries / "lm-export", run, "--out", bundle, "--quantize", "int8"]
        for command in ([*train, "--sample-tokens", "0", *recipe.split()], export):
            subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
        models[name] = run, bundle
    return models


def measure(words: tuple[Path, Path], characters: tuple[Path, Path]) -> dict[str, Any]:
    """Every figure."""
    many = f"_{_BATCH}"
    names = ["tutorial_loop", "torch_step", "memory", "fp32_text", "fp32_graph", "int8_text", "int8_graph"]
    names += [
        f"int8_text{many}",
        f"int8_graph{many}",
        f"fp32_text{many}",
        f"fp32_graph{many}",
        "prompt_at_once",
    ]
    figures: dict[str, Any] = {"words": rates(names, *words)}
    few = ["tutorial_loop", "torch_step", "fp32_text", "fp32_graph", "int8_text", "int8_graph"]
    figures["characters"] = rates(few, *characters)
    generate = [Path(sys.executable).parent / "lm-generate", words[1], "--provider", "cpu"]
    for precision, file in (("fp32", "model.onnx"), ("int8", "model_quantized.onnx")):
        one = [*generate, "--precision", precision, "--seed", 1, "--max-tokens", 1]
        runs = [process(one) for _ in range(_ROUNDS)]
        figures[f"start_{precision}"] = statistics.median(seconds for seconds, _ in runs)
        figures[f"peak_{precision}"] = max(process([*one[:-1], 200])[1], *(peak for _, peak in runs))
        figures[f"file_{precision}"] = (words[1] / "onnx" / file).stat().st_size
    return figures


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """What, bar, measured, and whether the bar is met."""
    words, characters = figures["words"], figures["characters"]
    loop, many = words["tutorial_loop"], f"_{_BATCH}"

    def outside(of: dict[str, float], name: str) -> float:
        return 1e6 / of[f"{name}_text"] - 1e6 / of[f"{name}_graph"]

    def times(rate: float, of: float) -> str:
        return f"{rate:,.0f} tokens/s, {rate / of:.1f} times"

    spent = outside(words, "fp32")
    share = spent * words["fp32_graph"] / 1e6
    limit = words["fp32_text"] / words["memory"]
    alone = words[f"int8_text{many}"] / words[f"int8_graph{many}"]
    slow = characters["tutorial_loop"]
    small = outside(characters, "fp32")
    table: list[tuple[str, str, str, bool | None]] = [
        ("the tutorial's loop in torch", "", f"{loop:,.0f} tokens/s", None),
        ("torch, the step without sampling", "", times(words["torch_step"], loop), None),
        (
            "fp32, one sequence",
            "3.5 times",
            times(words["fp32_text"], loop),
            words["fp32_text"] >= 3.5 * loop,
        ),
        ("... of the rate at which memory gives the weights", "85 %", f"{limit:.0%}", limit >= 0.85),
        ("int8, one sequence", "20 times", times(words["int8_text"], loop), words["int8_text"] >= 20 * loop),
        (
            "outside the graph's run, fp32",
            "120 us, 10 %",
            f"{spent:.0f} us, {share:.1%}",
            spent <= 120 and share <= 0.1,
        ),
        (
            "outside the graph's run, int8",
            "120 us",
            f"{outside(words, 'int8'):.0f} us",
            outside(words, "int8") <= 120,
        ),
        (
            f"int8, {_BATCH} sequences",
            "90 times",
            times(words[f"int8_text{many}"], loop),
            words[f"int8_text{many}"] >= 90 * loop,
        ),
        ("... of the graph's runs alone", "80 %", f"{alone:.0%}", alone >= 0.8),
        (f"fp32, {_BATCH} sequences", "", times(words[f"fp32_text{many}"], loop), None),
        (
            f"a prompt of {_PROMPT}, against stepping, fp32",
            "5 times",
            times(words["prompt_at_once"], words["fp32_graph"]),
            words["prompt_at_once"] >= 5 * words["fp32_graph"],
        ),
        ("characters: the tutorial's loop in torch", "", f"{slow:,.0f} tokens/s", None),
        (
            "characters, fp32",
            "10 times",
            times(characters["fp32_text"], slow),
            characters["fp32_text"] >= 10 * slow,
        ),
        (
            "characters, int8",
            "10 times",
            times(characters["int8_text"], slow),
            characters["int8_text"] >= 10 * slow,
        ),
        ("characters, outside the graph's run", "10 us", f"{small:.1f} us", small <= 10),
    ]
    for precision in ("fp32", "int8"):
        start, peak, file = (figures[f"{name}_{precision}"] for name in ("start", "peak", "file"))
        bound = 1.5 * file + 60e6
        if precision == "int8":
            table.append(("process start to the first token, int8", "0.6 s", f"{start:.2f} s", start <= 0.6))
        table.append(
            (f"peak memory, {precision}", f"{bound / 1e6:.0f} MB", f"{peak / 1e6:.0f} MB", peak <= bound)
        )
    return table


def draw(figures: dict[str, Any], path: Path) -> None:
    """Tokens a second as bars."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    words, many = figures["words"], f"_{_BATCH}"
    bars = [
        ("the tutorial's loop (torch)", words["tutorial_loop"], "#888888"),
        ("torch, no sampling", words["torch_step"], "#bbbbbb"),
        ("steplm fp32", words["fp32_text"], "#3b6fb6"),
        ("steplm int8", words["int8_text"], "#d9792b"),
        (f"steplm fp32, {_BATCH} texts", words[f"fp32_text{many}"], "#3b6fb6"),
        (f"steplm int8, {_BATCH} texts", words[f"int8_text{many}"], "#d9792b"),
    ]
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    names, values, colours = zip(*reversed(bars), strict=True)
    drawn = axes.barh(names, values, color=colours)
    axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(10, 4 * max(values))
    axes.set_xlabel("tokens a second, logarithmic")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tutorial", nargs=2, type=Path, metavar=("RUN", "BUNDLE"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, run, bundle = options.side
        run_side(name, Path(run), Path(bundle))
        return
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        figures = measure(tuple(options.tutorial or models["words"]), models["characters"])
    print("| what | bar | measured | |\n|---|---|---|---|")
    for what, bar, measured, met in rows(figures):
        print(f"| {what} | {bar} | {measured} | {'' if met is None else 'yes' if met else 'no'} |")
    if options.picture:
        draw(figures, options.picture)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
