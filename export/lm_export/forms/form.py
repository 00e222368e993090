"""What a form says of a family; by default, that its network is traced as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lm_runtime.bundle import BundleConfig

if TYPE_CHECKING:
    import onnx
    from torch import nn

Translations = Mapping[Callable[..., Any], Callable[..., Any]]
"""For torch's exporter: operators of torch, each with the function that writes its ONNX operators."""

Layers = dict[str, list[str]]
"""The names of a quantized graph's layers by precision: ``int8`` and ``fp32``."""


class Form:
    """The form of a family that has none of its own; others override what differs."""

    has_graph = True
    """Whether its bundles hold a step graph; if not, :meth:`write_tables` writes what they hold instead."""
    has_hidden = False
    """Whether what its output layer reads is a memory of what was read, which a cache can compare."""
    translations: Translations = MappingProxyType({})
    """The operators of its module that torch's exporter does not know."""

    def module(self, model: Any) -> nn.Module:
        """What is traced for ``model``: a module with the same inputs and outputs."""
        traced: nn.Module = model
        return traced

    def finish(self, graph: onnx.GraphProto, config: BundleConfig) -> None:
        """Change the traced graph where the family needs it."""

    def check(self, graph: onnx.GraphProto, config: BundleConfig) -> None:
        """Check what the family requires of the finished graph.

        Raises:
            ExportError: it is not met.
        """

    def write_tables(self, model: Any, folder: Path) -> None:
        """Write the files that stand in the place of a graph into the bundle's ``folder``.

        Raises:
            NotImplementedError: the family has a graph, or its form lacks this method.
        """
        raise NotImplementedError(f"{type(self).__name__} writes no tables")

    def layers(self, config: BundleConfig) -> Layers:
        """The layers that ``--quantize int8`` turns into int8, and those that stay in fp32.

        Raises:
            ValueError: the family has no weights to quantize.
        """
        return {"int8": ["all weight matrices"], "fp32": []}

    def sizes(self, config: BundleConfig) -> str:
        """The model's sizes, for its card."""
        projected = f", projected to {config.projection}" if config.projection else ""
        layers = f"{config.num_hidden_layers} x {config.hidden_size}"
        return f"embedding {config.embedding_dim}, {layers}{projected}"
