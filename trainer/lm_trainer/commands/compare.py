"""``lm-compare``: runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lm_runtime.commands import Command, imports, note
from lm_runtime.files import require_place

_EXAMPLES = """
\b
Examples:
  lm-compare my-run ptb-run
  lm-compare my-run ptb-run --html runs.html    figures, curves, settings that differ, samples
  lm-compare my-run ptb-run --png runs.png
"""


@click.command(cls=Command, name="lm-compare", epilog=_EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page that needs no other file: figures, curves, settings that differ, samples.",
)
@click.option(
    "--png",
    "picture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the curves over steps and seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each run.")
@click.version_option(package_name="steplm")
def main(runs: tuple[Path, ...], page: Path | None, picture: Path | None, as_json: bool) -> None:
    """Print the figures of each RUN, a folder that lm-train wrote, side by side.

    A run need not be complete. Where vocabularies differ, curves are in bits a byte: perplexities a token do
    not compare.
    """
    for place in filter(None, (page, picture)):
        require_place(place)
    with imports():
        from lm_trainer.reports.comparison import compare
        from lm_trainer.reports.comparison_page import rows

    comparison = compare(runs)
    if page is not None:
        comparison.write_html(page)
    if picture is not None:
        comparison.write_png(picture)
    if as_json:
        for figures in comparison.table:
            click.echo(json.dumps(figures, ensure_ascii=False).encode())
        return
    lines = list(rows(comparison))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        words = (cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True))
        numbers = (cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True))
        click.echo("  ".join([*words, *numbers]).rstrip().encode())
    for text in comparison.cautions:
        note(f"note: {text}")
