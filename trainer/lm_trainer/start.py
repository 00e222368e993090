"""Where lm-train begins, as :mod:`lm_runtime.start` has it for the commands of the runtime."""

from __future__ import annotations

import lm_runtime.start  # noqa: F401


def train() -> None:
    """Run ``lm-train``."""
    from lm_trainer.command import main

    main()
