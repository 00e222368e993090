"""Who may import whom: lm_export -> lm_trainer -> lm_runtime, and torch only where it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FIXTURE, ROOT

_BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def python(code: str, blocked: tuple[str, ...] = (), cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BLOCK.format(blocked=blocked) + code],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


TRAINING = ("torch", "onnx", "onnxscript", "lm_trainer", "lm_export", "matplotlib", "pooch", "tqdm")


def test_the_runtime_generates_and_scores_without_torch_and_the_trainer() -> None:
    code = f"""
import lm_runtime
from pathlib import Path
model = lm_runtime.load({str(FIXTURE)!r})
assert "".join(lm_runtime.generate(model, "the", seed=1))
assert lm_runtime.score_file(model, Path("data/tiny/valid.txt")).tokens == 132
import lm_runtime.commands.generate, lm_runtime.commands.score
"""
    result = python(code, TRAINING)
    assert result.returncode == 0, result.stderr


def test_every_module_of_the_runtime_imports_without_torch() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "runtime").with_suffix("").parts)
        for path in (ROOT / "runtime").rglob("*.py")
    ]
    assert len(modules) > 8
    guests = ["lm_runtime.lm_eval", "lm_runtime.scoring.datatrove"]
    for guest in guests:
        modules.remove(guest)
    result = python("\n".join(f"import {module}" for module in modules), TRAINING)
    assert result.returncode == 0, result.stderr
    # Their hosts need tqdm themselves.
    blocked = tuple(name for name in TRAINING if name != "tqdm")
    result = python("\n".join(f"import {guest}" for guest in guests), blocked)
    assert result.returncode == 0, result.stderr


def test_the_trainer_does_not_know_the_exporter() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "trainer").with_suffix("").parts)
        for path in (ROOT / "trainer").rglob("*.py")
    ]
    assert len(modules) > 8
    result = python("\n".join(f"import {module}" for module in modules), ("lm_export", "onnx", "onnxscript"))
    assert result.returncode == 0, result.stderr


LIGHT = [
    "lm_trainer",
    "lm_runtime",
    "lm_runtime.bundle",
    "lm_runtime.files",
    "lm_runtime.sampling.params",
    "lm_runtime.settings",
    "lm_trainer.config",
    "lm_trainer.config_file",
    "lm_trainer.families",
    "lm_trainer.plan",
    "lm_trainer.presets",
    "lm_trainer.reports",
    "lm_trainer.run.folder",
]
"""What can be known without doing anything: records, names, plans."""
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "tokenizers", "matplotlib", "pooch", "tqdm")


def test_records_and_plans_need_the_standard_library_alone() -> None:
    result = python("\n".join(f"import {module}" for module in LIGHT), (*HEAVY, "click"))
    assert result.returncode == 0, result.stderr


RUNS_GRAPHS = ("lm_runtime.models.onnx", "lm_runtime.models.stepper")


def test_only_what_runs_a_graph_loads_onnxruntime() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / root).with_suffix("").parts)
        for root in ("runtime", "trainer")
        for path in (ROOT / root).rglob("*.py")
    ]
    assert set(RUNS_GRAPHS) < set(modules)
    others = "\n".join(f"import {module}" for module in modules if module not in RUNS_GRAPHS)
    result = python(others, ("onnxruntime",))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lm_trainer.reports.metrics", ("torch", "onnxruntime", "matplotlib", "tokenizers")),
        ("lm_trainer.reports.comparison_page", ("torch", "onnxruntime", "matplotlib")),
        ("lm_trainer.runs", ("torch", "onnxruntime", "matplotlib", "lm_export")),
        ("lm_trainer.reports.pictures", ("torch", "onnxruntime", "matplotlib")),
        ("lm_trainer.reports.summary", ("onnxruntime", "matplotlib", "tensorboard")),
        ("lm_trainer.networks.recurrent", ("onnxruntime", "matplotlib")),
        ("lm_trainer.corpora.corpus", ("torch", "onnxruntime", "pooch")),
        ("lm_runtime.scoring.score", ("torch", "onnxruntime")),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    result = python(f"import {module}; print(*sorted(set(sys.modules) & set({absent})))")
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr


COMMANDS = [
    "lm_trainer.command",
    "lm_trainer.commands.compare",
    "lm_trainer.commands.reach",
    "lm_export.command",
    "lm_runtime.commands.generate",
    "lm_runtime.commands.score",
    "lm_runtime.commands.bench",
    "lm_runtime.commands.serve",
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_waits_for_nothing_heavy(module: str) -> None:
    result = python(f"import {module}; {module}.main(['--help'])", HEAVY)
    assert result.returncode == 0, result.stderr
    assert "Examples:" in result.stdout


@pytest.mark.parametrize(("module", "name"), [("lm_trainer", "lm-train"), ("lm_export", "lm-export")])
def test_a_missing_extra_is_named_in_one_line(tmp_path: Path, module: str, name: str) -> None:
    result = python(f"import {module}.command as c; c.main([])", ("torch",), cwd=tmp_path)
    assert result.returncode == 1
    extra = "install the training extra: pip install '.[train]' in steplm's folder"
    expected = f"{name}: torch is not installed; {extra}\n"
    assert result.stderr == expected
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_missed_before_anything_is_done(tmp_path: Path) -> None:
    code = "import lm_trainer.command as c; c.main(['--tensorboard'])"
    result = python(code, ("tensorboard",), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "lm-train: tensorboard is not installed; install the tensorboard extra: "
        "pip install '.[tensorboard]' in steplm's folder\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_formats_see_the_bundle_alone() -> None:
    modules = [
        path.stem for path in (ROOT / "export/lm_export/formats").glob("*.py") if path.stem != "__init__"
    ]
    assert "arpa" in modules
    code = "\n".join(f"import lm_export.formats.{module}" for module in modules)
    result = python(code, ("torch", "lm_trainer"))
    assert result.returncode == 0, result.stderr
