"""The application: its paths, and the page. Knows nothing about sockets and processes."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lm_runtime.models.protocol import BundleModel
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.server import scoring
from lm_runtime.server.answer import Completions
from lm_runtime.server.errors import ApiError
from lm_runtime.server.guard import Guard
from lm_runtime.server.replies import (
    IGNORED,
    ignored,
    not_finite,
    read_body,
    send_json,
    stopping,
    to_json,
    until_gone,
)
from lm_runtime.server.served import Served
from lm_runtime.server.service import Service
from lm_runtime.wire import Record

_INLINE = re.compile(rb"<(script|style)[^>]*>(.*?)</\1>", re.DOTALL)


def make_app(service: Service) -> Starlette:
    """The application of a service."""
    page, policy = _page()

    async def show_page(request: Request) -> Response:
        return Response(page, media_type="text/html", headers=policy)

    routes = [
        Route("/", show_page),
        Route("/health", Health(service, ready=True), methods=["GET"]),
        Route("/health/ready", Health(service, ready=True), methods=["GET"]),
        Route("/health/live", Health(service, ready=False), methods=["GET"]),
        Route("/metrics", _metrics(service)),
        Route("/v1/models", _models(service)),
        Route("/v1/models/{name:path}", _model(service)),
        Route("/v1/completions", Completions(service), methods=["POST"]),
        Route("/v1/chat/completions", _no_chat, methods=["POST"]),
        Route("/v1/score", _plain(service, _score(service), scoring.SCORE_FIELDS), methods=["POST"]),
        Route("/v1/suggest", _plain(service, _suggest(service), scoring.SUGGEST_FIELDS), methods=["POST"]),
        Route("/tokenize", _plain(service, scoring.tokenize, scoring.TOKENIZE_FIELDS), methods=["POST"]),
        Route(
            "/detokenize", _plain(service, scoring.detokenize, scoring.DETOKENIZE_FIELDS), methods=["POST"]
        ),
        Route("/tokenizer_info", _tokenizer_info(service)),
    ]
    paths = {route.path for route in routes}
    middleware = [Middleware(Guard, rules=service.rules, metrics=service.metrics, paths=paths)]
    if service.rules.origins:
        middleware.insert(
            0,  # outermost, so that errors have its headers too
            Middleware(
                CORSMiddleware,
                allow_origins=list(service.rules.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=[IGNORED, "X-Request-Id", "Retry-After"],
            ),
        )
    handlers: Mapping[Any, Any] = {404: _not_found, 405: _not_allowed}
    return Starlette(
        routes=routes, middleware=middleware, lifespan=service.running, exception_handlers=handlers
    )


class Health:
    """``GET /health``: whether the server lives, or takes requests."""

    def __init__(self, service: Service, *, ready: bool) -> None:
        self._service = service
        self._ready = ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._ready and self._service.draining:
            raise stopping()
        await send_json(send, to_json({"status": "ok", "models": list(self._service.served)}), {})


Endpoint = Callable[[Request], Awaitable[Response]]
Function = Callable[[BundleModel, Record], Record]


def _plain(service: Service, function: Function, fields: Collection[str]) -> Any:
    """A path that is a function of a JSON object, called in another thread."""

    class Plain:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            record = await read_body(Request(scope, receive), service)
            served = service.named(record.get("model"))
            scope["facts"]["model"] = served.name

            async def answer() -> None:
                try:
                    found = await served.work(lambda: function(served.model, record))
                except NotFiniteError as error:
                    raise not_finite(record.get("state")) from error
                found = {"model": served.name, **found}
                service.metrics.prompt_tokens += found.get("usage", {}).get("prompt_tokens", 0)
                await send_json(send, to_json(found), ignored(record, fields))

            with served.admitting(1):
                await until_gone(answer(), receive, service.limits.timeout, scope["facts"])

    return Plain()


def _score(service: Service) -> Function:
    return lambda model, record: scoring.score(model, record, service.limits)


def _suggest(service: Service) -> Function:
    return lambda model, record: scoring.suggestions(model, record, service.states, service.limits)


def _metrics(service: Service) -> Endpoint:
    async def metrics(request: Request) -> Response:
        open_ = {name: served.open for name, served in service.served.items()}
        return PlainTextResponse(service.metrics.text(open_))

    return metrics


def _models(service: Service) -> Endpoint:
    async def models(request: Request) -> Response:
        data = [_model_record(served) for served in service.served.values()]
        return Response(to_json({"object": "list", "data": data}), media_type="application/json")

    return models


def _model(service: Service) -> Endpoint:
    async def model(request: Request) -> Response:
        served = service.named(request.path_params["name"])
        return Response(to_json(_model_record(served)), media_type="application/json")

    return model


def _tokenizer_info(service: Service) -> Endpoint:
    async def tokenizer_info(request: Request) -> Response:
        served = service.named(request.query_params.get("model"))
        return Response(to_json(scoring.tokenizer_info(served.model)), media_type="application/json")

    return tokenizer_info


def _model_record(served: Served) -> Record:
    model = served.model
    defaults = {
        name: getattr(model.defaults, name) for name in ("temperature", "top_k", "top_p", "max_tokens")
    }
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "steplm",
        "model_type": model.config.model_type,
        "vocab_size": model.config.vocab_size,
        "tokenizer": model.tokenizer.kind,
        "precision": model.precision,
        "defaults": defaults,
        "max_prompt": served.limits.max_prompt,
        "max_tokens": served.limits.max_tokens,
    }


async def _no_chat(request: Request) -> Response:
    raise ApiError(400, "the models have no chat template; use /v1/completions", code="no_chat_template")


async def _not_found(request: Request, error: Exception) -> Response:
    raise ApiError(404, "there is no such path", code="not_found")


async def _not_allowed(request: Request, error: Exception) -> Response:
    raise ApiError(405, f"{request.method} does not go with this path", code="method_not_allowed")


def _page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that keep it from loading or running anything else."""
    content = (files("lm_runtime.server") / "page.html").read_bytes()
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for match in _INLINE.finditer(content):
        digest = base64.b64encode(hashlib.sha256(match[2]).digest()).decode("ascii")
        hashes[match[1].decode("ascii")].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
