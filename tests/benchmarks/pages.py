"""What the benchmarks that keep their figures and write a page have in common."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lm_runtime.files import write_text
from lm_trainer.presets import PRESETS


def command(name: str, *arguments: object, quiet: bool = False) -> str:
    """Run one of the project's commands; its progress is shown, its output returned.

    A quiet one shows nothing: what it tells is in the error, where it fails.
    """
    call = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    print("$", name, *arguments, file=sys.stderr, flush=True)
    errors = subprocess.PIPE if quiet else None
    return subprocess.run(call, check=True, stdout=subprocess.PIPE, stderr=errors, text=True).stdout


def measured_once(
    path: Path, settings: Mapping[str, Any], measure: Callable[..., Any], *arguments: object
) -> Any:
    """What ``measure`` returns for the arguments, kept as JSON: it is not called where the file is there.

    Figures of other settings than these end the benchmark.
    """
    if not path.exists():
        write_text(path, json.dumps({"settings": settings, "figures": measure(*arguments)}))
    kept = json.loads(path.read_text())
    if kept["settings"] != json.loads(json.dumps(settings)):  # which knows no tuples
        sys.exit(f"{path}: figures of other settings; they are measured anew in another folder")
    return kept["figures"]


def recipe(options: str) -> dict[str, Any]:
    """The settings of a run with the options for lm-train, of which ``--preset`` is the first."""
    preset = dataclasses.asdict(PRESETS[options.split()[1]])
    del preset["description"]
    return {"options": options, "preset": preset}


def spread(values: Sequence[float], form: str) -> str:
    """The mean of the seeds' figures, and where there are several their range."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def samples(texts: Mapping[str, str]) -> list[str]:
    """Lines of a page: a text of each model, as ``sample`` generates it."""
    lines = [
        "## A sample of each",
        "`lm-generate BUNDLE --max-tokens 60 --seed 1`, temperature 0.8, top-p 0.95:",
        "",
    ]
    for name, text in texts.items():
        lines += [f"**{name}**", "```", text.strip("\n"), "```", ""]
    return lines


def sample(bundle: Path) -> str:
    """The beginning of what a model generates."""
    return command("lm-generate", bundle, "--max-tokens", 60, "--seed", 1)


def machine() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()
