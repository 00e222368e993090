"""Many short texts scored together against one at a time: python tests/benchmarks/scoring.py BUNDLE TEXT

The texts are lines of TEXT, and 100-best lists made of lines by changing a few words in each copy. One at a
time is either one call for a text, or one for a token. The sides alternate, and the best of the rounds
counts: what else the machine does can only make a side slower.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from lm_runtime.bundle import Precision
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.state import initial_state
from lm_runtime.scoring.score import token_log_probabilities
from lm_runtime.scoring.texts import score_texts
from lm_runtime.softmax import log_softmax_at
from lm_runtime.text_files import read_lines

_BEST = 100
_SAMPLE = 16
"""Where texts are scored one at a time, one in this number is."""


def nbest(lines: Sequence[str], lists: int, generator: random.Random) -> list[str]:
    """100 texts for each of some lines, with up to four words replaced by words of other lines."""
    words = [word for line in lines for word in line.split()]
    texts = []
    for line in generator.sample(list(lines), min(lists, len(lines))):
        for _ in range(_BEST):
            changed = line.split()
            for _ in range(generator.randint(0, 4)):
                if changed:
                    changed[generator.randrange(len(changed))] = generator.choice(words)
            texts.append(" ".join(changed))
    return texts


def call_by_text(model: OnnxModel, texts: Sequence[str]) -> int:
    """The tokens of ``texts``, each scored as a file of its own would be."""
    return sum(ids.size for text in texts for ids, _ in token_log_probabilities(model, [(text, True)]))


def call_by_token(model: OnnxModel, texts: Sequence[str]) -> int:
    """The same by single steps."""
    tokens = 0
    for text in texts:
        ids = [*model.tokenizer.encode(text), model.tokenizer.eos_id]
        stepper = model.stepper(initial_state(model, 1))
        for token, target in itertools.pairwise([model.tokenizer.eos_id, *ids]):
            log_softmax_at(stepper.step([token]), np.array([target]))
        tokens += len(ids)
    return tokens


def together(model: OnnxModel, texts: Sequence[str]) -> int:
    """The same all at once."""
    return sum(score.tokens for score in score_texts(model, texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--lines", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lines = list(itertools.islice(read_lines(options.text), options.lines))
    kinds = {"lines": lines, "100-best": nbest(lines, len(lines) // _BEST, random.Random(1))}
    sides: list[tuple[str, Callable[[OnnxModel, Sequence[str]], int], int]] = [
        ("a call for each token", call_by_token, _SAMPLE),
        ("a call for each text", call_by_text, _SAMPLE),
        ("together", together, 1),
    ]
    print(f"{'':32}{'tokens/s':>10}{'times':>8}{'times':>8}")
    for precision in get_args(Precision):
        model = OnnxModel(options.bundle, precision=precision, provider="cpu")
        for kind, texts in kinds.items():
            rates = dict.fromkeys((name for name, _, _ in sides), 0.0)
            for _ in range(options.rounds):
                for name, score, every in sides:
                    begun = time.perf_counter()
                    tokens = score(model, texts[::every])
                    rates[name] = max(rates[name], tokens / (time.perf_counter() - begun))
            by_token, by_text, _ = rates.values()
            for name, rate in rates.items():
                print(
                    f"{f'{precision} {kind}, {name}':32}"
                    f"{rate:10,.0f}{rate / by_token:8.1f}{rate / by_text:8.1f}"
                )


if __name__ == "__main__":
    main()
