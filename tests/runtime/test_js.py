"""The JavaScript runtime: its own tests, and bundles of every family and tokenizer read there as here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, SMALL, TINY, Invoke
from js_cases import check_saved, write_cases
from lm_export.command import main as lm_export
from lm_trainer.command import main as lm_train

JS = ROOT / "runtime" / "js"
OLDEST_NODE = 20
NODE = ["node", "--no-wasm-tier-up", "--test", "--test-reporter=spec"]
"""Compiling onnxruntime's wasm a second time, for speed, takes longer than these tests."""


def missing() -> str:
    """Why the JavaScript tests cannot run; empty where they can."""
    if shutil.which("node") is None:
        return "Node is not installed"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        return f"Node {OLDEST_NODE} is needed, and this is {version}"
    if not (JS / "node_modules").is_dir():
        return "runtime/js is not set up: npm ci"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "it is there")


def run(*arguments: object, **environment: str) -> str:
    """Run a program of the package; what it printed."""
    result = subprocess.run(
        [*map(str, arguments)],
        cwd=JS,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout


def read_in_js(folder: Path, bundle: Path, engine: str) -> None:
    write_cases(folder, bundle)
    run(*NODE, "test/made.test.js", STEPLM_CASES=str(folder), STEPLM_ENGINE=engine)
    check_saved(folder, bundle)


def test_the_package_passes_its_own_tests() -> None:
    tests = sorted(path.relative_to(JS) for path in (JS / "test").glob("*.test.js"))
    run(*NODE, *tests)


def test_the_sources_are_formatted_linted_and_typed() -> None:
    run("npm", "run", "lint")


def test_every_family_reads_the_same(family_bundle: Path, tmp_path: Path) -> None:
    read_in_js(tmp_path, family_bundle, "wasm")


def test_ordinary_words_in_lower_case_read_the_same(invoke: Invoke, tmp_path: Path) -> None:
    options = [*SMALL, "--tokenizer", "words", "--lowercase", "--epochs", 2]
    assert invoke(lm_train, TINY, "--out", "run", *options)[0] == 0
    assert invoke(lm_export, "run", "--out", "bundle")[0] == 0
    read_in_js(tmp_path, tmp_path / "bundle", "native")


def test_every_tokenizer_reads_the_same(spelled_bundle: Path, tmp_path: Path) -> None:
    read_in_js(tmp_path, spelled_bundle, "native")
