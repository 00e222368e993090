"""Batches of documents scored by several processes, each with a model of its own and one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from lm_runtime.scoring.documents import Columns, DocumentScorer

Batch = TypeVar("Batch")

_AHEAD = 3
"""Batches for each process that are read before the first of them is scored."""

_scorer: DocumentScorer


class WorkerDiedError(Exception):
    """A process that scores was ended from outside, or had no memory."""


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def score_batches(
    scorer: DocumentScorer, batches: Iterable[tuple[Batch, list[str]]], workers: int
) -> Iterator[tuple[Batch, Columns]]:
    """Score batches of texts, in their order.

    Args:
        scorer: what scores.
        batches: texts, each batch with whatever is wanted back with its scores.
        workers: processes; with one, this one scores.

    Raises:
        WorkerDiedError: a process died.
    """
    if workers == 1:
        for batch, texts in batches:
            yield batch, scorer.score(texts)
        return
    # Not by a fork: libraries of C++ have threads by then.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(scorer,))
    waiting: deque[tuple[Batch, Future[Columns]]] = deque()
    try:
        for batch, texts in batches:
            waiting.append((batch, pool.submit(_score, texts)))
            if len(waiting) >= workers * _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise WorkerDiedError(
            "a process that scores died, perhaps for want of memory; fewer --workers take less"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(scorer: DocumentScorer) -> None:
    global _scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _scorer = scorer


def _end_with_parent() -> None:
    """End this process when the first one is killed, which cannot end it then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _score(texts: list[str]) -> Columns:
    return _scorer.score(texts)
