"""Makes tests/fixtures/tiny_bundle, and what the torch model says beside it.

Run by ``make fixture``. The bundle and the expectations are committed, so that the runtime is tested
against torch where torch is not installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from conftest import FIXTURE, ROOT, TINY
from fixture_cases import GREEDY_TOKENS, PROMPT, SAMPLED, SCORED_TEXT
from lm_runtime.files import write_text
from lm_runtime.generation.generate import generate_samples
from lm_runtime.models.state import initial_state
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import token_log_probabilities
from lm_runtime.text_files import read_fragments
from lm_trainer.networks.base import TorchStepModel
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

_RECIPE = (
    "--tokenizer word --vocab-size 200 --embedding-dim 16 --hidden-size 24 --layers 2 --no-tied "
    "--batch-size 4 --seq-len 12 --epochs 30 --lr 0.01 --dropout 0 --sample-tokens 0"
).split()


def main() -> None:
    binaries = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([binaries / "lm-train", TINY, "--out", run, *_RECIPE], check=True)
        shutil.rmtree(FIXTURE, ignore_errors=True)
        subprocess.run([binaries / "lm-export", run, "--out", FIXTURE, "--quantize", "int8"], check=True)
        model, tokenizer = restore_model(load_checkpoint(run))
    torch_model = TorchStepModel(model, tokenizer)

    def ids(params: SamplingParams, seed: int, index: int) -> list[int | None]:
        pieces = generate_samples(torch_model, PROMPT, params, seed=seed, indices=(index,))
        return [piece.token for piece in pieces]

    logits, state = torch_model.step(np.array([[tokenizer.eos_id]]), initial_state(torch_model, 1))
    scored = token_log_probabilities(torch_model, read_fragments(ROOT / SCORED_TEXT))
    expected = {
        "first_logits": logits[0, 0].tolist(),
        "first_state": [tensor.ravel().tolist() for tensor in state],
        "greedy": ids(SamplingParams(temperature=0, max_tokens=GREEDY_TOKENS), 0, 0),
        "sampled": [ids(params, seed, index) for params, seed, index in SAMPLED],
        "log_probabilities": [value for _, part in scored for value in part.tolist()],
    }
    write_text(FIXTURE.with_suffix(".expected.json"), json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
