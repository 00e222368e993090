"""A bundle's folder becomes a model: what the folder holds decides which, never its ``model_type``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_runtime.bundle import MODELS, TABLES, BundleConfig, Precision, read_bundle_config
from lm_runtime.models.protocol import BundleModel, Provider


def load(
    folder: str | Path,
    *,
    precision: Precision | None = None,
    provider: Provider = "auto",
    threads: int | None = None,
) -> BundleModel:
    """Load a bundle; the arguments and errors are those of :class:`OnnxModel`.

    Without a precision it is ``fp32``, or that of the only graph. An n-gram model's tables have one
    precision, ``fp32``, and run on the CPU.
    """
    folder = Path(folder)
    config = read_bundle_config(folder)
    if not has_tables(config):
        from lm_runtime.models.onnx import OnnxModel  # tables do without onnxruntime

        own = precision or own_precision(config)
        return OnnxModel(folder, precision=own, provider=provider, threads=threads)
    if precision not in (None, "fp32"):
        raise ValueError(f"{folder} is an n-gram model, which has no {precision} graph")
    if provider == "cuda":
        raise ValueError(f"{folder} is an n-gram model, which runs on the CPU")
    from lm_runtime.models.ngram import NgramBundle  # graphs do without it

    return NgramBundle(folder)


def load_together(
    folders: Sequence[str | Path],
    *,
    precision: Precision | None = None,
    provider: Provider = "auto",
    threads: int | None = None,
) -> list[BundleModel]:
    """Load several bundles that are used as one: each takes what it has of what is asked for.

    One without a graph of the precision takes the one that it has, and tables take the CPU.

    Raises:
        ValueError: none of them has the precision, or none has a graph for CUDA; otherwise as :func:`load`.
    """
    configs = [read_bundle_config(Path(folder)) for folder in folders]
    names = " and ".join(map(str, folders))
    if precision == "int8" and not any(precision in config.precisions for config in configs):
        raise ValueError(f"{names}: none has an {precision} graph; export one with --quantize {precision}")
    if provider == "cuda" and all(map(has_tables, configs)):
        raise ValueError(f"{names}: n-gram models run on the CPU")
    return [
        load(
            folder,
            precision=precision if precision in config.precisions else None,
            provider="cpu" if has_tables(config) else provider,
            threads=threads,
        )
        for folder, config in zip(folders, configs, strict=True)
    ]


def own_precision(config: BundleConfig) -> Precision:
    """The precision of a bundle where none is asked for: fp32, or that of its only graph."""
    return "fp32" if "fp32" in config.precisions or not config.precisions else config.precisions[0]


def has_tables(config: BundleConfig) -> bool:
    """Whether a bundle has tables in place of a graph."""
    return TABLES in config.files and not any(graph in config.files for graph in MODELS.values())
