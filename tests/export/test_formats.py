"""Formats for other tools: added on request, proven before the bundle is in place, refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import Invoke, one_line, run_command, tree
from lm_export.bundle_writer import export_bundle
from lm_export.command import main as lm_export
from lm_export.errors import ExportError
from lm_export.formats.registry import FORMATS, Format, model_files
from lm_runtime.bundle import BundleConfig
from lm_runtime.models.protocol import BundleModel


class Counting(ModuleType):
    """A format that writes the number of tokens, registered from outside."""

    proven = True

    def refusal(self, config: BundleConfig) -> str:
        return "" if config.num_hidden_layers == 2 else "counting needs two layers"

    def write(self, model: BundleModel) -> None:
        (model.folder / "count.txt").write_text(f"{model.config.vocab_size}\n")

    def prove(self, model: BundleModel, held_out: Any) -> str:
        if not self.proven:
            raise ExportError("counting is wrong")
        return f"{held_out.size} tokens"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    module = Counting("counting_format")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    described = Format("the number of tokens", module.__name__, {"count.txt": "a number"})
    monkeypatch.setitem(FORMATS, "counting", described)
    return module


def export(run: Path, *formats: str) -> list[str]:
    said: list[str] = []
    export_bundle(
        run, Path("bundle"), opset=17, quantize=False, formats=formats, replace=False, tell=said.append
    )
    return said


def test_a_format_from_outside_is_written_proven_hashed_and_on_the_card(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    monkeypatch.chdir(tmp_path)
    said = export(small_run, "counting", "counting")
    assert [line for line in said if line.startswith("counting")] == ["counting: 132 tokens"]
    assert (tmp_path / "bundle/count.txt").read_text() == "180\n"
    assert "count.txt" in json.loads((tmp_path / "bundle/config.json").read_text())["files"]
    assert "| `count.txt` (a number) |" in (tmp_path / "bundle/README.md").read_text()


def test_a_format_whose_proof_fails_writes_no_bundle(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    monkeypatch.chdir(tmp_path)
    counting.proven = False
    with pytest.raises(ExportError, match="counting is wrong"):
        export(small_run, "counting")
    assert tree(tmp_path) == set()


def test_a_format_that_does_not_apply_is_refused_before_anything_is_written(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(counting, "refusal", lambda config: "counting is for others", raising=False)
    with pytest.raises(ValueError, match=r"^counting is for others; leave out --format counting$"):
        export(small_run, "counting")
    with pytest.raises(ValueError, match=f"^format must be one of {', '.join(FORMATS)}, got sherpas$"):
        export(small_run, "sherpas")
    assert tree(tmp_path) == set()


def test_an_unknown_format_is_named_with_those_that_exist(invoke: Invoke, small_run: Path) -> None:
    code, _, err = invoke(lm_export, small_run, "--out", "bundle", "--format", "kaldi")
    assert code == 2
    assert "'kaldi' is not" in one_line(err)
    assert all(f"'{name}'" in one_line(err) for name in FORMATS)


def test_every_format_is_described_in_the_help(tmp_path: Path) -> None:
    help_text = " ".join(run_command("lm-export", "--help", cwd=tmp_path).stdout.split())
    for name, format_ in FORMATS.items():
        assert f"{name} ({format_.description})" in help_text


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_defines_what_the_exporter_calls(name: str) -> None:
    writer = FORMATS[name].load()
    assert all(callable(getattr(writer, each)) for each in ("refusal", "write", "prove"))
    assert FORMATS[name].files.keys() <= model_files().keys()
