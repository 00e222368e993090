"""No command and no import opens a connection, or writes anything into the home folder."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FIXTURE, SMALL, TINY, tree

_SYSCALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""For each processor: how Linux's filter calls it, and the number of ``socket``."""

COMMANDS = [
    f"lm-train {TINY} --out run --epochs 1 --tensorboard {shlex.join(SMALL)}",
    f"lm-train {TINY} --find-lr lr.png {shlex.join(SMALL)}",
    f"lm-train {TINY} --model ngram --out grams {shlex.join(SMALL[:4])}",
    "lm-export run --out bundle --quantize int8",
    "lm-export grams --out counts --arpa",
    "lm-generate bundle --precision int8 --seed 1 --max-tokens 5",
    f"lm-score bundle {TINY / 'valid.txt'} --with counts --weight 0.3",
    "lm-bench bundle --tokens 5 --batch 1",
]
LOCAL = "import uuid; uuid._generate_time_safe, uuid._node = None, 1"
"""uuid1, which names a temporary file of onnxruntime's, asks for this machine's address by a socket."""
IMPORTS = """
# lm-eval is another project's; urllib3, which it imports, asks the system for IPv6 by a socket.
import importlib, pkgutil
for name in ("lm_runtime", "lm_trainer", "lm_export"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if module.name != "lm_runtime.lm_eval":
            importlib.import_module(module.name)
"""


def kill_at_connections() -> None:
    """Let the kernel kill this process at its first socket of the internet, also one of native code."""
    architecture, number = _SYSCALLS[platform.machine()]
    load, equal, end = 0x20, 0x15, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4),  # the processor
        (equal, 0, 6, architecture),
        (load, 0, 0, 0),  # the call
        (equal, 0, 4, number),
        (load, 0, 0, 16),  # its first argument, the family of addresses
        (equal, 1, 0, 2),
        (equal, 0, 1, 10),
        (end, 0, 0, kill),
        (end, 0, 0, allow),
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    lines = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    set_filter, filtered, no_new_privileges = 22, 2, 38
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_filter, filtered, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter")


def offline(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "home").mkdir(exist_ok=True)
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(LOCAL)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    return subprocess.run(
        arguments,
        cwd=folder,
        env={**kept, "HOME": str(folder / "home"), "PYTHONPATH": str(folder / "site")},
        preexec_fn=kill_at_connections,
        capture_output=True,
        text=True,
        check=False,
    )


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _SYSCALLS, reason="the filter is Linux's"
)


def test_the_filter_sees_a_connection(tmp_path: Path) -> None:
    code = "import socket; socket.socket(socket.AF_UNIX); print(1); socket.socket(); print(2)"
    result = offline([sys.executable, "-uc", code], tmp_path)
    assert (result.returncode, result.stdout) == (-31, "1\n")  # SIGSYS


def test_no_command_connects_or_writes_into_the_home_folder(tmp_path: Path) -> None:
    for command in COMMANDS:
        name, *arguments = shlex.split(command)
        result = offline([str(Path(sys.executable).parent / name), *arguments], tmp_path)
        assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stderr[-2000:]}"
        assert tree(tmp_path / "home") == set(), command


def test_no_import_connects_or_writes_into_the_home_folder(tmp_path: Path) -> None:
    result = offline([sys.executable, "-c", IMPORTS], tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert tree(tmp_path / "home") == set()


def test_telemetry_is_what_the_user_says(tmp_path: Path) -> None:
    code = "import os, lm_runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for said, expected in (({}, "1\n"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0\n")):
        kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        result = subprocess.run(
            [sys.executable, "-c", code], env={**kept, **said}, capture_output=True, text=True, check=True
        )
        assert result.stdout == expected


def test_a_model_loads_offline(tmp_path: Path) -> None:
    """Importing a part alone is enough."""
    code = f"from lm_export import quantize; import lm_runtime; lm_runtime.load({str(FIXTURE)!r})"
    result = offline([sys.executable, "-c", code], tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert tree(tmp_path / "home") == set()
