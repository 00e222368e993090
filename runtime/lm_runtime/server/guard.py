"""What every request passes: who may ask, from where, a line in the log, and errors as JSON.

An ASGI middleware; knows nothing about models.
"""

from __future__ import annotations

import hmac
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_runtime.server.errors import ApiError
from lm_runtime.server.metrics import Metrics

_OPEN_PATHS = ("/", "/health", "/health/live", "/health/ready")
_LEFT = 499
"""The status in the log of a client that left before its answer."""
_REQUEST_ID = "x-request-id"
_CLEAN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Rules:
    """Who may ask."""

    keys: tuple[bytes, ...] = ()
    """The keys that open the server; none: it is open."""
    origins: tuple[str, ...] = ()
    """The pages of other hosts that may ask, by their origins; ``*`` is all."""
    hosts: tuple[str, ...] = ()
    """The names by which the server may be called; none: any. On the loopback interface this keeps a page of
    another host from asking under a name of its own."""


class Guard:
    """Around the application.

    Args:
        app: the application.
        rules: who may ask.
        metrics: where requests are counted.
        paths: of the application, as metrics name them.
    """

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._rules = rules
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given_id = headers.get(_REQUEST_ID, "")
        request_id = given_id if _CLEAN_ID.fullmatch(given_id) else uuid.uuid4().hex
        facts: MutableMapping[str, Any] = {"begun": begun}
        scope["facts"] = facts

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (_REQUEST_ID.encode(), request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive, counted_send)
        except ApiError as error:
            if not status:
                await send_error(counted_send, error)
        except ClientDisconnect:
            facts["left"] = True
        except Exception as error:
            facts["error"] = f"{type(error).__name__}: {error}"
            facts["at"] = traceback.format_tb(error.__traceback__)[-1].strip().replace("\n", " ")
            if not status:
                await send_error(counted_send, ApiError(500, "the server failed", code="failed"))
        finally:
            self._tell(scope, request_id, status or _LEFT, begun, facts)

    def _check(self, scope: Scope, headers: MutableMapping[str, str]) -> None:
        """Raise for a request that may not be made."""
        rules = self._rules
        host = headers.get("host", "").lower()
        if rules.hosts and _hostname(host) not in rules.hosts:
            raise ApiError(403, "host is not one of this server's names", code="host")
        origin = headers.get("origin")
        own = origin is None or origin.lower().partition("://")[2] == host
        if not own and "*" not in rules.origins and origin not in rules.origins:
            raise ApiError(403, "origin is not allowed; see --cors-origin", code="origin")
        if rules.keys and scope["path"] not in _OPEN_PATHS and scope["method"] != "OPTIONS":
            kind, _, key = headers.get("authorization", "").partition(" ")
            data = key.strip().encode("latin-1", "replace")
            if kind.lower() != "bearer" or not _is_one(data, rules.keys):
                raise ApiError(
                    401,
                    "a key is needed: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _tell(
        self, scope: Scope, request_id: str, status: int, begun: float, facts: MutableMapping[str, Any]
    ) -> None:
        seconds = time.perf_counter() - begun
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests[path, status] += 1
        self._metrics.duration.observe(seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **{name: value for name, value in facts.items() if name != "begun"},
        }
        if sys.stderr is not None:
            print(json.dumps(line), file=sys.stderr, flush=True)


def _is_one(key: bytes, keys: tuple[bytes, ...]) -> bool:
    """Whether ``key`` is among ``keys``; takes the same time whichever it is."""
    return sum(hmac.compare_digest(key, own) for own in keys) > 0


def _hostname(host: str) -> str:
    """The host of ``host:port``, without brackets."""
    return re.sub(r":\d*$", "", host).strip("[]")


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error."""
    body = json.dumps(error.record()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
