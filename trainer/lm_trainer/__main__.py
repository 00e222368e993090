"""``python -m lm_trainer train ...``: as :mod:`lm_runtime.__main__` has it."""

from __future__ import annotations

from lm_runtime.__main__ import run
from lm_trainer import start

if __name__ == "__main__":
    run(start)
