"""How this process's threads wait for one another. Knows nothing of torch.

torch's threads spin while they wait for one another, at each of the hundreds of operations in a step: where
another program has a core, they take the time in which the one that they wait for could run.
"""

from __future__ import annotations

import os

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""The variables by which users of OpenMP say it themselves."""


def wait_passively() -> None:
    """Let threads that wait sleep, unless the environment says how they wait. Call it before torch is loaded.

    The order and the results of all sums stay the same, to the bit.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
