"""How this process takes its memory: made for steps that free large tensors and take the same ones again.

Linux gives fresh memory as pages of zeros, each at its first touch, which is a tenth of the time that a step
of the tutorial's model takes. Call :func:`keep_freed_memory` before torch is loaded. Knows nothing of torch.
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of ``mallopt``, as glibc's ``malloc.h`` numbers them."""


def keep_freed_memory() -> None:
    """Keep what is freed for what is taken next, where the C library is glibc; elsewhere do nothing.

    Large tensors are in huge pages too, where the system leaves it to the program and the environment does
    not say otherwise.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it as it is loaded
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)  # no block has a mapping of its own, that goes as it is freed
        libc.mallopt(_TRIM_THRESHOLD, -1)  # nor does the heap's end go
