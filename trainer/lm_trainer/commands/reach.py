"""``lm-reach``: how far back gradients reach."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lm_runtime.commands import Command, imports, note
from lm_runtime.files import require_place

_DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

_EXAMPLES = """
\b
Examples:
  lm-reach my-run
  lm-reach my-run ptb-run --png reach.png       curves side by side
"""


@click.command(cls=Command, name="lm-reach", epilog=_EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--tokens",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="How far back to look.",
)
@click.option(
    "--png",
    "picture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the curves of all RUNs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each run.")
@click.version_option(package_name="steplm")
def main(runs: tuple[Path, ...], tokens: int, picture: Path | None, as_json: bool) -> None:
    """Print how far back the gradients of RUN, a folder that lm-train wrote, reach.

    It is the norm of the gradient of one prediction's loss by the embedding of a token at that distance, as a
    share of that of the newest token; a mean over up to 64 stretches of the validation text, each read from a
    zero state. Beside it stands the same network with new weights.
    """
    if picture is not None:
        require_place(picture)
    with imports():
        from lm_trainer.reports.reach import draw_reach, reach_of

    found = {str(run): reach_of(run, tokens) for run in runs}
    if picture is not None:
        draw_reach(found, picture)
    if as_json:
        for name, reach in found.items():
            curves = {"trained": reach.trained.tolist(), "new_weights": reach.new.tolist()}
            click.echo(json.dumps({"run": name, "texts": reach.texts, **curves}, ensure_ascii=False).encode())
        return
    for name, reach in found.items():
        click.echo(f"{name}\n{'tokens back':>11}  {'trained':>9}  {'new weights':>11}".encode())
        for far in _DISTANCES:
            if far < tokens:
                click.echo(f"{far:>11,}  {reach.trained[far]:>9.1e}  {reach.new[far]:>11.1e}")
        note(f"a mean over {reach.texts} texts of {tokens} tokens")
