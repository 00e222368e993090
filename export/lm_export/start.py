"""Where lm-export begins, as :mod:`lm_runtime.start` has it for the commands of the runtime."""

from __future__ import annotations

import lm_runtime.start  # noqa: F401


def export() -> None:
    """Run ``lm-export``."""
    from lm_export.command import main

    main()
