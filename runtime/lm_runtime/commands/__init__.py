"""The command lines of the runtime, and what every command of the project shares.

Only here do exceptions become messages: one line on standard error, exit status 2 for a mistake in the
call, 1 for a run that failed, 130 for an interruption.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lm_runtime.commands import output
from lm_runtime.commands.messages import how_to_add, note, one_line
from lm_runtime.commands.options import GroupedCommand, option
from lm_runtime.files import UnusableFileError

if TYPE_CHECKING:
    from lm_runtime.models.protocol import BundleModel

__all__ = [
    "Command",
    "Progress",
    "file_size",
    "imports",
    "machine_fault",
    "note",
    "note_precisions",
    "where_it_runs",
    "which_graph",
]

_EXTRAS = {
    "llguidance": ("regex",) * 2,
    "tensorboard": ("tensorboard",) * 2,
    "pyarrow": ("parquet",) * 2,
    "backports": ("zstd",) * 2,
    "backports.zstd": ("zstd",) * 2,
    "datatrove": ("datatrove",) * 2,
    **dict.fromkeys(("starlette", "uvicorn"), ("serve",) * 2),
}
"""The extra that brings a module, as pip takes it and as it is called; all others are of the training."""

_OUT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|[Cc]an(no|')t allocate memory|[Ff]ailed to allocate|bad[ _]alloc|"
    "ALLOC_FAILED|OUT_OF_MEMORY"
)
"""As torch, onnxruntime, CUDA, and the libraries of C++ and C say it."""
_OF_DEVICE = re.compile(
    "(CUDA|CUDNN|cuDNN|CUBLAS|NCCL) (error|failure|driver)|No CUDA GPUs|(CUDNN|CUBLAS)_STATUS_"
)
_OF_SYSTEM = re.compile("can't start new thread|Resource temporarily unavailable|Too many open files")
_OF_PROGRAM = re.compile("device-side assert|invalid argument|invalid configuration|misaligned")
"""What a device says of a program that is wrong."""

WHERE_IT_RUNS = "Where it runs"
"""The heading of the options that say where."""


class Command(GroupedCommand):
    """A command that ends in one line when it cannot do what was asked."""

    _interrupted = False

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command and exit the process."""
        kwargs["standalone_mode"] = False
        kwargs.setdefault("prog_name", self.name)  # also by python -m
        _fill_closed_streams()
        if sys.stdout is None:
            self._fail("standard output is closed", 1)
        try:
            with output.whole_output(), _handling(self._interrupt):
                code = super().main(*args, **kwargs)
        except click.UsageError as error:
            self._fail(error.format_message() + _see_help(error), 2)
        except click.ClickException as error:
            self._fail(error.format_message(), 1)
        except (click.Abort, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough, also while Python shuts down
            self._fail("interrupted", 130)
        except UnicodeEncodeError as error:
            self._fail(f"not valid text: {error.object!r}", 2)
        except UnusableFileError as error:
            self._fail(str(error), 1)
        except ValueError as error:
            self._fail(str(error), 2)
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            extra, called = _EXTRAS.get(name, ("train", "training"))
            self._fail(f"{name} is not installed; install the {called} extra: {how_to_add(extra)}", 1)
        except ImportError as error:
            # A library that is installed: there is no memory for it, or it misses another one.
            self._fail(str(error), 1)
        except MemoryError:
            self._fail("out of memory", 1)
        except OSError as error:
            if error.errno == errno.EPIPE and error.filename == output.NAME:
                sys.exit(1)  # whoever read it has seen enough
            self._fail(
                f"{error.filename or 'writing'}: {error.strerror}" if error.strerror else str(error), 1
            )
        except Exception as error:
            if not (fault := machine_fault(error)):
                raise
            self._fail(fault, 1)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of a library in Rust, which has said where
                raise
            self._fail(f"a library failed on this input: {error}", 1)
        sys.exit(code if isinstance(code, int) else 0)

    def check_interrupted(self) -> None:
        """Interrupt now, if a Ctrl-C came while Python ignores exceptions, as it does in a destructor.

        Raises:
            KeyboardInterrupt: that is so.
        """
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, signum: int, frame: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _fail(self, message: str, status: int) -> NoReturn:
        note(f"{self.name}: {one_line(message)}")
        sys.exit(status)


def machine_fault(error: Exception) -> str:
    """What to say of an error of torch or onnxruntime that is the machine's fault, one line; else nothing.

    Memory, also a device's, is used up, a device has failed, or the system gives no more threads or files.
    """
    text = str(error)
    if _OUT_OF_MEMORY.search(text):
        return "out of memory"
    if _OF_SYSTEM.search(text) or (_OF_DEVICE.search(text) and not _OF_PROGRAM.search(text)):
        return text.splitlines()[0]
    return ""


def _fill_closed_streams() -> None:
    """Open what is closed of standard input and error, so that no file of the command takes its place."""
    for descriptor in (0, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


@contextmanager
def imports() -> Iterator[None]:
    """Around a command's own imports: Ctrl-C ends the process there and then.

    Nothing has been done yet that could be left half done, and an interruption that is raised within
    the import of an extension module comes out as anything but one.
    """
    with _handling(signal.SIG_DFL):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """Handle Ctrl-C by ``handler`` for a while; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _see_help(error: click.UsageError) -> str:
    return f" (see {error.ctx.info_name} --help)" if error.ctx else ""


def where_it_runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that opens a bundle."""
    for decorate in (
        option(
            "--threads",
            type=click.IntRange(1, 1024),
            group=WHERE_IT_RUNS,
            help="CPU threads.  [default: onnxruntime's choice]",
        ),
        option(
            "--provider",
            group=WHERE_IT_RUNS,
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where it runs.",
        ),
    ):
        function = decorate(function)
    return function


def which_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option of a command that runs one of the bundle's graphs."""
    decorate = option(
        "--precision",
        group=WHERE_IT_RUNS,
        type=click.Choice(["fp32", "int8"]),
        help="Which graph.  [default: fp32, or the only one that is there]",
    )
    return decorate(function)


def note_precisions(models: Sequence[BundleModel], precision: str | None) -> None:
    """Tell which graphs are not of the precision that was asked for; tables have none."""
    for model in models:
        if precision is not None and model.precision != precision and model.config.precisions:
            note(f"{model.folder} has no {precision} graph and runs in {model.precision}")


def file_size(size: float) -> str:
    """A number of bytes in the unit a person would use: ``1.4 MB``."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class Progress:
    """A line about long work for the person at a terminal who sees nothing else of it.

    It is written at most once a second and ends with a return, so that whatever comes next takes its place.

    Args:
        total: of the work, in whatever unit; 0 where it is not known.
        alone: whether nothing is printed meanwhile, so that standard output may be the terminal too.
    """

    def __init__(self, total: float, *, alone: bool = False) -> None:
        self._total = total
        self.shown = total > 0 and sys.stderr.isatty() and (alone or not sys.stdout.isatty())
        """Whether there is a terminal to show it."""
        self._begun = self._told = time.monotonic()

    def show(self, done: float, before: float = 0, also: str = "") -> None:
        """Tell how far the work is: ``done`` of it, ``before`` of that by an earlier run; and ``also``."""
        now = time.monotonic()
        if self.shown and now - self._told > 1 and before < done <= self._total:
            self._told = now
            left = (now - self._begun) * (self._total - done) / (done - before)
            text = f"{done / self._total:4.0%}, {timedelta(seconds=round(left))} left"
            text += f", {also} " if also else ""
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{text}\r")
                sys.stderr.flush()
