"""``python -m`` does what the commands do, where their scripts are not on the path."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import FIXTURE, ROOT, run_command

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def python(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result


def test_lm_runtime_generates_what_the_command_generates(tmp_path: Path) -> None:
    options = [FIXTURE, "--seed", 3, "--max-tokens", 20]
    expected = run_command("lm-generate", *options, cwd=tmp_path).stdout
    assert python("lm_runtime", "generate", *options, cwd=tmp_path).stdout == expected != ""


@pytest.mark.parametrize(("script", "place"), SCRIPTS.items())
def test_every_command_has_its_name_there(tmp_path: Path, script: str, place: str) -> None:
    if script == "lm-eval-steplm":
        return  # its help is lm-eval's own, which takes seconds to load
    module, _, function = place.partition(":")
    package, name = module.partition(".")[0], function.removeprefix("lm_").replace("_", "-")
    assert python(package, name, "--help", cwd=tmp_path).stdout.startswith(f"Usage: {script} ")


def test_the_name_of_a_package_s_only_command_may_be_left_out(tmp_path: Path) -> None:
    error = python("lm_export", "nothing", "--opset", 5, cwd=tmp_path, code=2).stderr
    assert error.startswith("lm-export: ")


def test_a_name_that_is_missing_or_wrong_is_one_line(tmp_path: Path) -> None:
    for arguments in ([], ["generat"], [FIXTURE]):
        error = python("lm_runtime", *arguments, cwd=tmp_path, code=2).stderr
        assert error.startswith(
            "lm_runtime: usage: python -m lm_runtime NAME ..., NAME one of generate, score"
        )
        assert error.count("\n") == 1
    assert "usage: python -m lm_runtime NAME" in python("lm_runtime", "--help", cwd=tmp_path).stdout
