"""A bundle that is served: its lane, its threads for other work, and how much of it is in use.

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import TypeVar

from lm_runtime.models.protocol import BundleModel
from lm_runtime.sampling.constraint import compiled
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.server.errors import busy
from lm_runtime.server.lane import Batch, Lane
from lm_runtime.server.limits import Limits
from lm_runtime.wire import token_record

Result = TypeVar("Result")

_CONSTRAINED = 4
"""Requests with a regular expression that run at a time."""
_LAST_STEP = 5.0
_COSTLY = 5.0
"""Seconds of such a request, after which its expression is not kept."""


class Served:
    """A bundle that is served; belongs to one event loop.

    Args:
        name: what requests call it.
        model: the bundle.
        limits: of the server.
        pool: threads for reading prompts, scoring and the like.
        constrained_pool: the same for requests with a regular expression.
    """

    def __init__(
        self,
        name: str,
        model: BundleModel,
        limits: Limits,
        pool: Executor,
        constrained_pool: Executor,
    ) -> None:
        self.name = name
        self.model = model
        self.limits = limits
        self.created = int(time.time())
        self.open = 0
        """How many texts run or wait, from before their prompt is read until they have ended."""
        self._pool = pool
        self._constrained_pool = constrained_pool
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(model, limits.max_batch, self._loop, f"lane of {name}")
        self._constrained = asyncio.Semaphore(_CONSTRAINED)
        self._closing: list[Lane] = []

    @cached_property
    def token_names(self) -> list[str]:
        """What each token is called in JSON."""
        return [
            token_record(self.model, token, 0.0)["token"] for token in range(self.model.config.vocab_size)
        ]

    @contextmanager
    def admitting(self, texts: int) -> Iterator[None]:
        """Around the work on a request's texts.

        Raises:
            ApiError: there is no room for them.
        """
        most = self.limits.max_batch + self.limits.max_queue
        if self.open + texts > most:
            raise busy(f"{self.open} texts run or wait, and {most} is the most; come again")
        self.open += texts
        try:
            yield
        finally:
            self.open -= texts

    async def work(self, function: Callable[[], Result], *, constrained: bool = False) -> Result:
        """Call ``function`` in another thread."""
        pool = self._constrained_pool if constrained else self._pool
        return await self._loop.run_in_executor(pool, function)

    @asynccontextmanager
    async def running(self, batch: Batch, params: SamplingParams) -> AsyncIterator[None]:
        """Run texts; those that have not ended afterwards leave at the next step.

        A regular expression may cost much: its texts run by themselves, so that no other waits for them.
        """
        if params.regex is None:
            self._lane.add(batch)
            try:
                yield
            finally:
                if batch.open:
                    self._lane.cancel(batch)
            return
        async with self._constrained:
            lane, begun = Lane(self.model, max(1, batch.open), self._loop, "constrained"), time.monotonic()
            lane.add(batch)
            try:
                yield
            finally:
                lane.close()
                self._closing = [other for other in (*self._closing, lane) if not other.join(0)]
                if time.monotonic() - begun > _COSTLY:
                    compiled.cache_clear()

    def close(self) -> None:
        """Let the lanes end, and wait for their last steps: no thread in native code may outlive Python."""
        self._lane.close()
        for lane in (self._lane, *self._closing):
            lane.join(_LAST_STEP)
