"""A soak of lm-serve: many clients, random parameters, some that leave; each text against itself alone."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import psutil

import lm_runtime
from conftest import FIXTURE
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.params import SamplingParams
from served import Server

PROMPTS = ["", "the", "the keeper", "a clock of the\n", "the lamp " * 40]
CHOICES: dict[str, list[Any]] = {
    "temperature": [0, 0.7, 1.0, 1.5],
    "top_p": [0.5, 0.95, 1],
    "top_k": [0, 3, 40],
    "min_p": [0, 0.05],
    "typical_p": [1, 0.8],
    "repetition_penalty": [1, 1.2],
    "presence_penalty": [0, 0.5],
    "no_repeat_ngram_size": [0, 3],
    "logit_bias": [{}, {"7": 3, "9": None}],
    "stop": [[], ["lamp"], ["\n", "clock"]],
    "banned": [[], ["of"]],
    "regex": [None] * 9 + [" ?[a-z]+( [a-z]+){1,8}"],
    "max_tokens": [1, 5, 20, 60],
}
SEEDS = 5


@dataclass
class Report:
    """What a soak has seen."""

    requests: int = 0
    """Requests that were answered and compared."""
    wrong: list[str] = field(default_factory=list)
    """Texts that are not those alone."""
    left: int = 0
    """Requests whose client left."""
    errors: Counter[int] = field(default_factory=Counter)
    """Statuses other than 200 and 429."""
    busy: int = 0
    """Answers with 429."""
    memory: list[float] = field(default_factory=list)
    """The server's resident megabytes, as time goes on."""

    @property
    def growth(self) -> float:
        """By how much memory grew from the second quarter to the last, as a share."""
        quarter = max(1, len(self.memory) // 4)
        before, after = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return statistics.median(after) / statistics.median(before) - 1

    def __str__(self) -> str:
        return (
            f"{self.requests} texts equal to those alone, {len(self.wrong)} wrong; {self.left} clients left; "
            f"{self.busy} answers 429, other errors {dict(self.errors)}; "
            f"memory {self.memory[0]:.0f} to {self.memory[-1]:.0f} MB, {self.growth:+.1%} from the second "
            "quarter to the last"
        )


async def soak(server: Server, seconds: float, clients: int = 64) -> Report:
    """Ask a server of the fixture's bundle for so long."""
    report, model = Report(), lm_runtime.load(FIXTURE, provider="cpu", threads=1)
    ends = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
        alone = _Alone(model)
        watch = asyncio.create_task(_watch(server, report, ends))
        await asyncio.gather(
            *(_client(client, random.Random(number), alone, report, ends) for number in range(clients))
        )
        await watch
    return report


class _Alone:
    """Texts by themselves, each generated once."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._texts: dict[str, str] = {}

    def text(self, body: dict[str, Any], index: int) -> str:
        given = {name: value for name, value in body.items() if name in CHOICES}
        key = json.dumps([given, body["prompt"], body["seed"], index])
        if key not in self._texts:
            bias = {
                int(token): float("-inf") if number is None else number
                for token, number in given["logit_bias"].items()
            }
            params = SamplingParams(**given | {"logit_bias": bias})
            parts = lm_runtime.generate(self._model, body["prompt"], params, seed=body["seed"], index=index)
            self._texts[key] = "".join(parts)
        return self._texts[key]


async def _watch(server: Server, report: Report, ends: float) -> None:
    process = psutil.Process(server.process.pid)
    while time.monotonic() < ends:
        report.memory.append(process.memory_info().rss / 1e6)
        await asyncio.sleep(1)


async def _client(
    client: httpx.AsyncClient, source: random.Random, alone: _Alone, report: Report, ends: float
) -> None:
    while time.monotonic() < ends:
        body = {name: source.choice(values) for name, values in CHOICES.items()}
        # Few parameters are set at a time, as real requests have it.
        for name in source.sample(sorted(CHOICES), 8):
            body[name] = CHOICES[name][0] if name != "max_tokens" else body[name]
        body |= {
            "prompt": source.choice(PROMPTS),
            "seed": source.randrange(SEEDS),
            "n": source.choice([1, 1, 2]),
        }
        body["stream"] = source.random() < 0.5
        try:
            texts = await _ask(client, body, leaves=source.random() < 0.1)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 429:
                report.busy += 1
                await asyncio.sleep(0.2)
            else:
                report.errors[error.response.status_code] += 1
            continue
        except httpx.TransportError:
            report.errors[0] += 1
            continue
        if texts is None:
            report.left += 1
            continue
        for index, text in enumerate(texts):
            if text == (expected := alone.text(body, index)):
                report.requests += 1
            else:
                report.wrong.append(f"{json.dumps(body)}: {text!r}, not {expected!r}")


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], *, leaves: bool) -> list[str] | None:
    """The texts of a request; None for one whose client leaves."""
    if not body["stream"]:
        request = client.post("/completions", json=body)
        if leaves:
            try:
                await asyncio.wait_for(request, 0.02)
            except TimeoutError:
                return None
            return None
        answer = (await request).raise_for_status().json()
        return [choice["text"] for choice in answer["choices"]]
    texts = [""] * body["n"]
    async with client.stream("POST", "/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line or line == "data: [DONE]":
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["text"]
            if leaves:
                return None
    return texts
