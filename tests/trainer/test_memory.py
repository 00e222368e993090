"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource
import numpy as np
from lm_trainer.training.memory import keep_freed_memory
{call}
np.ones(5_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of no effect with other C libraries")
@pytest.mark.skipif(
    HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="every large array is in huge pages"
)
def test_a_large_array_in_place_of_a_freed_one_needs_no_new_pages() -> None:
    def faults(call: str) -> int:
        result = subprocess.run(
            [sys.executable, "-c", FAULTS.format(call=call)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"},
        )
        return int(result.stdout)

    pages = 5 * 40_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert faults("") > pages // 2
    assert faults("keep_freed_memory()") < pages // 100
