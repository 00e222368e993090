"""Reading what a request brings, and sending what it gets: JSON objects and server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Collection, Coroutine, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Send

from lm_runtime.server.errors import ApiError, invalid, refusing
from lm_runtime.server.service import Service
from lm_runtime.wire import Record, parse

IGNORED = "X-Ignored-Fields"
"""The header that names the fields of a request that mean nothing."""
DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""
_BODY_SECONDS = 30.0
_LAST_SECONDS = 1.0
_MOST_NAMED = 10
_LONGEST_NAME = 40


async def read_body(request: Request, service: Service) -> Record:
    """The JSON object that a request brings.

    Raises:
        ApiError: it is none, it is too large, or it does not come.
    """
    if service.draining:
        raise stopping()
    content = bytearray()
    most = service.limits.max_body
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise ApiError(413, f"the body must have at most {most} bytes", code="too_large")
    except TimeoutError:
        raise ApiError(408, "the body did not come", code="timeout") from None
    with refusing():
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("the body is not UTF-8") from None
        return parse(text)


async def until_gone(
    work: Coroutine[Any, Any, None], receive: Receive, timeout: float, facts: dict[str, Any]
) -> None:
    """Do ``work`` unless its client leaves first, or it takes too long.

    Raises:
        ApiError: it took too long.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
    if task in done:
        task.result()
        return
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
    facts["left" if gone in done else "timeout"] = True
    if not done:
        raise ApiError(504, f"the request took more than {timeout:g} seconds", code="timeout")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def not_finite(state: object) -> ApiError:
    """The error for numbers that are NaN or infinite: the client's, if it brought a state."""
    if state is None:
        return ApiError(500, "the model's logits are NaN or infinite", code="failed")
    return invalid("state leads to numbers that are not finite", "state")


def stopping() -> ApiError:
    """The error for a request that comes too late."""
    return ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})


def ignored(record: Record, fields: Collection[str]) -> dict[str, str]:
    """A header that names the fields that mean nothing."""
    names = [name for name in record if name not in fields]
    shown = (re.sub(r"[^A-Za-z0-9_.-]", "?", name[:_LONGEST_NAME]) for name in names[:_MOST_NAMED])
    return {IGNORED: ", ".join(shown)} if names else {}


def to_json(record: Record) -> bytes:
    """A JSON object."""
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii")


def to_event(record: Record) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(record) + b"\n\n"


async def end_stream(send: Send, error: ApiError) -> None:
    """Tell of an error in a stream, unless its reader has stopped reading."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_SECONDS):
            await send({"type": "http.response.body", "body": to_event(error.record()) + DONE})


async def send_json(send: Send, content: bytes, headers: Mapping[str, str]) -> None:
    """Send a JSON object, and headers of its own."""
    length = {"content-type": "application/json", "content-length": str(len(content))}
    await send_head(send, 200, length | dict(headers))
    await send({"type": "http.response.body", "body": content})


async def send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Begin an answer."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
