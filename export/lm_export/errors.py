"""The one exception of the exporter."""

from __future__ import annotations


class ExportError(Exception):
    """An export that failed one of its checks; no bundle was written."""
