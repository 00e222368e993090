"""``--adapt``: what lm-generate and lm-score share of models that follow what they have read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lm_runtime.bundle import GENERATION_CONFIG, parse_json_object
from lm_runtime.commands.messages import note
from lm_runtime.commands.options import option, settings_options
from lm_runtime.files import write_text
from lm_runtime.models.adaptation import ADAPTATION, Adaptation
from lm_runtime.settings import Setting

if TYPE_CHECKING:
    from lm_runtime.models.protocol import BundleModel, StepModel

_Function = TypeVar("_Function", bound=Callable[..., Any])
_NAMES = [field.name for field in dataclasses.fields(Adaptation)]


def _default(entry: Setting) -> str:
    return f"the bundle's, or {entry.default}"


def adapts(function: _Function) -> _Function:
    """Give a command the options of :class:`Adaptation`."""
    function = settings_options(Adaptation, defaults=_default)(function)
    flag = option(
        "--adapt",
        is_flag=True,
        group=ADAPTATION,
        help="Follow what is read: what came before becomes more probable where it fits. The bundle needs "
        "lm-export --adaptive; without it, and for n-grams, tokens are counted.",
    )
    return flag(function)


def take_adaptation(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the settings of an adaptation from a command's ``values``, and return those that were given."""
    found = {name: values.pop(name) for name in _NAMES}
    return {name: value for name, value in found.items() if value is not None}


def adapted(model: StepModel, bundle: BundleModel, given: dict[str, Any]) -> StepModel:
    """The model that follows what it reads, by what the bundle proposes and what was given."""
    from lm_runtime.models.adaptive import AdaptiveModel

    adaptive = AdaptiveModel(model, dataclasses.replace(bundle.adaptation, **given))
    if not adaptive.width and not bundle.config.order:
        note(
            f"{bundle.folder} does not show what its output layer reads (lm-export --adaptive): "
            "tokens are counted"
        )
    return adaptive


def fit(model: StepModel, bundle: BundleModel, text: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Fit the adaptation on ``text``, and make it the bundle's default; what was given stays."""
    from lm_runtime.scoring.adaptation import fit_adaptation

    window = dataclasses.replace(bundle.adaptation, **given).cache_window
    found = dataclasses.asdict(fit_adaptation(model, text, window=window, tell=note))
    path = bundle.folder / GENERATION_CONFIG
    defaults = parse_json_object(path, path.read_bytes()) | found
    write_text(path, json.dumps(defaults, indent=2) + "\n")
    values = ", ".join(f"{name} {value}" for name, value in found.items())
    note(f"{values}, fitted on {text} and written to {path}")
    return found | given
