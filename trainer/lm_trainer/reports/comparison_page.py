"""The picture and the page of a comparison."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_runtime.scoring.score import perplexity
from lm_trainer.reports import markup
from lm_trainer.reports.comparison import Compared, Comparison
from lm_trainer.reports.pictures import new_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:red",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:gray",
)
_FEW = 20
"""The highest value by the lowest, up to which there is room for every number beside a logarithmic axis."""
_STYLE = """
body { max-width: 72em }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(20em, 1fr)); gap: 0 1.5em }
"""
_HEADINGS = {
    "run": "",
    "model": "model",
    "parameters": "parameters",
    "valid": "valid perplexity",
    "test": "test perplexity",
    "bits_per_byte": "bits a byte",
    "epochs": "epochs",
    "seconds": "seconds",
    "tokens_per_second": "tokens a second",
}


def rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """The table of figures as text: headings, then a row for each run."""
    yield tuple(_HEADINGS.values())
    for run in comparison.runs:
        figures = run.figures
        shown = {name: _shown(name, figures[name]) for name in _HEADINGS}
        yield tuple((shown | {"bits_per_byte": shown["bits_per_byte"] or run.left_out}).values())


def draw(comparison: Comparison, path: Path) -> None:
    """Draw the validation curves over steps and over seconds, the training text's thinner, as PNG."""
    save_picture(_figure(comparison), path)


def write(comparison: Comparison, path: Path) -> None:
    """Write the page."""
    markup.write_page(path, page(comparison))


def page(comparison: Comparison) -> str:
    """The page: figures, curves, settings that differ, samples."""
    file = io.BytesIO()
    _figure(comparison).savefig(file, format="png", dpi=110)
    names = [run.name for run in comparison.runs]
    settings = [("", *names)] + [
        (name, *("" if value is None else value for value in values))
        for name, values in comparison.differing.items()
    ]
    samples = "\n".join(
        f"<section><h3>{markup.escape(run.name)}</h3>\n<pre>{markup.escape(run.sample)}</pre></section>"
        for run in comparison.runs
        if run.sample
    )
    cautions = "\n".join(f"<p>{markup.escape(text)}</p>" for text in comparison.cautions)
    body = f"""{markup.table(rows(comparison))}
{cautions}
<h2>Curves</h2>
{markup.picture("the course of the runs over steps and seconds", file.getvalue())}
<h2>Settings that differ</h2>
{markup.table(settings)}
<h2>Samples</h2>
<div class="samples">
{samples}
</div>"""
    return markup.page(" and ".join(names) if len(names) < 4 else f"{len(names)} runs", body, _STYLE)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return (
            f"{value:,.3f}"
            if name == "bits_per_byte"
            else f"{value:,.0f}"
            if value >= 1000
            else f"{value:,.1f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figure(comparison: Comparison) -> Figure:
    """Perplexity where a token is the same in all runs, else bits a byte."""
    unit = "perplexity" if comparison.same_vocabulary else "bits a byte of valid"
    figure, over_steps = new_picture("steps", unit)
    figure.set_size_inches(13, 4.5)
    grid = figure.add_gridspec(1, 2)
    over_steps.set_subplotspec(grid[0])
    over_seconds = figure.add_subplot(grid[1])
    over_seconds.set_xlabel("seconds of training")
    over_seconds.grid(alpha=0.3)
    for number, run in enumerate(comparison.runs):
        value = perplexity if comparison.same_vocabulary else _bits(run)
        if value is not None:
            color = _COLORS[number % len(_COLORS)]
            _plot(over_steps, "step", run, value, color)
            _plot(over_seconds, "seconds", run, value, color)
    for axes in (over_steps, over_seconds):
        if comparison.same_vocabulary:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            low, high = axes.get_ylim()
            if high < _FEW * low:
                axes.yaxis.set_minor_formatter("{x:g}")
        if axes.lines:
            axes.legend()
    return figure


def _bits(run: Compared) -> Callable[[float], float] | None:
    scale = run.bits_a_nat
    return None if scale is None else lambda loss: loss * scale


def _plot(axes: Axes, along: str, run: Compared, value: Callable[[float], float], color: str) -> None:
    steps, epochs = run.steps, run.epochs
    losses = [value(record["loss"]) for record in steps]
    axes.plot([record[along] for record in steps], losses, color=color, alpha=0.35, linewidth=1)
    valid = [value(record["valid_loss"]) for record in epochs]
    places = [record[along] for record in epochs]
    best = f", {min(valid):.4g}" if valid and math.isfinite(min(valid)) else ""
    axes.plot(places, valid, "o-", color=color, markersize=4, label=f"{run.name}{best}")
