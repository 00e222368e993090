"""The processes that train one model together, as ``torchrun`` starts them; usually there is one.

Each has the whole model and some columns of the batch. Knows nothing about models, texts or files.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be setting up from a large corpus."""


class Processes:
    """This process and those that train with it.

    For one process alone, none of the methods does anything.

    Args:
        rank: which of them this is, from 0.
        count: how many there are.

    Raises:
        ConnectionError: (each method) another process has ended.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the processes that torchrun has started with this one.

        Args:
            device: the kind of device that each trains on; of several GPUs it takes one of its own.

        Raises:
            ValueError: this machine has fewer GPUs than processes.
        """
        if not started_together():
            return ALONE
        import torch
        import torch.distributed as dist

        # Imported after the group is made, as torch's optimizers import it, it would keep the group: threads
        # outlive destroy_process_group then, and may abort a process that is ending.
        importlib.import_module("torch.distributed.nn.functional")
        backend = "gloo"
        if device.type == "cuda":
            local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= gpus:
                raise ValueError(
                    f"each process needs a GPU of its own, and this machine has {gpus}; "
                    f"start {gpus} processes, or give --device cpu"
                )
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        with _together():
            dist.init_process_group(backend, store=_store(), rank=rank, world_size=count, timeout=_PATIENCE)
        return cls(rank, count)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each of ``tensors``, to the same bits everywhere.

        A model has few and large tensors: copying them into one would take longer than it saves.
        """
        if self.count > 1:
            import torch.distributed as dist

            with _together():
                for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                    work.wait()

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in one of the processes at least."""
        if self.count == 1:
            return list(flags)
        import torch
        import torch.distributed as dist

        highest = torch.tensor(flags, dtype=torch.uint8)
        with _together():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return [bool(flag) for flag in highest]

    def from_first(self, *numbers: float) -> list[float]:
        """The numbers of the first process; the others wait for it."""
        if self.count == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        given = torch.tensor(numbers, dtype=torch.float64)
        with _together():
            dist.broadcast(given, src=0)
        return given.tolist()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors, of one shape, of all processes in their order."""
        if self.count == 1:
            return [tensor]
        import torch
        import torch.distributed as dist

        gathered = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.count)
        ]
        with _together():
            dist.all_gather(gathered, tensor.contiguous())
        return gathered

    def columns(self, batch_size: int) -> range:
        """This process's columns of a batch; all processes have the same number."""
        share = batch_size // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def leave(self) -> None:
        """Wait for all others, and leave the group."""
        if self.count > 1:
            import torch.distributed as dist

            self.any(False)
            dist.destroy_process_group()


ALONE = Processes()


def started_together() -> bool:
    """Whether torchrun has started this process, and others with it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"


def is_first_to_fail() -> bool:
    """Whether no other of the processes has failed before this one: the first says why.

    From here on the signal is ignored that torchrun sends to the processes beside a failed one: they end by
    themselves.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return int(_store().add("failed", 1)) == 1
    except RuntimeError:  # torchrun itself is gone
        return True


@functools.cache
def _store() -> Any:
    """torchrun's store, which stays when processes end."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return store


@contextmanager
def _together() -> Iterator[None]:
    """Around what needs all processes: torch has many errors for one that has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:160]
        raise ConnectionError(
            f"another process of this run has ended or cannot be reached ({reason}); "
            "--resume goes on from the last checkpoint"
        ) from None
