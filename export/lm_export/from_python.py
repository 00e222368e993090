"""What :meth:`lm_trainer.runs.Run.export` calls: a bundle from a run, with the checks of ``lm-export``."""

from __future__ import annotations

from pathlib import Path

from lm_export.bundle_writer import check_out, export_bundle
from lm_export.graph import check_opset
from lm_runtime.commands import note


def export(
    run: Path, out: Path, *, quantize: str | None, opset: int, formats: tuple[str, ...], force: bool
) -> None:
    """Export a run's best checkpoint.

    Args:
        run: its folder.
        out: the bundle's folder.
        quantize: None or "int8".
        opset: the ONNX operator set.
        formats: names of :data:`lm_export.formats.registry.FORMATS`.
        force: whether a bundle that is there may be replaced.

    Raises:
        ValueError: an argument is not possible, or the folder holds something.
        ExportError: the bundle failed a check.
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or int8, got {quantize!r}")
    check_opset(opset)
    check_out(out, replace=force)
    export_bundle(
        run,
        out,
        opset=opset,
        quantize=quantize == "int8",
        formats=formats,
        replace=force,
        tell=note,
    )
