"""A run of each family, exported: the bundle writes and scores as the torch model does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lm_runtime
from conftest import SMALL, TINY, run_command
from lm_runtime.generation.generate import generate_samples
from lm_runtime.sampling.params import SamplingParams
from lm_trainer.run.checkpoint import load_checkpoint, restore_model


def test_torch_and_the_bundle_sample_the_same_ids_and_text(family_run: Path, family_bundle: Path) -> None:
    model, tokenizer = restore_model(load_checkpoint(family_run))
    params = SamplingParams(max_tokens=150, temperature=0.9, top_p=0.95)
    texts = [
        list(generate_samples(candidate, "Mara wrote", params, seed=9, indices=(0, 1, 2)))
        for candidate in (model.step_model(tokenizer), lm_runtime.load(family_bundle))
    ]
    assert texts[0] == texts[1]


def test_lm_score_equals_the_trainer_s_own_figure(family_run: Path, family_bundle: Path) -> None:
    summary = json.loads((family_run / "summary.json").read_text())
    for split in ("valid", "test"):
        result = run_command(
            "lm-score", family_bundle, TINY / f"{split}.txt", "--json", cwd=family_run.parent
        )
        scored = json.loads(result.stdout)
        for name in ("perplexity", "bits_per_byte", "perplexity_per_word"):
            trained = summary[split][name]  # None of bits a byte where words are unknown
            assert scored[name] == (None if trained is None else pytest.approx(trained, rel=1e-4))
        assert (scored["tokens"], scored["unknown"]) == (summary[split]["tokens"], summary[split]["unknown"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lm_generate_runs_every_family(family_bundle: Path, precision: str) -> None:
    options = ["--prompt", "the keeper of", "--max-tokens", 30, "--seed", 1, "--precision", precision]
    if precision == "int8" and family_bundle.parent.name.startswith("ngram"):
        result = run_command("lm-generate", family_bundle, *options, cwd=family_bundle, code=2)
        assert result.stderr.splitlines()[-1].endswith("is an n-gram model, which has no int8 graph")
        return
    result = run_command("lm-generate", family_bundle, *options, cwd=family_bundle)
    assert len(result.stdout.split()) > 20


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_other_tokenizers_go_the_whole_way(tmp_path: Path, tokenizer: str) -> None:
    recipe = [*SMALL, "--tokenizer", tokenizer, "--vocab-size", 300, "--hidden-size", 24, "--tied"]
    run_command("lm-train", TINY, "--out", "run", "--epochs", 2, *recipe, cwd=tmp_path)
    run_command("lm-export", "run", "--out", "bundle", cwd=tmp_path)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    result = run_command("lm-score", "bundle", TINY / "valid.txt", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["perplexity"] == pytest.approx(summary["valid"]["perplexity"], rel=1e-4)
    result = run_command("lm-generate", "bundle", "--prompt", "The ", "--seed", 1, cwd=tmp_path)
    assert len(result.stdout) > 20
