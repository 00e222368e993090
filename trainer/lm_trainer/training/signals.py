"""Signals that end a run: after the step in hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Of the signals; the last one comes from a terminal that is closed, and only Unix has it."""


def ignore_signals() -> None:
    """Ignore further requests to stop, once the checkpoint is written and the process is about to end."""
    for name in _NAMES if _gets_signals() else ():
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)


def _gets_signals() -> bool:
    """Whether this is the main thread: no other one is told of signals."""
    return threading.current_thread() is threading.main_thread()


class StopSignals:
    """As a context: notes a signal that asks the run to stop, in place of ending the process."""

    def __init__(self) -> None:
        self.stop = False
        """Whether such a signal has come."""
        self._may_interrupt = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for name in _NAMES if _gets_signals() else ():
            number = getattr(signal, name, None)
            under_nohup = name == "SIGHUP" and number and signal.getsignal(number) == signal.SIG_IGN
            if number is not None and not under_nohup:
                self._before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def unless_stopped(self, work: Callable[[], T]) -> T | None:
        """The result of ``work``; None where a signal came before or broke it off."""
        self._may_interrupt = True
        try:
            return None if self.stop else work()
        except KeyboardInterrupt:
            return None
        finally:
            self._may_interrupt = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.stop = True
        if self._may_interrupt:
            self._may_interrupt = False  # once is enough
            raise KeyboardInterrupt
