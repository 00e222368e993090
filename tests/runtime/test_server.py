"""How lm-serve behaves: who may ask, what it bounds, clients that leave, costly requests, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lm_runtime
from conftest import FIXTURE, run_command
from lm_runtime.sampling.params import SamplingParams
from served import NAME, Server, serving
from toy_bundles import ngram_bundle

ENDLESS = 1 << 24
"""Tokens: minutes of text."""
PATIENCE = 20.0
"""Seconds within which what must happen happens, on a machine with other work."""
COSTLY = {"prompt": "the", "max_tokens": 4096, "regex": "(.*a.{40}x)|(.*b.{41}x)|(.*c.{42}x)|(.*d.{43}x)"}


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """Room for one text, which may be as long as it likes."""
    with serving("--max-batch", 1, "--max-queue", 0, "--max-text", ENDLESS, "--timeout", 60) as server:
        yield server


class Stream:
    """An open stream of server-sent events."""

    def __init__(self, server: Server, **body: Any) -> None:
        self.connection = server.connect()
        self.connection.request(
            "POST", "/v1/completions", json.dumps({"prompt": "the", "stream": True, **body})
        )
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200

    def __iter__(self) -> Iterator[str]:
        for line in self.answer:
            if line.strip():
                yield line.decode().strip().removeprefix("data: ")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        self.answer.close()
        self.connection.close()


def until(condition: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.02)


def running(server: Server) -> int:
    metrics = server.ask("/metrics")[2]["content"]
    (line,) = [line for line in metrics.splitlines() if line.startswith("steplm_texts{")]
    return int(line.rpartition(" ")[2])


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_place(narrow: Server, streamed: bool) -> None:
    body = {"prompt": "the", "max_tokens": ENDLESS}
    if streamed:
        stream = Stream(narrow, max_tokens=ENDLESS)
        assert json.loads(next(iter(stream)))["choices"][0]["text"]
    else:
        connection = narrow.connect()
        connection.request("POST", "/v1/completions", json.dumps(body))
        until(lambda: running(narrow))
    status, headers, told = narrow.ask("/v1/completions", {"prompt": "the"})
    assert (status, told["error"]["type"]) == (429, "rate_limit_error")
    assert int(headers["retry-after"]) >= 1
    if streamed:
        stream.leave()
    else:
        connection.close()
    until(lambda: not running(narrow))
    assert narrow.ask("/v1/completions", {"prompt": "the", "max_tokens": 3})[0] == 200
    (line,) = [line for line in narrow.log() if line.get("left")][-1:]
    assert line["completion_tokens"] < ENDLESS


def test_a_reader_that_stops_reading_holds_up_nobody() -> None:
    with serving("--max-text", ENDLESS) as server, Stream(server, max_tokens=ENDLESS):
        for seed in range(5):
            body = {"prompt": "the", "seed": seed, "max_tokens": 50}
            assert server.ask("/v1/completions", body)[0] == 200


def test_time_is_bounded() -> None:
    with serving("--max-text", ENDLESS, "--timeout", 0.5) as server:
        status, _, told = server.ask("/v1/completions", {"prompt": "the", "max_tokens": ENDLESS})
        assert (status, told["error"]["code"]) == (504, "timeout")
        with Stream(server, max_tokens=ENDLESS) as stream:
            *_, error, done = stream
        assert json.loads(error)["error"]["code"] == "timeout"
        assert done == "[DONE]"


def test_a_costly_regular_expression_costs_its_own_request() -> None:
    """Ordinary requests come and go while it runs; it ends by the time that a request has."""
    with serving("--timeout", 4) as server:
        costly: list[int] = []

        def ask() -> None:
            costly.append(server.ask("/v1/completions", COSTLY)[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: running(server) == 3)
        ordinary = 0
        while not costly:
            assert server.ask("/v1/completions", {"prompt": "the", "max_tokens": 20})[0] == 200
            ordinary += 1
        for thread in threads:
            thread.join()
        assert set(costly) <= {200, 400, 504}
        assert ordinary >= 5


def test_it_ends_when_its_texts_have_ended() -> None:
    tokens = 20_000
    with serving("--max-text", ENDLESS, "--grace", 600) as server:
        stream = Stream(server, max_tokens=tokens, temperature=0, stream_options={"include_usage": True})
        events = iter(stream)
        next(events)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("/health/ready")[0] == 503)
        assert server.ask("/health/live")[0] == 200
        status, headers, told = server.ask("/v1/completions", {"prompt": "the"})
        assert (status, told["error"]["code"]) == (503, "stopping")
        assert "retry-after" in headers
        *_, usage, done = events
        stream.leave()
        assert json.loads(usage)["usage"]["completion_tokens"] == tokens
        assert done == "[DONE]"
        assert server.process.wait(PATIENCE) == 0
        assert "stopping: 1 texts are still running" in server.notes()


@pytest.mark.parametrize(("grace", "signals"), [(0.3, 1), (600, 2)])
def test_its_patience_ends_too(grace: float, signals: int) -> None:
    with serving("--max-text", ENDLESS, "--grace", grace) as server:
        stream = Stream(server, max_tokens=ENDLESS)
        next(iter(stream))
        for _ in range(signals):
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert server.process.wait(PATIENCE) == 0
        stream.leave()


def test_texts_are_logged_only_if_asked() -> None:
    body = {"prompt": "the lamp", "temperature": 0, "max_tokens": 3}
    for arguments in ((), ("--log-texts",)):
        with serving(*arguments) as server:
            text = server.ask("/v1/completions", body)[2]["choices"][0]["text"]
            assert server.stop() == 0
            (line,) = [line for line in server.log() if line["path"] == "/v1/completions"]
        if arguments:
            assert (line["prompt"], line["texts"]) == ("the lamp", [text])
        else:
            assert "lamp" not in str(line)
            assert text not in str(line)


def test_keys_open_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key-1234567890\nsecond-key-123456789\n")
    with serving("--api-key-file", keys) as server:
        for path in ("/", "/health", "/health/live", "/health/ready"):
            assert server.ask(path)[0] == 200
        for path, body in (("/v1/completions", {"prompt": "the"}), ("/v1/models", None), ("/metrics", None)):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key-1234567890"}):
                status, answered, told = server.ask(path, body, **headers)
                assert (status, told["error"]["code"]) == (401, "invalid_api_key")
                assert answered["www-authenticate"] == "Bearer"
            for key in keys.read_text().split():
                assert server.ask(path, body, Authorization=f"Bearer {key}")[0] == 200


def test_pages_of_others_may_not_ask_unless_they_are_named() -> None:
    body = {"prompt": "the", "max_tokens": 1}
    with serving("--cors-origin", "https://friend.example") as server:
        own = f"http://127.0.0.1:{server.port}"
        for origin, expected in (("https://evil.example", 403), ("null", 403), (own, 200)):
            assert server.ask("/v1/completions", body, Origin=origin)[0] == expected
        status, headers, _ = server.ask("/v1/completions", body, Origin="https://friend.example")
        assert (status, headers["access-control-allow-origin"]) == (200, "https://friend.example")
        # An error can be read there too; a name that an attacker has pointed here is none of the server's.
        status, headers, _ = server.ask("/v1/completions", {}, Origin="https://friend.example")
        assert (status, headers["access-control-allow-origin"]) == (400, "https://friend.example")
        assert server.ask("/health", Host="evil.example")[0] == 403
        assert server.ask("/health", Host=f"localhost:{server.port}")[0] == 200


def test_states_are_signed_if_there_is_a_key(tmp_path: Path) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_text("k" * 32)
    other.write_text("o" * 32)
    start = {"prompt": "the", "max_tokens": 0, "return_state": True}
    with (
        serving() as open_,
        serving("--state-key-file", key) as first,
        serving("--state-key-file", key) as second,
    ):
        unsigned = open_.ask("/v1/completions", start)[2]["choices"][0]["state"]
        signed = first.ask("/v1/completions", start)[2]["choices"][0]["state"]
        assert second.ask("/v1/completions", {"state": signed})[0] == 200
        changed = signed[:10] + ("A" if signed[10] != "A" else "B") + signed[11:]
        for state in (unsigned, changed, "", "AAAA"):
            status, _, told = second.ask("/v1/completions", {"state": state})
            assert (status, told["error"]["param"]) == (400, "state")
    with serving("--state-key-file", other) as third:
        assert third.ask("/v1/completions", {"state": signed})[0] == 400


def test_several_bundles_have_their_names(tmp_path: Path) -> None:
    grams = ngram_bundle(tmp_path / "grams")
    with serving(bundles=(FIXTURE, grams)) as server:
        assert [one["id"] for one in server.ask("/v1/models")[2]["data"]] == [NAME, "grams"]
        body = {"prompt": "the", "seed": 1, "max_tokens": 8, "return_state": True}
        first = server.ask("/v1/completions", body)[2]
        assert first["model"] == NAME
        second = server.ask("/v1/completions", {**body, "model": "grams"})[2]
        params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=8)
        text = "".join(lm_runtime.generate(lm_runtime.load(grams), "the", params, seed=1))
        assert second["choices"][0]["text"] == text
        status, _, told = server.ask("/v1/completions", {"state": second["choices"][0]["state"]})
        assert (status, told["error"]["param"]) == (400, "state")
        assert "another model" in told["error"]["message"]


def test_mistakes_of_the_call_end_in_one_line(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("secret\n")
    with serving() as server:
        for arguments, code, words in (
            ([tmp_path / "nothing"], 1, "nothing"),
            ([FIXTURE, FIXTURE], 2, "two bundles are called tiny_bundle"),
            ([FIXTURE, "--max-queue", "-1"], 2, "max_queue must be from 0"),
            ([FIXTURE, "--api-key-file", short], 2, "at least 16 characters"),
            ([FIXTURE, "--port", server.port], 1, f": 127.0.0.1 port {server.port}: Address already in use"),
        ):
            error = run_command("lm-serve", *arguments, cwd=tmp_path, code=code).stderr
            assert words in error.splitlines()[-1]
            assert "Traceback" not in error


def test_without_arguments_it_serves_the_default_bundle(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/bundle").symlink_to(FIXTURE)
    command = [str(Path(sys.executable).parent / "lm-serve"), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    _, error = process.communicate()
    assert "serving" in error
    assert "Traceback" not in error


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['starlette'] = None\nsys.modules['uvicorn'] = None\n"
    )
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lm-serve"), str(FIXTURE)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "is not installed; install the serve extra: pip install '.[serve]'" in result.stderr
    assert result.stderr.count("\n") == 1
