"""Where the commands of the trainer begin, as :mod:`lm_runtime.start` has it for those of the runtime."""

from __future__ import annotations

import lm_runtime.start  # noqa: F401


def train() -> None:
    """Run ``lm-train``."""
    from lm_trainer.command import main

    main()


def compare() -> None:
    """Run ``lm-compare``."""
    from lm_trainer.commands.compare import main

    main()


def reach() -> None:
    """Run ``lm-reach``."""
    from lm_trainer.commands.reach import main

    main()
