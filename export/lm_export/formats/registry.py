"""The formats by their names. Imports nothing heavy: ``lm-export --help`` lists them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from lm_runtime.bundle import ARPA, MODELS, TABLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lm_runtime.bundle import BundleConfig
    from lm_runtime.models.protocol import BundleModel


class FormatWriter(Protocol):
    """What the module of a format defines. It sees the bundle alone, neither torch nor the checkpoint."""

    def refusal(self, config: BundleConfig) -> str:
        """Why the format does not apply to such a model, as a clause; empty if it does."""

    def write(self, model: BundleModel) -> None:
        """Write the format's files into ``model.folder``, where graph or tables already are.

        Raises:
            ValueError: the model cannot be written in the format.
        """

    def prove(self, model: BundleModel, held_out: NDArray[np.int64]) -> str:
        """Read the files back and compare them with the bundle.

        Args:
            model: the bundle's model; its graph was proven equal to the checkpoint.
            held_out: a text, ``(tokens,)``.

        Returns:
            what was compared and the largest difference, for the terminal.

        Raises:
            ExportError: they differ.
        """


@dataclass(frozen=True)
class Format:
    """A format that ``--format`` can add to a bundle."""

    description: str
    """What it is and who reads it, in a few words."""
    module: str
    """The module that has the functions of :class:`FormatWriter`."""
    files: Mapping[str, str]
    """The files that it may write, relative to the bundle, each with what it is."""

    def load(self) -> FormatWriter:
        """The format's module, imported."""
        return cast(FormatWriter, importlib.import_module(self.module))


FORMATS = {
    "arpa": Format(
        "an n-gram model's tables as text, for KenLM and others",
        "lm_export.formats.arpa",
        {ARPA: "n-grams as ARPA"},
    ),
    "sherpa": Format(
        "graphs for sherpa-onnx: shallow fusion and rescoring",
        "lm_export.formats.sherpa",
        {
            "sherpa/online.onnx": "sherpa-onnx, online",
            "sherpa/online.int8.onnx": "sherpa-onnx, online, int8",
            "sherpa/offline.onnx": "sherpa-onnx, offline",
            "sherpa/offline.int8.onnx": "sherpa-onnx, offline, int8",
        },
    ),
}
"""Each format by its name."""


def check_applies(names: tuple[str, ...], config: BundleConfig) -> None:
    """Refuse formats that do not exist or do not apply to the model of ``config``.

    Raises:
        ValueError: with the first of them and the reason.
    """
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name}")
        if reason := FORMATS[name].load().refusal(config):
            raise ValueError(f"{reason}; leave out --format {name}")


def model_files() -> dict[str, str]:
    """The files of a bundle that hold a model in some form, each with what it is."""
    files = {name: precision for precision, name in MODELS.items()} | {TABLES: "n-grams"}
    for format_ in FORMATS.values():
        files |= format_.files
    return files
