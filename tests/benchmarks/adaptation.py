"""What a cache of what was read gives and costs: python tests/benchmarks/adaptation.py BUNDLE TEXT

BUNDLE is an export with --adaptive, of which the int8 graph is taken where there is one; --ngrams has n-grams
of the same vocabulary. The parameters are fitted on the first half of TEXT and the second half is scored, and
the other way round. Rates alternate with those of the plain model, by processor time; medians count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lm_runtime import SamplingParams, Session, generate_batch, load
from lm_runtime.bundle import Precision
from lm_runtime.models.adaptation import Adaptation
from lm_runtime.models.adaptive import AdaptiveModel
from lm_runtime.models.interpolation import InterpolatedModel, fit_weight
from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.adaptation import fit_adaptation
from lm_runtime.scoring.score import score_file

ROUNDS = 7
TOKENS = 600
SCORED_LINES = 200


def perplexities(model: StepModel, ngrams: StepModel | None, halves: tuple[Path, Path]) -> Adaptation:
    """Print a line for each half, by parameters of the other; return the last ones."""
    names = ["alone", "cache"] + (["n-grams", "n-grams and cache"] if ngrams else [])
    print("scored  " + "".join(f"{name:>20}" for name in names))
    for held_out, scored in (halves, halves[::-1]):
        adaptation = fit_adaptation(model, held_out)
        sides: list[StepModel] = [model, AdaptiveModel(model, adaptation)]
        if ngrams is not None:
            sides += [InterpolatedModel(side, ngrams, fit_weight(side, ngrams, held_out)) for side in sides]
        found = [score_file(side, scored).perplexity for side in sides]
        print(f"{scored.stem:8}" + "".join(f"{value:20.2f}" for value in found) + f"  {adaptation}")
    return adaptation


def rates(model: StepModel, adaptation: Adaptation, text: Path) -> None:
    """Print the rates of text and of scoring, plain and with a full cache."""
    adaptive = AdaptiveModel(model, adaptation)
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.txt"
        part.write_text("".join(lines[:SCORED_LINES]), encoding="utf-8")
        params = SamplingParams(max_tokens=TOKENS, top_p=0.95, temperature=0.8)

        def text_of(side: StepModel) -> Callable[[], int]:
            prompt = Session.start(side, "".join(lines[:60]))  # more tokens than the cache holds
            return lambda: sum(1 for _ in generate_batch(side, [prompt.fork(seed=1)], params))

        works = {
            "text": {name: text_of(side) for name, side in (("plain", model), ("cache", adaptive))},
            "scoring": {
                "plain": lambda: score_file(model, part).tokens,
                "cache": lambda: score_file(adaptive, part).tokens,
            },
        }
        for name, sides in works.items():
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            tokens = 0
            for _ in range(ROUNDS):
                for side, work in sides.items():
                    begun = time.process_time()
                    tokens = work()
                    seconds[side].append((time.process_time() - begun) / tokens)
            plain, cache = (1 / statistics.median(times) for times in seconds.values())
            print(f"{name}: {plain:,.0f} tokens/s plain, {cache:,.0f} with the cache: {cache / plain:.0%}")
        session = Session.start(adaptive, "".join(lines[:60]))
        session.save(Path(folder) / "s.npz", adaptive)
        print(f"a saved session: {(Path(folder) / 's.npz').stat().st_size / 1e3:,.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--ngrams", type=Path)
    options = parser.parse_args()
    precision: Precision = "int8" if (options.bundle / "onnx/model_quantized.onnx").exists() else "fp32"
    model = load(options.bundle, precision=precision, provider="cpu", threads=1)
    ngrams = load(options.ngrams) if options.ngrams else None
    lines = options.text.read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        halves = Path(folder) / "first.txt", Path(folder) / "second.txt"
        for half, own in zip(halves, (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=True):
            half.write_text("".join(own), encoding="utf-8")
        adaptation = perplexities(model, ngrams, halves)
    rates(model, adaptation, options.text)


if __name__ == "__main__":
    main()
