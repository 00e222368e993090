"""What int8 costs: the perplexity of both graphs on held-out text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_export.errors import ExportError
from lm_export.forms.form import Layers
from lm_runtime.files import UnusableFileError
from lm_runtime.models.load import load
from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.score import add_up, id_log_probabilities

LARGEST_COST = 0.01
"""The most that int8 may raise the perplexity, as a share of it."""

_TOKENS = 4096


def layers_in_words(layers: Layers) -> str:
    """One line on which layers are int8 and which are not."""
    said = f"int8: {', '.join(layers['int8'])}"
    if layers["fp32"]:
        said += f"; {', '.join(layers['fp32'])} stay fp32: onnxruntime has no int8 form of them"
    return said


def measure_cost(folder: Path, held_out: NDArray[np.int64], tell: Callable[[str], None]) -> dict[str, Any]:
    """Compare the perplexity of a bundle's two graphs, token by token as generation runs them.

    Args:
        folder: the bundle.
        held_out: the text ``(tokens,)``.
        tell: takes a line for the person at the terminal.

    Returns:
        the figures for ``config.json``.

    Raises:
        ExportError: onnxruntime cannot run the int8 graph, or it costs too much.
    """
    text = held_out[:_TOKENS]
    try:
        int8 = _perplexity(load(folder, precision="int8", provider="cpu"), text)
    except UnusableFileError as error:
        reason = str(error).split("load it: ")[-1]
        raise ExportError(
            f"onnxruntime cannot run int8 at this opset, no bundle was written: {reason}; "
            "choose a lower --opset or leave out --quantize"
        ) from None
    fp32 = _perplexity(load(folder, provider="cpu"), text)
    cost = int8 / fp32 - 1
    tell(
        f"int8: perplexity {int8:.3f} against {fp32:.3f} in fp32 ({cost:+.2%}) "
        f"on {text.size:,} held-out tokens"
    )
    if not cost <= LARGEST_COST:
        raise ExportError(
            f"int8 costs {cost:.2%} of perplexity, more than {LARGEST_COST:.0%}; no bundle was written; "
            "leave out --quantize, or train longer"
        )
    return {"fp32": fp32, "int8": int8, "cost_percent": 100 * cost, "tokens": int(text.size)}


def _perplexity(model: StepModel, ids: NDArray[np.int64]) -> float:
    """Perplexity of ``ids`` ``(tokens,)``, one token in each call."""
    single = (ids[place : place + 1] for place in range(ids.size))
    total = 0.0
    for _, log_probabilities in id_log_probabilities(model, single):
        total = add_up(log_probabilities, total)
    return float(np.exp(-total / ids.size))
