"""Several runs side by side: their figures, what they have in common and what not, curves, samples.

Reads what the runs' folders say, without their checkpoints and without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lm_runtime.bundle import TOKENIZER
from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.score import not_comparable
from lm_runtime.text_files import read_text_file
from lm_trainer.config_file import read_settings
from lm_trainer.reports.metrics import read_metrics
from lm_trainer.reports.sample import read_sample
from lm_trainer.run.folder import METRICS, SETTINGS, SUMMARY

_NOT_COMPARED = ("device", "checkpoint_seconds", "sample_tokens", "tensorboard")


class _HasFolder(Protocol):
    @property
    def folder(self) -> Path: ...


@dataclass(frozen=True)
class Compared:
    """What is compared of one run."""

    name: str
    """What it is called beside the others."""
    settings: dict[str, Any]
    """The content of ``config.toml``."""
    records: list[dict[str, Any]]
    """The metrics."""
    summary: dict[str, Any]
    """The figures of a complete run; empty for another."""
    sample: str
    """A text of the best model; empty for a run that is not complete."""
    vocabulary: str
    """The text of its ``tokenizer.json``."""

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of validations."""
        return [record for record in self.records if record["event"] == "epoch"]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The records of the training text."""
        return [record for record in self.records if record["event"] == "step"]

    @property
    def bits_a_nat(self) -> float | None:
        """By what a loss in nats a token becomes bits a byte of the validation text, where that is known."""
        valid = self.summary.get("valid", {})
        bits, value = valid.get("bits_per_byte"), valid.get("perplexity", 1)
        return bits / math.log(value) if bits is not None and value > 1 else None

    @property
    def left_out(self) -> str:
        """Why bits a byte are not known, where other runs have them; empty where they are."""
        valid = self.summary.get("valid")
        if valid is None:
            return "not complete"
        return "" if valid["bits_per_byte"] is not None else not_comparable(valid["unknown"], valid["tokens"])

    @property
    def figures(self) -> dict[str, Any]:
        """Its row of the table; what is not known is None."""
        valid, test = self.summary.get("valid", {}), self.summary.get("test", {})
        best = min((record["valid_perplexity"] for record in self.epochs), default=None)
        last = self.records[-1] if self.records else {}
        tokens = self.steps[-1].get("tokens") if self.steps else None
        return {
            "run": self.name,
            "model": _model(self.settings),
            "parameters": self.summary.get("parameters"),
            "valid": valid.get("perplexity", best),
            "test": test.get("perplexity"),
            "bits_per_byte": valid.get("bits_per_byte"),
            "epochs": self.summary.get("epochs", len(self.epochs)),
            "seconds": last.get("seconds"),
            "tokens_per_second": tokens and tokens / self.steps[-1]["seconds"],
        }


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; a notebook shows their page."""

    runs: tuple[Compared, ...]
    """The runs, in the order in which they were given."""

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row of figures for each run: ``pandas.DataFrame(comparison.table)`` is a table."""
        return [run.figures for run in self.runs]

    @cached_property
    def differing(self) -> dict[str, list[Any]]:
        """The settings in which the runs differ, a value for each run; None where it has no such setting."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        values = {name: [run.settings.get(name) for run in self.runs] for name in names}
        return {
            name: found
            for name, found in values.items()
            if name not in _NOT_COMPARED and any(value != found[0] for value in found)
        }

    @property
    def same_vocabulary(self) -> bool:
        """Whether a token is the same in all runs, so that perplexities can be compared."""
        return len({run.vocabulary for run in self.runs}) == 1

    @property
    def cautions(self) -> list[str]:
        """What does not compare, a sentence each."""
        found = []
        if "corpus" in self.differing or "unwrap" in self.differing:
            found.append("the runs' texts differ: no figure of one compares with another's")
        if not self.same_vocabulary:
            found.append("the vocabularies differ: perplexities a token do not compare, bits a byte do")
            if without := [run.name for run in self.runs if run.bits_a_nat is None]:
                found.append(f"without bits a byte, and so without curve: {', '.join(without)}")
        return found

    def write_png(self, path: str | Path) -> None:
        """Draw the curves over steps and seconds."""
        from lm_trainer.reports.comparison_page import draw

        draw(self, Path(path))

    def write_html(self, path: str | Path) -> None:
        """Write the page: figures, curves, settings that differ, samples."""
        from lm_trainer.reports.comparison_page import write

        write(self, Path(path))

    def _repr_html_(self) -> str:
        from lm_trainer.reports.comparison_page import page
        from lm_trainer.reports.markup import in_frame

        return in_frame(page(self))

    def __repr__(self) -> str:
        return f"Comparison({', '.join(run.name for run in self.runs)})"


def compare(runs: Iterable[str | Path | _HasFolder]) -> Comparison:
    """Put runs side by side.

    Args:
        runs: folders, or what :func:`lm_trainer.train` returns; they need not be complete.

    Raises:
        ValueError: there is none.
        UnusableFileError: a folder holds no run, or a damaged one.
    """
    folders = [Path(run) if isinstance(run, str | Path) else run.folder for run in runs]
    if not folders:
        raise ValueError("there is no run to compare")
    return Comparison(tuple(map(_read, folders, _names(folders))))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or, where two are alike, as they were given."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> Compared:
    if not folder.exists():
        raise UnusableFileError(folder, "no such run")
    if not (folder / SETTINGS).is_file():
        raise UnusableFileError(folder, f"no run: it has no {SETTINGS}")
    return Compared(
        name,
        read_settings(folder / SETTINGS),
        read_metrics(folder) if (folder / METRICS).exists() else [],
        _summary(folder / SUMMARY),
        read_sample(folder) if (folder / SUMMARY).exists() else "",
        read_text_file(folder / TOKENIZER),
    )


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(read_text_file(path))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise UnusableFileError(path, "damaged")
    return summary


def _model(settings: dict[str, Any]) -> str:
    """The model in a few words."""
    if "model" not in settings:
        return f"from {settings.get('init', '')}"
    if settings.get("order"):
        return f"{settings['model']} of order {settings['order']}"
    return f"{settings['model']} {settings.get('layers', 1)} x {settings['hidden_size']}"
