"""Training from Python: ``lm_trainer.train`` gives a :class:`Run`, as ``lm-train`` gives its folder.

Names and values are those of ``lm-train``'s options and of a run's ``config.toml``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.score import perplexity
from lm_trainer.config_file import in_file, read_settings
from lm_trainer.plan import ALL_SETTINGS, Call, RunSettings, plan
from lm_trainer.reports.markup import in_frame
from lm_trainer.reports.metrics import read_metrics
from lm_trainer.reports.sample import read_sample
from lm_trainer.run.folder import BEST, LAST, REPORT, SETTINGS, SUMMARY
from lm_trainer.training.threads import wait_passively

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_EXPORTER = "lm_export.from_python"
"""It stands above the trainer, which never imports it by itself: it is looked up when a run is exported."""


@dataclass(frozen=True)
class Run:
    """A run that was trained, here or by ``lm-train``: what its folder says, read when it is asked for.

    Raises:
        UnusableFileError: the folder holds no run.
    """

    folder: Path
    """The run's folder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not self.folder.exists():
            raise UnusableFileError(self.folder, "no such run")
        if not (self.folder / LAST).is_file():
            raise UnusableFileError(self.folder, f"no run: it has no {LAST}")

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The course of the training, a record for each report and each epoch's end, in their order.

        Each has ``epoch``, ``step``, ``seconds``, ``train_perplexity`` since the record before it, and
        ``valid_perplexity``; what it has not is None. ``pandas.DataFrame`` takes it as it is.
        """
        return [
            {
                "epoch": record["epoch"],
                "step": record["step"],
                "seconds": record["seconds"],
                "train_perplexity": perplexity(record["loss"]) if record["event"] == "step" else None,
                "valid_perplexity": record.get("valid_perplexity"),
            }
            for record in read_metrics(self.folder)
        ]

    @property
    def summary(self) -> dict[str, Any]:
        """The figures of the complete run: the content of ``summary.json``.

        Raises:
            UnusableFileError: the run is not complete.
        """
        from lm_trainer.reports.summary import read_summary  # which needs torch

        if (found := read_summary(self.folder)) is None:
            raise UnusableFileError(self.folder / SUMMARY, "missing: the run is not complete")
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that repeat the run: the content of ``config.toml``."""
        return read_settings(self.folder / SETTINGS)

    @property
    def sample(self) -> str:
        """A text of the best model."""
        return read_sample(self.folder)

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest validation loss."""
        return self.folder / BEST

    def export(
        self,
        path: str | Path,
        *,
        quantize: str | None = None,
        opset: int = 17,
        formats: tuple[str, ...] = (),
        force: bool = False,
    ) -> Path:
        """Export the best checkpoint to a bundle, as ``lm-export`` does, for :func:`lm_runtime.load`.

        Args:
            path: the bundle's folder.
            quantize: "int8" adds a graph with quantized weights.
            opset: the ONNX operator set.
            formats: what else is added for other tools, by the names of ``lm-export --format``.
            force: whether a bundle that is there may be replaced.

        Returns:
            the bundle's folder.

        Raises:
            ValueError: an argument is not possible, or the folder holds something.
        """
        export = importlib.import_module(_EXPORTER).export
        export(self.folder, Path(path), quantize=quantize, opset=opset, formats=formats, force=force)
        return Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str | None:
        """The run's page, for notebooks."""
        page = self.folder / REPORT
        return in_frame(page.read_text("utf-8", "replace")) if page.is_file() else None


def train(
    corpus: str | Path | None = None,
    *,
    preset: str | None = None,
    out: str | Path = RunSettings.out,
    resume: bool = False,
    force: bool = False,
    **settings: Any,
) -> Run:
    """Train a model, as ``lm-train`` does; how it goes is told on standard error.

    Args:
        corpus: a folder, a file, or a name; pydocs unless given.
        preset: the recipe, which ``settings`` change; small unless given.
        out: the run's folder.
        resume: whether to go on with the run that is there.
        force: whether to replace it.
        settings: options of ``lm-train`` by their names, with underscores: ``layers=2``, ``hidden_size=512``.

    Raises:
        ValueError: a setting is unknown, out of its range, or contradicts another one.
        UnusableFileError: the corpus or the run that is there cannot be used.
        TrainingError: the run cannot go on.
        InterruptedRunError: a signal ended it, as a notebook's stop button sends one; its checkpoint is
            written, and ``resume=True`` goes on.
    """
    given = {"corpus": corpus, "preset": preset, "out": out, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    call = Call(_by_fields(given), resume=resume, force=force)
    what = plan(call, has_run=(call.out / LAST).is_file())
    wait_passively()
    from lm_trainer.run import execution  # which needs torch
    from lm_trainer.training.progress import InterruptedRunError

    with _handlers_kept():
        try:
            execution.train(what, lambda: None)
        except InterruptedRunError as stop:
            raise InterruptedRunError(str(stop).replace("--resume", "resume=True")) from None
    return Run(call.out)


def _by_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names of their fields, each checked."""
    fields = {in_file(entry): entry for entry in ALL_SETTINGS.values()}
    found = {}
    for name, value in settings.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; is {near[0]} meant?" if near else ""
            raise ValueError(f"no setting is called {name}; they are the options of lm-train{hint}")
        entry = fields[name]
        if isinstance(value, Path):
            value = str(value)
        if entry.kind is float and type(value) is int:
            value = float(value)
        dataclasses.replace(entry, name=name).check(value)
        found[entry.name] = value
    return found


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Afterwards the process handles signals as before: a run that was stopped ignores further ones."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None))]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # set by others than Python
                signal.signal(number, handler)
