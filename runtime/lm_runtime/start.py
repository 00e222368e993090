"""Where the commands begin. Ctrl-C ends the process at once from here on, until a command handles it itself.

Only their scripts import this: the first tenth of a second goes into imports, where an interruption would
come out as a traceback, and a program that uses the library keeps its own handler.
"""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as by nohup
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def generate() -> None:
    """Run ``lm-generate``."""
    from lm_runtime.commands.generate import main

    main()


def score() -> None:
    """Run ``lm-score``."""
    from lm_runtime.commands.score import main

    main()


def bench() -> None:
    """Run ``lm-bench``."""
    from lm_runtime.commands.bench import main

    main()


def lm_eval() -> None:
    """Run ``lm-eval-steplm``."""
    from lm_runtime.commands.lm_eval import main

    main()


def serve() -> None:
    """Run ``lm-serve``."""
    from lm_runtime.commands.serve import main

    main()
