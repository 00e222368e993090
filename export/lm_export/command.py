"""``lm-export``: a bundle from a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lm_export.formats.registry import FORMATS, model_files
from lm_runtime.bundle import MODELS
from lm_runtime.commands import Command, file_size, imports, note

_FORMATS = "; ".join(f"{name} ({format_.description})" for name, format_ in FORMATS.items())

_EXAMPLES = """
\b
Examples:
  lm-export --opset 17                          artifacts/run into artifacts/bundle
  lm-export my-run --out my-bundle --quantize int8
  lm-export my-run --out my-bundle --only int8  a quarter of the size
  lm-export my-run/last.pt --out my-bundle --force
  lm-export my-ngrams --out my-bundle --format arpa
  lm-export my-asr-run --out my-bundle --format sherpa --tokens my-recognizer/tokens.txt
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
@click.option(
    "--only",
    type=click.Choice(["int8"]),
    help="Quantize, and leave out the fp32 graph, which the int8 one was compared with.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(list(FORMATS)),
    multiple=True,
    help=f"Add a format for other tools, proven equal to the bundle: {_FORMATS}. Repeatable.",
)
@click.option("--arpa", is_flag=True, help="Short for --format arpa.")
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    help="A recognizer's tokens.txt: stop unless its ids are those of the model's vocabulary.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="The tokenizer.json by which the words of an ARPA file are tokens; they are words by default.",
)
@click.option(
    "--adaptive",
    is_flag=True,
    help="Give the graphs the output hidden, by which --adapt learns from what is read.",
)
@click.option("--force", is_flag=True, help="Replace the bundle that is in the folder.")
@click.version_option(package_name="steplm")
def main(
    checkpoint: Path,
    out: Path,
    opset: int,
    quantize: str | None,
    only: str | None,
    formats: tuple[str, ...],
    arpa: bool,
    tokens: Path | None,
    tokenizer: Path | None,
    adaptive: bool,
    force: bool,
) -> None:
    """Export CHECKPOINT, a .pt file or a run's folder, to a bundle that runs without torch.

    CHECKPOINT may also be an n-gram model of another tool, in a file named *.arpa.

    The graph is compared with the torch model on held-out text; if they differ, no bundle is written.
    The bundle of an n-gram model has tables in place of a graph, and no operator set.
    """
    with imports():
        from lm_export.bundle_writer import check_out, export_bundle
        from lm_export.errors import ExportError
        from lm_export.source import needs_torch

        if needs_torch(checkpoint):
            from lm_export.graph import check_opset

            check_opset(opset)
    check_out(out, replace=force)
    begun = time.perf_counter()
    try:
        export_bundle(
            checkpoint,
            out,
            opset=opset,
            quantize="int8" in (quantize, only),
            only_int8=only == "int8",
            formats=(*formats, *(["arpa"] if arpa else [])),
            tokens=tokens,
            tokenizer=tokenizer,
            adaptive=adaptive,
            replace=force,
            tell=note,
        )
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    for name, kind in model_files().items():
        if (out / name).exists():
            of_graph = f", opset {opset}" if name in MODELS.values() else ""
            note(f"{out / name}: {kind}{of_graph}, {file_size((out / name).stat().st_size)}")
    note(f"exported in {time.perf_counter() - begun:.1f} s")
    click.echo(out)
