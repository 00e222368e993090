"""Results arrive to the last byte, in UTF-8, or the command fails in one line; messages are short."""

from __future__ import annotations

import os
import pty
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from conftest import FIXTURE, SMALL, TINY, Invoke, one_line, tree
from lm_export.command import main as lm_export
from lm_runtime.commands import Command, machine_fault
from lm_runtime.commands.bench import main as lm_bench
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_trainer.command import main as lm_train

SCRIPTS = Path(sys.executable).parent
GENERATE = [str(SCRIPTS / "lm-generate"), str(FIXTURE), "--seed", "1"]
SCORE = [str(SCRIPTS / "lm-score"), str(FIXTURE)]


def environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | changes


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (lm_generate, [FIXTURE]),
        (lm_generate, [FIXTURE, "--samples", 2, "--json"]),
        (lm_generate, [FIXTURE, "--suggest", 2]),
        (lm_generate, [FIXTURE, "--beams", 2]),
        (lm_generate, [FIXTURE, "--input", "in.jsonl"]),
        (lm_generate, ["--help"]),
        (lm_generate, ["--version"]),
        (lm_score, [FIXTURE, TINY / "valid.txt"]),
        (lm_score, [FIXTURE, TINY / "valid.txt", "--json"]),
        (lm_score, [FIXTURE, TINY / "valid.txt", "--tokens"]),
        (lm_score, [FIXTURE, TINY / "valid.txt", "--lines"]),
        (lm_bench, [FIXTURE, "--tokens", 2, "--batch", 1]),
        (lm_train, [TINY, *SMALL, "--epochs", 1]),
        (lm_train, [TINY, *SMALL, "--dry-run"]),
        (lm_export, ["run", "--out", "bundle"]),
    ],
)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_is_said_in_one_line_by_every_command(
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_run: Path,
    command: click.Command,
    arguments: list[Any],
    buffered: bool,
) -> None:
    (tmp_path / "run").symlink_to(small_run)
    (tmp_path / "in.jsonl").write_text('{"prompt": "the"}\n')
    arguments = (
        [*arguments, "--out", "other"] if command is lm_train and "--dry-run" not in arguments else arguments
    )
    with Path("/dev/full").open("wb", buffering=-1 if buffered else 0) as full:
        monkeypatch.setattr(sys, "stdout", os.fdopen(full.fileno(), "w", closefd=False))
        code, _, err = invoke(command, *arguments)
    assert (code, one_line(err)) == (1, f"{command.name}: standard output: No space left on device")


@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "command",
    [
        [*GENERATE, "--max-tokens", "500", "--samples", "20", "--json"],
        [*GENERATE, "--max-tokens", "5000"],
        [*SCORE, str(TINY / "train.txt"), "--tokens"],
        [*SCORE, str(TINY / "train.txt"), "--lines"],
    ],
)
def test_a_limit_on_files_cuts_no_output_in_silence(
    tmp_path: Path, command: list[str], unbuffered: dict[str, str]
) -> None:
    with (tmp_path / "out").open("wb") as out:
        result = subprocess.run(
            command,
            env=environment(**unbuffered),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        )
    assert result.returncode == 1
    assert one_line(result.stderr) == f"{Path(command[0]).name}: standard output: File too large"
    assert (tmp_path / "out").stat().st_size == 4096


@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_a_pipe_that_does_not_wait_gets_everything(unbuffered: dict[str, str]) -> None:
    command = [*SCORE, str(TINY / "train.txt"), "--tokens"]
    expected = subprocess.run(command, capture_output=True, check=True).stdout
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    process = subprocess.Popen(command, env=environment(**unbuffered), stdout=sink, stderr=subprocess.DEVNULL)
    os.close(sink)
    time.sleep(1)  # until the pipe is full
    with os.fdopen(source, "rb") as file:
        assert file.read() == expected
    assert process.wait() == 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [*GENERATE, "--max-tokens", "20000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_the_output_is_utf_8_whatever_the_terminal_has(tmp_path: Path, encoding: str) -> None:
    changes = environment(PYTHONIOENCODING=encoding, LC_ALL="C")
    (tmp_path / "text").write_text("漢字 é\n", encoding="utf-8")
    for command in (
        [*GENERATE, "--prompt", "漢字 é", "--echo", "--max-tokens", "2"],
        [*GENERATE, "--prompt", "漢字 é", "--echo", "--max-tokens", "2", "--json"],
        [*SCORE, "text", "--lines"],
        [*SCORE, "text", "--lines", "--json"],
    ):
        result = subprocess.run(command, cwd=tmp_path, env=changes, capture_output=True, check=True)
        assert "漢字 é" in result.stdout.decode("utf-8")


def test_a_terminal_is_not_taken_over(tmp_path: Path) -> None:
    """A file or a pipe gets every byte as it is."""
    (tmp_path / "text").write_text("a \x1b]0;title\x07 \x9b31m \u202e é\tb\n", encoding="utf-8")
    command = [*SCORE, "text", "--lines"]
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout.decode()
    assert "\x1b]0;title\x07 \x9b31m \u202e é\tb\n" in piped
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the end, on Linux
                break
    os.close(ours)
    assert process.returncode == 0
    assert "a \\x1b]0;title\\x07 \\x9b31m \\u202e é\tb" in shown.decode()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown.decode())


def test_standard_input_is_read_from_where_it_stands(tmp_path: Path) -> None:
    """Whoever calls has read a header already."""
    (tmp_path / "text").write_text("header\nthe keeper\n")
    (tmp_path / "in.jsonl").write_text('header\n{"prompt": "the"}\n{"prompt": "a"}\n')
    for arguments, name, expected in (
        ([*SCORE, "-", "--lines"], "text", "\tthe keeper\n"),
        ([*GENERATE, "--prompt-file", "-", "--echo", "--max-tokens", "0"], "text", "the keeper\n"),
        ([*GENERATE, "--input", "-", "--max-tokens", "1"], "in.jsonl", '{"prompt": "the"'),
    ):
        with (tmp_path / name).open("rb", buffering=0) as file:
            file.read(len("header\n"))
            result = subprocess.run(arguments, stdin=file, capture_output=True, text=True, check=True)
        assert expected in result.stdout
        assert "header" not in result.stdout
    assert result.stdout.count("\n") == 2


def test_standard_input_may_be_a_socket_or_closed() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b"the keeper\n")
    ours.close()
    result = subprocess.run(
        [*SCORE, "-", "--lines"], stdin=theirs, capture_output=True, text=True, check=True
    )
    theirs.close()
    assert result.stdout.endswith("\tthe keeper\n")
    closed = subprocess.run(
        [*SCORE, "-"], preexec_fn=lambda: os.close(0), capture_output=True, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (1, "lm-score: /dev/stdin: closed\n")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What libraries write to standard error would be in it."""
    for closed in ((2,), (0, 2)):
        result = subprocess.run(
            [*GENERATE, "--max-tokens", "3", "--save-state", "s.npz"],
            cwd=tmp_path,
            preexec_fn=lambda closed=closed: [os.close(number) for number in closed],
            stdout=subprocess.PIPE,
            check=False,
        )
        assert result.returncode == 0
        assert result.stdout
        check = subprocess.run(
            [*GENERATE, "--load-state", "s.npz"], cwd=tmp_path, capture_output=True, check=False
        )
        assert check.returncode == 0, check.stderr


def test_notes_that_nobody_can_take_are_no_error() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*GENERATE, "--max-tokens", "3"], stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert (result.returncode, result.stdout.count(b"\n") > 0) == (0, True)


def test_a_dash_is_standard_output_or_refused(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "the"}\n')
    arguments = [FIXTURE, "--input", "in.jsonl", "--max-tokens", 3]
    plain = invoke(lm_generate, *arguments)
    assert invoke(lm_generate, *arguments, "--output", "-") == plain
    assert plain[1].count("\n") == 1
    for command, options in (
        (lm_generate, [FIXTURE, "--save-state", "-"]),
        (lm_train, [TINY, *SMALL, "--out", "-"]),
        (lm_export, [small_run, "--out", "-"]),
    ):
        code, out, err = invoke(command, *options)
        assert (code, out) == (2, "")
        assert "-" in one_line(err)
    assert tree(tmp_path) == {"in.jsonl"}


def test_a_message_quotes_no_more_than_a_person_reads(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "temperature": "' + "x" * 10_000_000 + 'END"}\n')
    code, _, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl")
    assert code == 1
    assert len(err) < 2500
    assert "in.jsonl: line 1" in one_line(err)
    code, _, err = invoke(lm_generate, FIXTURE, "--logit-bias", "y" * 100_000)
    assert code == 2
    assert len(err) < 2500


def test_a_message_has_no_control_characters(invoke: Invoke, tmp_path: Path) -> None:
    name = "a\x1b[31m\x9b\u202eb.txt"
    code, _, err = invoke(lm_score, FIXTURE, name)
    assert (code, err) == (
        1,
        "lm-score: a\\x1b[31m\\x9b\\u202eb.txt: no file has such a name\n",
    )  # [ makes it a pattern


MACHINE = [
    (
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
        "out of memory",
    ),
    ("CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
    ("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9", "out of memory"),
    ("std::bad_alloc", "out of memory"),
    ("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)", "out of memory"),
    ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", "out of memory"),
    (
        "CUDA error: uncorrectable ECC error encountered\nmore",
        "CUDA error: uncorrectable ECC error encountered",
    ),
    ("NCCL error in: x.cpp", "NCCL error in: x.cpp"),
    ("can't start new thread", "can't start new thread"),
    ("more than one element of the written-to tensor refers to a single memory location", ""),
    ("expected tensor in channels-last memory format", ""),
    ("CUDA error: device-side assert triggered", ""),
    ("Expected all tensors to be on the same device, but found cuda:0 and cpu", ""),
    ("mat1 and mat2 shapes cannot be multiplied", ""),
    ("no memory", ""),
]


@pytest.mark.parametrize(("text", "message"), MACHINE)
def test_the_machine_is_at_fault_only_where_it_is(text: str, message: str) -> None:
    """Of all else the traceback says where the error is."""
    assert machine_fault(RuntimeError(text)) == message


def run_with(error: BaseException) -> None:
    @click.command(cls=Command, name="lm-x")
    def command() -> None:
        raise error

    command.main([], prog_name="lm-x")


class PanicException(BaseException):
    """As pyo3 has it for libraries in Rust."""


class RuntimeException(Exception):  # noqa: N818 - onnxruntime's own name
    """As onnxruntime has it, which is no RuntimeError."""


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PanicException("index out of bounds"), 1, "a library failed on this input: index out of bounds"),
        (RuntimeException("Failed to allocate memory for requested buffer of size 5"), 1, "out of memory"),
        (ImportError("libx.so: failed to map segment"), 1, "libx.so: failed to map segment"),
        (OSError(28, "No space left on device", "model.bin"), 1, "model.bin: No space left on device"),
    ],
)
def test_what_is_no_fault_of_the_program_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_with(error)
    assert (exit_.value.code, capsys.readouterr().err) == (status, f"lm-x: {message}\n")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    for error in (RuntimeError("a single memory location"), RuntimeException("Invalid rank"), KeyError("x")):
        with pytest.raises(type(error)) as raised:
            run_with(error)
        assert raised.value is error


INTERRUPTED = """
import importlib.abc, os, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("lm-generate", "click"),
        ("lm-generate", "lm_runtime.files"),
        ("lm-generate", "numpy"),
        ("lm-score", "lm_runtime.scoring.score"),
        ("lm-bench", "lm_runtime.bench"),
        ("lm-train", "lm_trainer.command"),
        ("lm-train", "lm_trainer.config"),
        ("lm-export", "lm_export.command"),
    ],
)
def test_ctrl_c_is_quiet_from_the_first_import_on(tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.format(name=name))
    arguments = [FIXTURE] if command in ("lm-generate", "lm-bench") else [FIXTURE, TINY / "valid.txt"]
    arguments = arguments if command.startswith(("lm-g", "lm-s", "lm-b")) else []
    result = subprocess.run(
        [SCRIPTS / command, *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (-signal.SIGINT, 130)
    assert result.stderr in ("", f"\n{command}: interrupted\n")


def impatient(function: Callable[[], object]) -> None:
    """Call ``function``, which must not wait for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        function()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_what_is_no_regular_file_is_refused_by_its_name(
    invoke: Invoke, tmp_path: Path, small_run: Path, kind: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "good.txt").write_text("the keeper\n")
    for name in (
        "strange",
        "strange.toml",
        "folder/train.txt",
        "folder/valid.txt",
        "run/last.pt",
        "run/best.pt",
    ):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")

    def refused(command: click.Command, *arguments: object) -> None:
        code, out, err = invoke(command, *arguments)
        assert code in (1, 2), arguments
        assert out == ""
        assert any(
            name in one_line(err) for name in ("strange", "folder/train.txt", "run/best.pt", "run holds")
        ), err

    def all_of_them() -> None:
        refused(lm_generate, FIXTURE, "--prompt-file", "strange")
        refused(lm_generate, FIXTURE, "--input", "strange")
        refused(lm_generate, FIXTURE, "--load-state", "strange")
        refused(lm_generate, FIXTURE, "--save-state", "strange")
        refused(lm_generate, "strange")
        refused(lm_score, FIXTURE, "strange")
        refused(lm_train, "strange", *SMALL, "--out", "new")
        refused(lm_train, "folder", *SMALL, "--out", "new")
        refused(lm_train, TINY, "--config", "strange.toml", "--out", "new")
        refused(lm_train, TINY, "--init", "strange", "--out", "new")
        refused(lm_train, TINY, *SMALL, "--out", "run", "--force")
        refused(lm_train, TINY, *SMALL, "--out", "run", "--resume")
        refused(lm_export, "strange", "--out", "new")
        refused(lm_export, "run", "--out", "new")

    impatient(all_of_them)
    assert not (tmp_path / "new").exists()


def test_links_that_a_repository_carries_lead_nowhere(
    invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    """Whatever stands beside a place is left as it is, and a run's own files are no links."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    for name in (".run.partial", ".bundle.partial", ".bundle.replaced"):
        (tmp_path / name).symlink_to("precious")
    (tmp_path / ".s.npz.partial").symlink_to("precious/file")
    assert invoke(lm_train, "nosuchfile.txt", "--out", "run")[0] == 2
    assert invoke(lm_export, "nosuchfile.pt", "--out", "bundle")[0] == 1
    assert invoke(lm_export, small_run, "--out", "bundle")[0] == 0
    assert invoke(lm_export, small_run, "--out", "bundle", "--force")[0] == 0
    assert invoke(lm_generate, FIXTURE, "--max-tokens", 1, "--save-state", "s.npz")[0] == 0
    assert (tmp_path / "s.npz").is_file()
    assert (tmp_path / "precious/file").read_text() == "mine"
    assert tree(tmp_path / "precious") == {"file"}
    assert all(
        (tmp_path / name).is_symlink() for name in (".run.partial", ".bundle.replaced", ".s.npz.partial")
    )


def test_the_file_that_an_interrupted_call_goes_on_with_is_no_link(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "the"}\n')
    arguments = [FIXTURE, "--input", "in.jsonl", "--max-tokens", 2, "--output", "out.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: self)  # so that its name is known
        invoke(lm_generate, *arguments)
    (partial,) = tmp_path.glob(".out.jsonl.*")
    partial.unlink()
    (tmp_path / "precious").write_text("mine, without an end")
    for make in (partial.symlink_to, partial.hardlink_to):
        make(tmp_path / "precious")
        code, _, err = invoke(lm_generate, *arguments)
        assert code == 1
        assert partial.name in one_line(err)
        assert (tmp_path / "precious").read_text() == "mine, without an end"
        partial.unlink()
    assert invoke(lm_generate, *arguments)[0] == 0


def test_a_run_whose_metrics_are_a_link_is_not_gone_on_with(
    invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "precious").write_text("mine\n" * 1000)
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").symlink_to(tmp_path / "precious")
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 4)
    assert code == 1
    assert "metrics.jsonl: not a regular file" in one_line(err)
    assert (tmp_path / "precious").read_text() == "mine\n" * 1000
