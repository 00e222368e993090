"""The form of n-gram models: a file of tables, no graph."""

from __future__ import annotations

from pathlib import Path

from lm_export.forms.form import Form, Layers
from lm_runtime.bundle import TABLES, BundleConfig
from lm_runtime.models.ngram_tables import NgramTables


class NgramForm(Form):
    """Tables of probabilities and back-off weights."""

    has_graph = False

    def write_tables(self, model: NgramTables, folder: Path) -> None:
        """As :meth:`Form.write_tables`."""
        (folder / TABLES).parent.mkdir()
        model.write(folder / TABLES)

    def layers(self, config: BundleConfig) -> Layers:
        """Always a ValueError: tables are not quantized."""
        raise ValueError("an n-gram model has no weights to quantize; leave out --quantize")

    def sizes(self, config: BundleConfig) -> str:
        """As :meth:`Form.sizes`."""
        return f"order {config.order}"
