"""How much a model follows what it has read. Knows nothing about models."""

from __future__ import annotations

from dataclasses import dataclass

from lm_runtime.settings import check, setting

ADAPTATION = "Adaptation"
"""The heading of the options."""


@dataclass(frozen=True)
class Adaptation:
    """How much a model follows what it has read."""

    cache_weight: float = setting(
        0.1,
        help="The share of the cache in each probability.",
        above=0,
        below=1,
        group=ADAPTATION,
    )
    """``lambda`` in Grave et al. 2017."""
    cache_theta: float = setting(
        0.3,
        help="How much alike two places must be: 0 counts all places of the window alike.",
        low=0,
        high=1000,
        group=ADAPTATION,
    )
    cache_window: int = setting(
        500,
        help="The tokens that the cache holds.",
        low=1,
        high=1 << 16,
        group=ADAPTATION,
    )

    def __post_init__(self) -> None:
        check(self)
