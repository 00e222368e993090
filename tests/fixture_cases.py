"""What the fixture bundle is asked, by the program that makes it and by the test that reads it."""

from __future__ import annotations

from lm_runtime.sampling.params import SamplingParams

PROMPT = "the keeper of the"
GREEDY_TOKENS = 60
SCORED_TEXT = "data/tiny/valid.txt"
SAMPLED = [
    (SamplingParams(max_tokens=40), 1, 0),
    (SamplingParams(max_tokens=40, temperature=0.7, top_k=20), 2, 3),
    (SamplingParams(max_tokens=40, top_p=0.9, repetition_penalty=1.2), 3, 1),
    (SamplingParams(max_tokens=40, temperature=1.5, min_p=0.05, allow_unk=True), 4, 0),
]
"""Parameters, seed and index of each sampled text."""
