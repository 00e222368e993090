"""What the JavaScript runtime must find in a bundle, written by Python for the tests of runtime/js."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

import lm_runtime
from lm_runtime import SamplingParams, Session, complete_word
from lm_runtime.generation.generate import generate_batch, suggest
from lm_runtime.models.protocol import BundleModel
from lm_runtime.models.state import initial_state
from lm_runtime.scoring.score import score_file

PROMPT = "the keeper of the"
TEXTS = [
    "",
    "\n\n",
    "the keeper\nof the\r\nsea  and the clock ",
    " the\tkeeper  xyzzy\u00a0the\x1cclock\u0085a\ufeffb <eos> <unk> </s>",
    "na\u00efve \u65e5\u672c\u8a9e \U0001f680 e\u0301\u0915\u093f",
    "don't I'LL 12,3\u2003x\u3000y\u2028z\x00",
]
JOINED = "\U0001f469\u200d\U0001f680"
"""What SentencePiece's tables of characters drop, and the JavaScript library does not."""
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0, "max_tokens": 40},
    {"temperature": 0.8, "top_p": 0.95, "max_tokens": 40},
    {"top_k": 12, "max_tokens": 40, "repetition_penalty": 1.3},
    {"banned": ["the"], "min_p": 0.02, "max_tokens": 30},
    {"stop": ["clo", "e t"], "max_tokens": 60},
]
SCORED = [
    "The keeper of the clock looked at the sea.\nIt was late.\n",
    "The keepers' clock-tower (the old one) \u2014 e.g. na\u00efve\u2026 3.5 % _x_ of it\u0085was late.\n\n",
    "def keeper(self): return self.x[0]\n    if 1 < x_1: ...\nFOO = {'a': 0}",
    "\u65e5\u672c\u8a9e \u0915\u093f the sea\nMara\nTom\n",
]
TYPED = ["the ke", "the ", "", "The lamp\nTh", "the lighthouse and the cl"]
"""Texts whose last word is completed."""
REFUSED: list[dict[str, Any]] = [
    {"top_k": -1},
    {"top_k": 1.5},
    {"top_p": 0},
    {"min_p": 2},
    {"temperature": 1001},
    {"max_tokens": True},
    {"stop": [""]},
    {"repetition_penalty": 0.001},
    {"no_repeat_ngram_size": 1001},
    {"frequency_penalty": -101},
    {"allow_unk": 1},
    {"logprobs": -1},
]
"""Parameters out of their ranges."""


def write_cases(folder: Path, bundle: Path) -> None:
    """Write ``cases.json`` about a bundle into the folder."""
    model = lm_runtime.load(bundle, provider="cpu", threads=1)
    logits, _ = model.step(np.array([[model.tokenizer.eos_id]]), initial_state(model, 1))
    cases = {
        "bundle": str(bundle),
        "encoded": [
            encoded(model, text) for text in (*TEXTS, *([JOINED] * (model.tokenizer.kind != "other")))
        ],
        "first_logits": logits[0, 0].tolist(),
        "scored": [scored(model, folder, text) for text in SCORED],
        "sampled": [sampled(model, values, seed) for seed, values in enumerate(SAMPLED)],
        "typed": [
            {"text": text, "line_breaks": line_breaks, "words": typed(model, text, line_breaks)}
            for text in TYPED
            for line_breaks in (False, True)
        ],
        "suggested": suggest(model, PROMPT, k=6),
        "session": saved(model, folder),
        "refused": [{"params": values, "message": message(values)} for values in REFUSED],
    }
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")


def check_saved(folder: Path, bundle: Path) -> None:
    """Go on with the session that JavaScript saved; the text is the one that it got."""
    model = lm_runtime.load(bundle, provider="cpu", threads=1)
    expected = json.loads((folder / "from_js.json").read_text(encoding="utf-8"))
    session = Session.load(folder / "from_js.npz", model)
    assert ids_of(model, session, expected["params"]) == expected["ids"]


def encoded(model: BundleModel, text: str) -> dict[str, Any]:
    ids = model.tokenizer.encode(text)
    return {"text": text, "ids": ids, "decoded": model.tokenizer.decode(ids)}


def scored(model: BundleModel, folder: Path, text: str) -> dict[str, Any]:
    (folder / "scored.txt").write_text(text, encoding="utf-8")
    values: list[float] = []
    score = score_file(model, folder / "scored.txt", each=lambda _, found: values.extend(found.tolist()))
    return {
        "text": text,
        "log_probabilities": values,
        "bits_per_byte": score.bits_per_byte,
        "perplexity_per_word": score.perplexity_per_word,
        "counted": [score.bytes, score.words, score.lines, score.ordinary],
    }


def typed(model: BundleModel, text: str, line_breaks: bool) -> list[tuple[str, float]]:
    return complete_word(model, text, k=4, line_breaks=line_breaks)


def sampled(model: BundleModel, values: dict[str, Any], seed: int) -> dict[str, Any]:
    params = SamplingParams(**values)
    text = "".join(lm_runtime.generate(model, PROMPT, params, seed=seed, index=1))
    return {"prompt": PROMPT, "params": values, "seed": seed, "index": 1, "text": text}


def saved(model: BundleModel, folder: Path) -> dict[str, Any]:
    params = {"max_tokens": 20, "top_p": 0.9}
    session = Session.start(model, PROMPT, seed=5)
    session.save(folder / "from_python.npz", model)
    content = (folder / "from_python.npz").read_bytes()
    return {
        "file": base64.b64encode(content).decode(),
        "params": params,
        "ids": ids_of(model, session, params),
    }


def ids_of(model: BundleModel, session: Session, values: dict[str, Any]) -> list[int | None]:
    return [piece.token for piece in generate_batch(model, [session], SamplingParams(**values))]


def message(values: dict[str, Any]) -> str:
    try:
        dataclasses.replace(SamplingParams(), **values)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{values} are not refused")
