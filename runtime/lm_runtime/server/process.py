"""The server's process: its socket, its signals, and its end.

Told to stop (SIGINT, SIGTERM), it takes no new requests, lets the running ones end, and goes; told twice, it
goes at once.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from lm_runtime.server.app import make_app
from lm_runtime.server.service import Service

_TICK = 0.05
_BACKLOG = 512
_KEEP_ALIVE = 75
_LAST_WORDS = 2
"""Seconds for answers that are written while their texts have ended."""


class _Server(uvicorn.Server):
    """uvicorn, which stops when its service has nothing left to do."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        ready: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready
        self._tell = tell
        self._at_once = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once; called by a signal."""
        self._at_once = self._service.draining
        self._service.draining = True

    async def main_loop(self) -> None:
        """Serve until there is nothing left to do."""
        ends: float | None = None
        count = 0
        while not self.should_exit:
            await self.on_tick(count)
            count += 1
            await asyncio.sleep(_TICK)
            if not self._service.draining:
                continue
            if ends is None:
                ends = time.monotonic() + self._service.limits.grace
                self._tell(f"stopping: {self._service.open} texts are still running")
            self._at_once |= time.monotonic() > ends
            if self._at_once:
                for task in self.server_state.tasks:
                    task.cancel()
            self.should_exit = self._at_once or not self._service.open


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address cannot be had; it names host and port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{host} port {port}") from error
    return listener


def run(
    service: Service, listener: socket.socket, ready: Callable[[], None], tell: Callable[[str], None]
) -> None:
    """Serve until a signal says to stop.

    Args:
        service: what is served.
        listener: from :func:`listen`.
        ready: called when it serves, and a signal ends it in good order.
        tell: is told what a person at the terminal wants to know.
    """
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        http="h11",
        loop="asyncio",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_LAST_WORDS,
    )
    _Server(config, service, ready, tell).run(sockets=[listener])
