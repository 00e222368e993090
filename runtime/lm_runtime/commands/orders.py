"""What to say of texts that are scored in another way than the model was trained on."""

from __future__ import annotations

from lm_runtime.bundle import BundleConfig

_TRAINED = {
    "none": "on a text in its order",
    "line": "on lines in random order",
    "document": "on whole documents in random order",
}
_FITS = {"line": ("line",), "document": ("document",)}


def order_note(config: BundleConfig, unit: str) -> str | None:
    """A line for the person at the terminal; None where the model was trained so, or it is not known.

    Args:
        config: of the model.
        unit: what is scored by itself: line or document.
    """
    recipe = config.training.get("recipe")
    order = recipe.get("shuffle") if isinstance(recipe, dict) else None
    if order not in _TRAINED or order in _FITS[unit]:
        return None
    return (
        f"note: the model was trained {_TRAINED[order]}, and scores each {unit} by itself here; "
        f"lm-train --shuffle {unit} trains for that"
    )
