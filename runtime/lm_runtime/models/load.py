"""A bundle's folder becomes a model."""

from __future__ import annotations

from pathlib import Path

from lm_runtime.bundle import NGRAM_TYPE, Precision, read_config
from lm_runtime.models.protocol import BundleModel, Provider


def load(
    folder: str | Path,
    *,
    precision: Precision = "fp32",
    provider: Provider = "auto",
    threads: int | None = None,
) -> BundleModel:
    """Load a bundle; the arguments and errors are those of :class:`OnnxModel`.

    An n-gram model's tables have one precision, ``fp32``, and run on the CPU.
    """
    if read_config(Path(folder)).model_type != NGRAM_TYPE:
        from lm_runtime.models.onnx import OnnxModel  # tables do without onnxruntime

        return OnnxModel(folder, precision=precision, provider=provider, threads=threads)
    if precision != "fp32":
        raise ValueError(f"{folder} is an n-gram model, which has no {precision} graph")
    if provider == "cuda":
        raise ValueError(f"{folder} is an n-gram model, which runs on the CPU")
    from lm_runtime.models.ngram import NgramBundle  # graphs do without it

    return NgramBundle(Path(folder))
