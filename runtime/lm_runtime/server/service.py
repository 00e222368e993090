"""What the paths of a server share: its bundles, limits, keys and counts. Knows nothing about paths."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from starlette.applications import Starlette

from lm_runtime.models.protocol import BundleModel
from lm_runtime.server.errors import ApiError
from lm_runtime.server.guard import Rules
from lm_runtime.server.limits import Limits
from lm_runtime.server.metrics import Metrics
from lm_runtime.server.served import Served
from lm_runtime.server.states import States

_WORKERS = 4


@dataclass
class Service:
    """What the paths share."""

    models: Mapping[str, BundleModel]
    """The bundles by the names that requests call them; the first one is the default."""
    limits: Limits = field(default_factory=Limits)
    """What a request may take."""
    states: States = field(default_factory=States)
    """Writes and reads the clients' sessions."""
    rules: Rules = field(default_factory=Rules)
    """Who may ask."""
    log_texts: bool = False
    """Whether the log has prompts and texts."""
    draining: bool = False
    """Whether no new requests are taken."""
    metrics: Metrics = field(default_factory=Metrics)
    """Counts."""
    served: dict[str, Served] = field(default_factory=dict)
    """The bundles while the server runs."""
    streams: int = 0
    """How many answers are being streamed."""

    @property
    def open(self) -> int:
        """How many texts run or wait."""
        return sum(served.open for served in self.served.values())

    @contextlib.asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """While the server runs."""
        with (
            ThreadPoolExecutor(_WORKERS, "work") as pool,
            ThreadPoolExecutor(_WORKERS, "constrained") as constrained_pool,
        ):
            for name, model in self.models.items():
                self.served[name] = Served(name, model, self.limits, pool, constrained_pool)
            try:
                yield
            finally:
                for served in self.served.values():
                    served.close()

    def named(self, name: object) -> Served:
        """The bundle that a request names; without a name the first.

        Raises:
            ApiError: there is none.
        """
        if name is None:
            return next(iter(self.served.values()))
        if not isinstance(name, str) or name not in self.served:
            known = ", ".join(self.served)
            shown = name[:80] if isinstance(name, str) else type(name).__name__
            raise ApiError(
                404, f"model {shown!r} is not served; there is {known}", param="model", code="model_not_found"
            )
        return self.served[name]
