"""A thousand damaged files of each format: each is refused in one line, or used; nothing else happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FIXTURE, ROOT
from toy_bundles import ngram_bundle

COUNT = 1000
MOST_SECONDS, MOST_MEGABYTES = 20, 500


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "onnx/model.onnx", "ngram/model.ngram"],
)
def test_damaged_files_are_refused_in_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    bundle = ngram_bundle(tmp_path / "bundle") if name.startswith("ngram") else FIXTURE
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "damage.py", bundle, name, str(COUNT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    assert found["loaded"] + found["refused"] == COUNT
    assert min(found["loaded"], found["refused"]) > 0
    assert found["seconds"] < MOST_SECONDS
    assert found["megabytes"] < MOST_MEGABYTES
    assert "Traceback" not in result.stderr
    assert "panicked" not in result.stderr
