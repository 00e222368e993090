"""``POST /v1/completions``: the texts of a request, as one answer or as a stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.server.completions import Choice, failure_of, usage_of
from lm_runtime.server.errors import ApiError
from lm_runtime.server.lane import Batch, Text
from lm_runtime.server.prompts import ReadPrompt, read_prompts, seed_of, texts_of
from lm_runtime.server.replies import (
    DONE,
    end_stream,
    ignored,
    not_finite,
    read_body,
    send_head,
    send_json,
    to_event,
    to_json,
    until_gone,
)
from lm_runtime.server.served import Served
from lm_runtime.server.service import Service
from lm_runtime.server.wanted import FIELDS, Wanted, wanted_of

_CHUNKS_A_SECOND = 400
"""Of all streams together: each has what came since its last chunk, so more streams make longer chunks."""
_LONGEST_PAUSE = 0.2


class Completions:
    """``POST /v1/completions``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = Request(scope, receive)
        record = await read_body(request, service)
        served = service.named(record.get("model"))
        wanted = wanted_of(record, served.model.tokenizer, served.model.defaults, service.limits)
        answer = _Answer(service, served, wanted, scope["facts"], ignored(record, FIELDS))
        if service.log_texts:
            scope["facts"]["prompt"] = record.get("prompt")
        with served.admitting(wanted.texts):
            try:
                await until_gone(answer.send(send), receive, service.limits.timeout, scope["facts"])
            except ApiError as error:
                if not answer.began:
                    raise
                await end_stream(send, error)


class _Answer:
    """The answer to a request for texts."""

    def __init__(
        self,
        service: Service,
        served: Served,
        wanted: Wanted,
        facts: dict[str, Any],
        headers: dict[str, str],
    ) -> None:
        self._service = service
        self._served = served
        self._wanted = wanted
        self._facts = facts
        self._headers = headers
        self.began = False
        """Whether a stream has begun, in which an error is an event."""
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }

    async def send(self, send: Send) -> None:
        """Generate, and send it."""
        service, served, wanted = self._service, self._served, self._wanted
        model, states = served.model, service.states
        constrained = wanted.params.regex is not None
        try:
            prompts = await served.work(
                lambda: read_prompts(model, wanted, states, service.limits),
                constrained=constrained,
            )
        except NotFiniteError as error:
            raise not_finite(wanted.state) from error
        seed = seed_of(wanted)
        if seed is not None:
            self._head["seed"] = seed
        texts = list(texts_of(prompts, wanted, seed))
        # The first time, a large vocabulary takes a second.
        named = wanted.params.logprobs is not None
        names = await served.work(lambda: served.token_names) if named else []
        choices = [
            Choice(index, text, prompts[index // wanted.n], wanted, model, names, states)
            for index, text in enumerate(texts)
        ]
        batch = Batch(texts, streams=wanted.stream)
        self._facts |= {"model": served.name, "prompt_tokens": sum(len(prompt.ids) for prompt in prompts)}
        try:
            async with served.running(batch, wanted.params):
                if wanted.stream:
                    await self._stream(send, batch, choices, prompts)
                else:
                    await self._send_whole(send, batch, choices, prompts)
        finally:
            self._count(texts)

    async def _send_whole(
        self, send: Send, batch: Batch, choices: list[Choice], prompts: list[ReadPrompt]
    ) -> None:
        await batch.news.wait()
        if (failure := failure_of(batch.texts, self._wanted)) is not None:
            raise failure

        def body() -> bytes:
            records = [choice.record() for choice in choices]
            usage = usage_of(prompts, batch.texts)
            return to_json(self._head | {"choices": records, "usage": usage})

        long = self._wanted.params.logprobs is not None or self._wanted.return_state
        content = await self._served.work(body) if long else body()
        await send_json(send, content, self._headers)

    async def _stream(
        self, send: Send, batch: Batch, choices: list[Choice], prompts: list[ReadPrompt]
    ) -> None:
        """Server-sent events: each text as it comes, several of its tokens at a time where many ask."""
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
        self.began = True
        await send_head(send, 200, headers | self._headers)
        service, usage = self._service, self._wanted.include_usage
        head = self._head | ({"usage": None} if usage else {})
        service.streams += 1
        try:
            while True:
                await batch.news.wait()
                batch.news.clear()
                ended = not batch.open  # before the texts are read
                events = b""
                for choice in choices:
                    # A state takes a millisecond to write.
                    last = self._wanted.return_state and choice.text.ended
                    record = await self._served.work(choice.record) if last else choice.record()
                    if record is not None:
                        events += to_event(head | {"choices": [record]})
                if "first_token_ms" not in self._facts:
                    self._first_token()
                if ended:
                    break
                await send({"type": "http.response.body", "body": events, "more_body": True})
                await asyncio.sleep(min(_LONGEST_PAUSE, service.streams / _CHUNKS_A_SECOND))
        finally:
            service.streams -= 1
        if (failure := failure_of(batch.texts, self._wanted)) is not None:
            events += to_event(failure.record())
        elif usage:
            events += to_event(self._head | {"choices": [], "usage": usage_of(prompts, batch.texts)})
        await send({"type": "http.response.body", "body": events + DONE})

    def _first_token(self) -> None:
        seconds = time.perf_counter() - self._facts["begun"]
        self._facts["first_token_ms"] = round(1000 * seconds, 1)
        self._service.metrics.first_token.observe(seconds)

    def _count(self, texts: list[Text]) -> None:
        """Into the log and the metrics."""
        generated = sum(len(text.pieces) for text in texts)
        self._service.metrics.prompt_tokens += self._facts["prompt_tokens"]
        self._service.metrics.generated_tokens += generated
        self._facts |= {
            "completion_tokens": generated,
            "finish": sorted({text.finish or ("failed" if text.error else "left") for text in texts}),
        }
        if self._service.log_texts:
            self._facts["texts"] = ["".join(text.shown) for text in texts]
