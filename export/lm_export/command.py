"""``lm-export``: a bundle from a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lm_runtime.bundle import ARPA, MODELS, TABLES
from lm_runtime.commands import Command, file_size, imports, note

_EXAMPLES = """
\b
Examples:
  lm-export --opset 17                          artifacts/run into artifacts/bundle
  lm-export my-run --out my-bundle --quantize int8
  lm-export my-run/last.pt --out my-bundle --force
  lm-export my-ngrams --out my-bundle --arpa
"""


@click.command(cls=Command, name="lm-export", epilog=_EXAMPLES)
@click.argument("checkpoint", type=click.Path(path_type=Path), default=Path("artifacts/run"))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("artifacts/bundle"),
    show_default=True,
    help="The bundle's folder.",
)
@click.option("--opset", type=int, default=17, show_default=True, help="ONNX operator set, from 15 on.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Add a graph with quantized weights.")
@click.option("--arpa", is_flag=True, help="Add an n-gram model's tables as ARPA, for other tools.")
@click.option("--force", is_flag=True, help="Replace the bundle that is in the folder.")
@click.version_option(package_name="steplm")
def main(checkpoint: Path, out: Path, opset: int, quantize: str | None, arpa: bool, force: bool) -> None:
    """Export CHECKPOINT, a .pt file or a run's folder, to a bundle that runs without torch.

    The graph is compared with the torch model on held-out text; where they differ, no bundle is written.
    An n-gram model has tables in place of a graph, and no operator set.
    """
    with imports():
        from lm_export.bundle_writer import check_out, export_bundle
        from lm_export.graph import ExportError, check_opset

    check_opset(opset)
    check_out(out, replace=force)
    begun = time.perf_counter()
    try:
        export_bundle(
            checkpoint,
            out,
            opset=opset,
            quantize=quantize == "int8",
            arpa=arpa,
            replace=force,
            tell=note,
        )
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    kinds = {name: f"{precision}, opset {opset}" for precision, name in MODELS.items()}
    for name, kind in {**kinds, TABLES: "n-grams", ARPA: "n-grams as ARPA"}.items():
        if (out / name).exists():
            note(f"{out / name}: {kind}, {file_size((out / name).stat().st_size)}")
    note(f"exported in {time.perf_counter() - begun:.1f} s")
    click.echo(out)
