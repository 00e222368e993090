"""lm-serve against the engine it is built on: 64 clients at once, and the time to the first token.

    python tests/benchmarks/serving.py [--bundle BUNDLE]

Without a bundle a model of the tutorial's size is made, trained for seconds: the speed is the same. The
engine runs in this process and lm-serve in one of its own; rounds alternate, so that both see the same
machine, and medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from generation import make_models

import lm_runtime
from lm_runtime.models.protocol import BundleModel
from lm_runtime.models.state import initial_state
from served import Server, serving

_CLIENTS = 64
_TOKENS = 200
_ROUNDS = 7
_ONE_BY_ONE = 40
_REST = 0.05  # seconds, in which onnxruntime's threads stop to wait actively for more work
_PROMPTS = (1, 64, 512)
_PARAMS: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_tokens": _TOKENS}


def engine_rate(model: BundleModel, round_: int) -> float:
    """Tokens a second of the engine alone, all texts together."""
    params = lm_runtime.SamplingParams(**_PARAMS)
    begun = time.perf_counter()
    engine = lm_runtime.Engine(model, max_batch=_CLIENTS)
    for index in range(_CLIENTS):
        engine.add(lm_runtime.Session.start(model, seed=round_, index=index), params)
    while len(engine):
        engine.step()
    return _CLIENTS * _TOKENS / (time.perf_counter() - begun)


async def ask(
    server: Server, body: dict[str, Any], each: Callable[[bytes], None] = lambda data: None
) -> bytes:
    """One request over a connection of its own, in few operations: the client shares the machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    data = json.dumps(body).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    answer = b""
    while part := await reader.read(1 << 16):
        each(part)
        answer += part
    writer.close()
    return answer


async def clients(server: Server, round_: int, *, stream: bool) -> None:
    bodies = [
        {"prompt": "", "seed": 1000 * round_ + number, "stream": stream, **_PARAMS}
        for number in range(_CLIENTS)
    ]
    answers = await asyncio.gather(*(ask(server, body) for body in bodies))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)


def server_rate(server: Server, round_: int, *, stream: bool) -> float:
    """Tokens a second that 64 clients get, all together, from their first byte to their last."""
    begun = time.perf_counter()
    asyncio.run(clients(server, round_, stream=stream))
    return _CLIENTS * _TOKENS / (time.perf_counter() - begun)


def first_token(server: Server, ids: list[int]) -> float:
    """Seconds from a request to the first part of its stream that has text."""
    told: list[float] = []

    def each(part: bytes) -> None:
        if b"data: " in part and not told:
            told.append(time.perf_counter())

    body = {"prompt": ids, "stream": True, "max_tokens": 2, "temperature": 0}
    begun = time.perf_counter()
    asyncio.run(ask(server, body, each))
    return told[0] - begun


def own_time(model: BundleModel, ids: list[int]) -> float:
    """Seconds to read a prompt and take one step, without a server."""
    begun = time.perf_counter()
    session = lm_runtime.Session.start(model)
    session.read(model, ids)
    model.stepper(session.state).step([session.token])
    return time.perf_counter() - begun


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or make_models(Path(folder), ["words"])["words"][1]
        model = lm_runtime.load(bundle, precision="int8")
        model.stepper(initial_state(model, 1)).step([0])
        with serving(
            "--precision", "int8", "--max-batch", _CLIENTS, bundles=(bundle,), threads=None
        ) as server:
            rates: dict[str, list[float]] = {"engine": [], "server": [], "streams": []}
            for round_ in range(options.rounds + 1):
                found = (
                    engine_rate(model, round_),
                    server_rate(server, round_, stream=False),
                    server_rate(server, round_, stream=True),
                )
                if round_:  # the first one warms up
                    for values, rate in zip(rates.values(), found, strict=True):
                        values.append(rate)
            engine, whole, streams = (statistics.median(values) for values in rates.values())
            print("| what | bar | measured |\n|---|---|---|")
            print(f"| engine alone, batch {_CLIENTS} | | {engine:,.0f} tokens/s |")
            share = statistics.median(b / a for a, b in zip(rates["engine"], rates["server"], strict=True))
            print(f"| {_CLIENTS} clients | 90 % of it | {whole:,.0f} tokens/s, {share:.0%} |")
            share = statistics.median(b / a for a, b in zip(rates["engine"], rates["streams"], strict=True))
            print(f"| {_CLIENTS} clients, streaming | | {streams:,.0f} tokens/s, {share:.0%} |")
            for length in _PROMPTS:
                ids = [number % model.config.vocab_size for number in range(1, length + 1)]
                pairs = []
                for _ in range(_ONE_BY_ONE):
                    time.sleep(_REST)
                    told_in = first_token(server, ids)
                    time.sleep(_REST)
                    pairs.append((told_in, own_time(model, ids)))
                told, own = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
                print(
                    f"| first token, prompt of {length} | 5 ms + its own time | "
                    f"{told:.1f} ms, {told - own:.1f} more than its own {own:.1f} |"
                )


if __name__ == "__main__":
    main()
