"""A bundle that is exported again is there at every moment, the old one or the new one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Invoke, one_line, tree
from lm_export.bundle_writer import _folder_in_place
from lm_export.command import main as lm_export

LOADS = """
import json, sys, time
import lm_runtime

until, loads, seen = time.monotonic() + 4, 0, set()
while time.monotonic() < until:
    seen.add(lm_runtime.load("bundle", provider="cpu", threads=1).config.training["steps"])
    loads += 1
json.dump({"loads": loads, "seen": sorted(seen)}, sys.stdout)
"""


def marked(bundle: Path, folder: Path, steps: int) -> Path:
    """A copy that says how many steps it was trained."""
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "config.json").read_text())
    config["training"]["steps"] = steps
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_no_load_fails_while_bundles_replace_each_other(tmp_path: Path, small_bundle: Path) -> None:
    """No load meets a place without one, or a mixture of two."""
    sources = [marked(small_bundle, tmp_path / f"source{steps}", steps) for steps in (1, 2)]
    shutil.copytree(sources[0], tmp_path / "bundle")
    reader = subprocess.Popen([sys.executable, "-c", LOADS], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    exports = 0
    while reader.poll() is None:
        exports += 1
        with _folder_in_place(tmp_path / "bundle", replace=True) as folder:
            shutil.copytree(sources[exports % 2], folder, dirs_exist_ok=True)
        time.sleep(0.02)  # a load starts anew for at most three bundles that come while it reads
    assert reader.stdout is not None
    found = json.loads(reader.stdout.read())
    reader.stdout.close()
    assert reader.wait() == 0
    assert exports > 20
    assert found["loads"] > 20
    assert found["seen"] == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"source1", "source2", "bundle"}


def test_what_was_put_into_the_bundle_meanwhile_stays(tmp_path: Path, small_bundle: Path) -> None:
    """Between the look at what is there and the exchange."""
    shutil.copytree(small_bundle, tmp_path / "bundle")
    with (
        pytest.raises(ValueError, match="story is not the bundle's"),
        _folder_in_place(tmp_path / "bundle", replace=True) as folder,
    ):
        shutil.copytree(small_bundle, folder, dirs_exist_ok=True)
        (tmp_path / "bundle/story").write_text("mine")
    assert (tmp_path / "bundle/story").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_bundle_that_came_meanwhile_is_not_replaced(tmp_path: Path, small_bundle: Path) -> None:
    with (
        pytest.raises(ValueError, match="bundle holds something already"),
        _folder_in_place(tmp_path / "bundle", replace=False) as folder,
    ):
        (folder / "config.json").write_text("new")
        shutil.copytree(small_bundle, tmp_path / "bundle")
    assert tree(tmp_path / "bundle") == tree(small_bundle)


def test_a_bundle_left_aside_by_a_killed_export_comes_back(
    invoke: Invoke, tmp_path: Path, small_run: Path, small_bundle: Path
) -> None:
    """Where folders cannot be exchanged in one step."""
    shutil.copytree(small_bundle, tmp_path / ".bundle.0123456789abcdef.replaced/bundle")
    code, _, err = invoke(lm_export, small_run, "--out", "bundle")
    assert code == 2
    assert "bundle holds something already" in one_line(err)
    assert tree(tmp_path) == {"bundle", *(f"bundle/{name}" for name in tree(small_bundle))}
