"""Requests of strangers to lm-serve: whatever they send, it answers, lives on, and never with status 500."""

from __future__ import annotations

import base64
import copy
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from served import Server, serving

MUTATIONS = 1000
PATIENCE = 10.0
"""Seconds for one answer, with other work on the machine."""
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    1e308,
    10**30,
    1.5,
    "",
    "\ud800",
    "\0",
    "the " * 500,
    [],
    [[]],
    {},
    {"a": {}},
    [None],
    [True],
    [0, 200, -1],
    [[0, 1], "the"],
    ["the"] * 300,
    "(a|a)*" * 50,
    "[",
    {"0": None, "5": -100},
    {"x": 1},
    [["the", False], [7, 1e9]],
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/completions",
        {
            "model": "tiny_bundle",
            "prompt": ["the", "a"],
            "n": 2,
            "max_tokens": 8,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 1,
            "stop": ["."],
            "logprobs": 2,
            "echo": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {"5": 1},
            "presence_penalty": 0.1,
            "return_token_ids": True,
            "return_state": True,
        },
    ),
    (
        "/v1/completions",
        {"prompt": [0, 5, 6], "regex": "( [a-z]+){1,5}", "max_tokens": 5, "top_k": 3, "min_p": 0.1},
    ),
    ("/v1/completions", {"state": "", "prompt": "the", "max_tokens": 3, "banned": ["of"], "typical_p": 0.9}),
    ("/v1/score", {"texts": ["the lamp", "a"], "tokens": True}),
    ("/v1/score", {"hypotheses": [{"id": "a", "score": -1.5, "text": "the"}], "weight": 0.5}),
    ("/v1/suggest", {"prompt": "the ke", "k": 3, "kind": "words", "state": ""}),
    ("/tokenize", {"prompt": "the", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--max-text", 64, "--timeout", PATIENCE / 2, "--max-body", 1 << 16) as running:
        yield running
        assert running.ask("/v1/completions", {"prompt": "the", "max_tokens": 3})[0] == 200
        assert running.stop() == 0
        assert [line for line in running.log() if line["status"] >= 500 and line["status"] != 504] == []


def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> int:
    begun = time.monotonic()
    connection.request("POST", path, body)
    answer = connection.getresponse()
    content = answer.read()
    assert time.monotonic() - begun < PATIENCE
    if answer.status != 200:
        error = json.loads(content)["error"]
        assert error["message"], body
        assert len(error["message"]) <= 500
    assert answer.status in (200, 400, 404, 413, 429, 504), (path, body, content)
    return answer.status


def mutated(source: random.Random, record: dict[str, Any], state: str) -> bytes:
    """A request with a value, a key, or bytes changed."""
    record = copy.deepcopy(record)
    if "state" in record:
        record["state"] = mutated_state(source, state) if source.random() < 0.8 else source.choice(VALUES)
    if source.random() < 0.8:
        key = source.choice(
            [*record, "suffix", "best_of", "structured_outputs", "bad_words", "regex", "model"]
        )
        record[key] = source.choice(VALUES)
    data = bytearray(json.dumps(record).encode())
    if source.random() < 0.3:
        for _ in range(source.randrange(1, 4)):
            place = source.randrange(len(data))
            data[place : place + source.randrange(3)] = source.randbytes(source.randrange(3))
    return bytes(data)


def mutated_state(source: random.Random, state: str) -> str:
    """A state with bytes changed, cut, or doubled; its checksums are those of before."""
    content = bytearray(base64.b64decode(state))
    for _ in range(source.randrange(3)):
        content[source.randrange(len(content))] = source.randrange(256)
    if source.random() < 0.2:
        content = content[: source.randrange(len(content))]
    return base64.b64encode(content).decode() + source.choice(["", "", "", "=", "\n"])


def test_a_thousand_mutated_requests_and_states_are_answered(server: Server) -> None:
    state = server.ask("/v1/completions", {"prompt": "the", "max_tokens": 3, "return_state": True})[2]
    text = state["choices"][0]["state"]
    statuses: list[int] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        source = random.Random(number)
        connection = server.connect()
        try:
            for _ in range(MUTATIONS // 4):
                path, record = source.choice(BODIES)
                statuses.append(ask(connection, path, mutated(source, record, text)))
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(statuses) == MUTATIONS
    assert statuses.count(400) > MUTATIONS / 4
    assert statuses.count(200) > MUTATIONS / 20  # the mutations are not all of one kind


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"null", 400),
        (b'{"prompt": NaN}', 400),
        (b'{"prompt": "the", "temperature": 1e999}', 400),
        (b'{"prompt": "the", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"a":' * 30_000, 413),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
        (b"[" * 60_000, 400),
        (b'{"prompt": "' + b"x" * (1 << 17) + b'"}', 413),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bodies_that_are_no_request(server: Server, data: bytes, status: int) -> None:
    assert server.ask("/v1/completions", data)[0] == status


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET " + b"/a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda data: str(data)[:24],
)
def test_what_is_no_http_is_refused(server: Server, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1 << 16)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert server.ask("/health")[0] == 200


def test_clients_that_leave_in_the_middle_of_a_request_cost_nothing(server: Server) -> None:
    for data in (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: loc",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(data)
    assert server.ask("/health")[0] == 200
