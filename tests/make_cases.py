"""Writes tests/fixtures/cases.json: what any reader of the fixture bundle must find (runtime/FORMAT.md).

Run it after the fixture was made anew; it needs the runtime alone: python tests/make_cases.py
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import lm_runtime
from lm_runtime.bundle import Precision
from lm_runtime.files import write_text
from lm_runtime.generation.generate import generate_batch
from lm_runtime.generation.session import Session
from lm_runtime.models.ngram import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.models.protocol import BundleModel
from lm_runtime.models.state import initial_state
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import score_file, token_log_probabilities
from lm_runtime.text_files import read_fragments

FIXTURES = Path(__file__).parent / "fixtures"
CASES = FIXTURES / "cases.json"
PRECISION: Precision = "fp32"
PROMPT = "the keeper of the"
TEXTS = [
    "",
    "the keeper of the sea",
    "the keeper\nof the\r\nsea\n",
    "\n\n",
    " the\tkeeper  xyzzy\u00a0the\x1cclock <eos> ",
    "<eos>\r\n\ufeffthe <unk> x<unk>y\u0085sea\r\r\n",
]
SCORED = "data/tiny/valid.txt"
SAMPLED: list[tuple[dict[str, Any], int, int]] = [
    ({"max_tokens": 40}, 1, 0),
    ({"max_tokens": 40, "temperature": 0.7, "top_k": 20}, 2, 3),
    ({"max_tokens": 40, "top_p": 0.5}, 3, 1),
    ({"max_tokens": 40, "top_p": 0.9, "repetition_penalty": 1.2}, 3, 1),
    ({"max_tokens": 40, "top_k": 10, "top_p": 0.9}, 4, 2),
    ({"max_tokens": 40, "temperature": 1.5, "min_p": 0.05, "allow_unk": True}, 4, 0),
    ({"max_tokens": 30, "typical_p": 0.6, "frequency_penalty": 0.5, "presence_penalty": 0.2}, 5, 0),
    ({"max_tokens": 30, "no_repeat_ngram_size": 2, "logit_bias": {"2": 2.0}, "top_k": 1}, 1 << 40, 7),
]
"""Parameters, seed and index of each sampled text."""
GENERATORS = [(0, 0), (1, 0), (0, 1), (1 << 32, 5), ((1 << 70) + 3, 1 << 33)]


class Recording(np.random.Generator):
    """A generator that remembers what it gave."""

    uniforms: list[float]

    def random(self, *_: Any, **__: Any) -> Any:
        self.uniforms.append(float(super().random()))
        return self.uniforms[-1]


def params_of(values: dict[str, Any]) -> SamplingParams:
    """Parameters as the cases have them: JSON's keys are texts."""
    bias = {int(token): value for token, value in values.get("logit_bias", {}).items()}
    return SamplingParams(**{**values, "logit_bias": bias})


def main() -> None:
    model = lm_runtime.load(FIXTURES / "tiny_bundle", precision=PRECISION, provider="cpu")
    cases = {
        "encoded": [encoded(model, text) for text in TEXTS],
        "first_step": first_step(model),
        "scored": scored(model),
        "greedy": sampled(model, {"temperature": 0, "max_tokens": 60}, 0, 0),
        "sampled": [sampled(model, *case) for case in SAMPLED],
        "generators": [generator(seed, index) for seed, index in GENERATORS],
        "session": session(model),
        "ngram": ngram(),
    }
    write_text(CASES, json.dumps(cases, indent=1, ensure_ascii=True) + "\n")


def encoded(model: BundleModel, text: str) -> dict[str, Any]:
    ids = model.tokenizer.encode(text)
    return {"text": text, "ids": ids, "decoded": model.tokenizer.decode(ids)}


def first_step(model: BundleModel) -> dict[str, Any]:
    logits, state = model.step(np.array([[model.tokenizer.eos_id]]), initial_state(model, 1))
    names = [tensor.name for tensor in model.states]
    tensors = {name: array.ravel().tolist() for name, array in zip(names, state, strict=True)}
    return {"logits": logits[0, 0].tolist(), "state": tensors}


def scored(model: BundleModel) -> dict[str, Any]:
    path = FIXTURES.parents[1] / SCORED
    parts = list(token_log_probabilities(model, read_fragments(path)))
    score = score_file(model, path)
    return {
        "text": path.read_text(encoding="utf-8"),
        "ids": [token for ids, _ in parts for token in ids.tolist()],
        "log_probabilities": [value for _, values in parts for value in values.tolist()],
        "perplexity": score.perplexity,
        "bits_per_byte": -score.log_probability / math.log(2) / score.bytes,
        "perplexity_per_word": score.perplexity_per_word,
    }


def sampled(model: BundleModel, values: dict[str, Any], seed: int, index: int) -> dict[str, Any]:
    params = dataclasses.replace(params_of(values), logprobs=0)
    session = Session.start(model, PROMPT, seed=seed, index=index)
    recording = Recording(session.generator.bit_generator)
    recording.uniforms = []
    session.generator = recording
    pieces = [piece for piece in generate_batch(model, [session], params) if piece.token is not None]
    return {
        "prompt": PROMPT,
        "params": values,
        "seed": str(seed),
        "index": str(index),
        "uniforms": recording.uniforms,
        "ids": [piece.token for piece in pieces],
        "text": "".join(piece.text for piece in pieces) + session.flush(),
        "log_probabilities": [piece.log_probability for piece in pieces],
    }


def generator(seed: int, index: int) -> dict[str, Any]:
    made = np.random.default_rng([seed, index])
    numbers: Any = made.bit_generator.state["state"]
    return {
        "seed": str(seed),
        "index": str(index),
        "state": str(numbers["state"]),
        "inc": str(numbers["inc"]),
        "uniforms": made.random(5).tolist(),
    }


def session(model: BundleModel) -> dict[str, Any]:
    values = {"max_tokens": 20, "top_p": 0.9}
    begun = Session.start(model, PROMPT, seed=9)
    with tempfile.TemporaryDirectory() as folder:
        begun.save(Path(folder) / "s.npz", model)
        content = (Path(folder) / "s.npz").read_bytes()
    ids = [piece.token for piece in generate_batch(model, [begun], params_of(values))]
    return {
        "prompt": PROMPT,
        "seed": "9",
        "file": base64.b64encode(content).decode(),
        "params": values,
        "ids": ids,
    }


def ngram() -> dict[str, Any]:
    """Five tokens; "1 2" and "2 3" were seen, and "1 2 3", of which only the last is ever more than rare."""
    half = np.float32(np.log(0.5))
    tables = NgramTables(
        order=3,
        vocab_size=5,
        eos_id=0,
        words=(np.array([1, 2, 3], np.uint16), np.array([3], np.uint16)),
        log_probabilities=(
            np.log(np.array([0.2, 0.3, 0.2, 0.2, 0.1], np.float32)),
            np.array([half, half, half], np.float32),
            np.array([np.log(0.9)], np.float32),
        ),
        backoffs=(
            np.array([-0.5, -0.25, -0.125, 0, 0], np.float32),
            np.array([0, -1.5, 0], np.float32),
        ),
        # After 0 comes 1, after 1 comes 2, after 2 comes 3; after "1 2" comes 3.
        offsets=(np.array([0, 1, 2, 3, 3, 3], np.uint32), np.array([0, 0, 1, 1], np.uint32)),
    )
    ids = [1, 2, 3, 0, 1, 2, 4, 4, 0, 2, 3, 3, 0, 0]
    values = log_probabilities(tables, np.array(ids))
    return {
        "file": base64.b64encode(tables.to_bytes()).decode(),
        "ids": ids,
        "log_probabilities": values.tolist(),
    }


if __name__ == "__main__":
    main()
