"""The wheel, in an environment where torch is not installed: ``make`` builds both."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from conftest import FIXTURE, ROOT, TINY

ENVIRONMENT = ROOT / ".venv-runtime" / "bin"


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    assert ENVIRONMENT.exists(), "no .venv-runtime; make test makes it"
    name, *arguments = map(str, command)
    result = subprocess.run(
        [str(ENVIRONMENT / name), *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    return result


def test_the_environment_has_the_wheel_and_no_torch(tmp_path: Path) -> None:
    packages = run("python", "-m", "pip", "list", "--format=json", cwd=tmp_path).stdout
    names = {package["name"].lower(): package for package in json.loads(packages)}
    assert {"torch", "onnx", "onnxscript", "matplotlib"}.isdisjoint(names)
    assert "editable_project_location" not in names["steplm"]


def test_generate_and_score_run_there(tmp_path: Path) -> None:
    text = run("lm-generate", FIXTURE, "--seed", 1, "--max-tokens", 20, cwd=tmp_path).stdout
    assert len(text.split()) >= 15
    scored = run("lm-score", FIXTURE, TINY / "valid.txt", "--json", cwd=tmp_path).stdout
    assert 1 < json.loads(scored)["perplexity"] < 200


def test_the_readme_s_python_runs_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    code = text[text.index("```python\n") + len("```python\n") :].partition("```")[0]
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(FIXTURE, tmp_path / "artifacts/bundle")
    shutil.copy(TINY / "valid.txt", tmp_path / "text.txt")
    lines = run("python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert 1 < float(lines[-1].split()[-1]) < 200


def test_the_trainer_s_commands_name_the_extra(tmp_path: Path) -> None:
    for name in ("lm-train", "lm-export"):
        error = run(name, cwd=tmp_path, code=1).stderr
        assert error.startswith(f"{name}: ")
        assert error.endswith(
            "is not installed; install the training extra: pip install '.[train]' in steplm's folder\n"
        )
        assert error.count("\n") == 1
        assert run(name, "--help", cwd=tmp_path).stdout.startswith(f"Usage: {name}")


def test_ngrams_are_estimated_exported_and_mixed_in(tmp_path: Path) -> None:
    vocabulary = FIXTURE / "tokenizer.json"
    run("lm-train", TINY, "--model", "ngram", "--tokenizer", vocabulary, "--out", "run", cwd=tmp_path)
    run("lm-export", "run", "--out", "ngrams", cwd=tmp_path)
    options = ["--with", "ngrams", "--weight", 0.5, "--seed", 1, "--max-tokens", 20]
    assert len(run("lm-generate", FIXTURE, *options, cwd=tmp_path).stdout.split()) >= 15


def test_the_packages_are_typed(tmp_path: Path) -> None:
    code = (
        "import lm_runtime, pathlib; print((pathlib.Path(lm_runtime.__file__).parent / 'py.typed').exists())"
    )
    assert run("python", "-c", code, cwd=tmp_path).stdout == "True\n"
