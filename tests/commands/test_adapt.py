"""``--adapt`` as users meet it: fitted, the bundle's default, and better on a text that repeats itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import FIXTURE, one_line, run_command
from toy_bundles import ngram_bundle

TEXT = "the keeper of the light saw the old sea\nthe old sea saw the keeper\n" * 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    run_command("lm-export", small_run, "--out", "bundle", "--adaptive", cwd=folder)
    return folder / "bundle"


@pytest.fixture
def place(tmp_path: Path, bundle: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def scored(place: Path, *options: object) -> dict[str, Any]:
    result = run_command("lm-score", "bundle", "text.txt", "--json", *options, cwd=place)
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_a_fit_becomes_the_bundle_s_default(place: Path) -> None:
    plain = scored(place)["perplexity"]
    unfitted = scored(place, "--adapt")["perplexity"]
    fitted = scored(place, "--fit-adaptation", "text.txt")["perplexity"]
    assert fitted < unfitted < plain
    assert scored(place, "--adapt")["perplexity"] == fitted
    assert scored(place)["perplexity"] == plain
    written = json.loads((place / "bundle/generation_config.json").read_text())
    assert {"cache_weight", "cache_theta", "cache_window", "temperature"} <= written.keys()
    assert scored(place, "--cache-weight", "0.01")["perplexity"] > fitted


def test_a_text_goes_on_with_what_it_has_read(place: Path) -> None:
    options = ["--adapt", "--cache-window", "50", "--max-tokens", "12"]
    prompt = ["--prompt-file", "text.txt", "--seed", "4"]
    first = run_command("lm-generate", "bundle", *prompt, *options, "--save-state", "s.npz", cwd=place)
    second = run_command("lm-generate", "bundle", *options, "--load-state", "s.npz", cwd=place)
    options[-1] = "24"
    whole = run_command("lm-generate", "bundle", *prompt, *options, cwd=place)
    assert whole.stdout.rstrip("\n") == first.stdout.rstrip("\n") + second.stdout.rstrip("\n")
    other = ["--cache-window", "51", "--max-tokens", "3"]
    result = run_command("lm-generate", "bundle", *other, "--load-state", "s.npz", cwd=place, code=1)
    assert "another model" in one_line(result.stderr)


def test_what_is_suggested_follows_what_was_read(place: Path) -> None:
    text = "old keeper\n" * 30 + "old"
    found = []
    for more in ([], ["--adapt", "--cache-weight", "0.5"]):
        options = ["--prompt", text, "--suggest", "50", "--json", *more]
        lines = run_command("lm-generate", "bundle", *options, cwd=place).stdout.splitlines()
        entries = {entry["text"]: entry["probability"] for entry in map(json.loads, lines)}
        found.append(entries.get(" keeper", 0.0))
    assert found[1] > 10 * found[0] > 0


def test_without_the_output_tokens_are_counted_and_it_is_said(place: Path) -> None:
    result = run_command("lm-score", FIXTURE, "text.txt", "--adapt", cwd=place)
    assert "tokens are counted" in one_line(result.stderr)
    ngrams = ngram_bundle(place / "ngrams")
    plain, adapted = (
        json.loads(run_command("lm-score", ngrams, "text.txt", "--json", *more, cwd=place).stdout)
        for more in ([], ["--adapt"])
    )
    assert adapted["perplexity"] != plain["perplexity"]


def test_a_bad_share_is_one_line(place: Path) -> None:
    result = run_command("lm-score", "bundle", "text.txt", "--cache-weight", "2", cwd=place, code=2)
    assert "cache_weight must be above 0 and below 1, got 2.0" in one_line(result.stderr)
    (place / "bundle/generation_config.json").write_text('{"cache_window": "x"}')
    result = run_command("lm-score", "bundle", "text.txt", cwd=place, code=1)
    assert "generation_config.json: not usable as sampling parameters" in one_line(result.stderr)
