"""This process's memory: how it is taken and how much it was. Knows nothing of torch.

Linux gives fresh memory as pages of zeros, each at its first touch, which is a tenth of the time that a step
of the tutorial's model takes: a training step frees large tensors and takes the same ones again. Call
:func:`keep_freed_memory` before torch is loaded.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, as glibc's ``malloc.h`` numbers them."""


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensors, where the C library is glibc; elsewhere do nothing.

    Large tensors are in huge pages too, where the system leaves it to the program and the environment does
    not say otherwise.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it as it is loaded
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)  # no block has a mapping of its own, which would go when it is freed
        libc.mallopt(_TRIM_THRESHOLD, -1)  # nor is the heap's end given back


def peak_memory() -> int:
    """The most that this process has used so far, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource  # which only Unix has

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
