"""``python -m lm_export ...``: as :mod:`lm_runtime.__main__` has it."""

from __future__ import annotations

from lm_export import start
from lm_runtime.__main__ import run

if __name__ == "__main__":
    run(start)
