"""``lm-serve`` as a process of its own, and what it is asked without a library."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conftest import FIXTURE

NAME = FIXTURE.name
_PATIENCE = 60


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        """Of the page, with a slash at the end."""
        self.port = urlsplit(address).port or 0
        self._log = log

    @property
    def url(self) -> str:
        """What OpenAI's clients call the base."""
        return f"{self.address}v1"

    def log(self) -> list[dict[str, Any]]:
        """The log's lines about requests."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def notes(self) -> str:
        """What else went to standard error."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.startswith("{"))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)

    def ask(
        self, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Post JSON, or bytes as they are, or get; the status, the headers, and the JSON object."""
        connection = self.connect()
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if data is None else "POST", path, data, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        is_json = found.get("content-type") == "application/json"
        return answer.status, found, json.loads(content) if is_json else {"content": content.decode()}

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Tell it to stop, and wait; the exit status."""
        self.process.send_signal(sign)
        return self.process.wait(_PATIENCE)


@contextmanager
def serving(
    *arguments: object, bundles: tuple[Path, ...] = (FIXTURE,), threads: int | None = 1
) -> Iterator[Server]:
    """A server at a free port, with more arguments."""
    command = [str(Path(sys.executable).parent / "lm-serve"), *map(str, bundles), "--port", "0"]
    command += [] if threads is None else ["--threads", str(threads)]
    command += map(str, arguments)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ}
            )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), log.read_text()
            yield Server(process, address, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(_PATIENCE)
            assert process.stdout is not None
            process.stdout.close()
