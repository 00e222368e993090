"""The weights of a hypothesis' parts. Imports nothing heavy: ``lm-score --help`` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_runtime.settings import check, setting, settings_of

LARGEST = 1_000_000
_GROUP = "Weights of n-best lists"
_RANGE: dict[str, Any] = {"low": -LARGEST, "high": LARGEST, "group": _GROUP, "metavar": "W"}


@dataclass(frozen=True)
class Weights:
    """What is added to the first pass's score: weights times parts of a hypothesis."""

    lm_weight: float = setting(
        0.0,
        help="Of the model's log-probability (natural logarithm) of the text, which is added to the first "
        "pass's score. There is no good default: it depends on the scale of the scores.",
        **_RANGE,
    )
    second_weight: float = setting(
        0.0,
        help="Of the log-probability by the model of --second; negative where that stands for what the first "
        "pass has learnt already (low-order density ratio).",
        **_RANGE,
    )
    word_bonus: float = setting(
        0.0, help="Added for each word; negative values favour short texts.", **_RANGE
    )
    length_bonus: float = setting(0.0, help="Added for each token.", **_RANGE)
    unk_penalty: float = setting(0.0, help="Subtracted for each unknown token.", **_RANGE)

    def __post_init__(self) -> None:
        check(self)


NAMES = tuple(settings_of(Weights))
"""The weights' names, in the order of a hypothesis' features."""
