"""``python -m lm_runtime generate ...``: a package's commands, also where their scripts are not found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, ModuleType

from lm_runtime import start


def run(module: ModuleType) -> None:
    """Run one of the commands that begin in ``module``, by the name in the call: ``lm-NAME`` without ``lm-``.

    The name may be left out where there is one command alone.
    """
    commands: dict[str, Callable[[], None]] = {
        name.removeprefix("lm_").replace("_", "-"): function
        for name, function in vars(module).items()
        if isinstance(function, FunctionType) and function.__module__ == module.__name__
    }
    called = sys.argv[1] if len(sys.argv) > 1 else ""
    if called in commands:
        del sys.argv[1]
    elif len(commands) == 1:
        called = next(iter(commands))
    else:
        package = module.__name__.partition(".")[0]
        usage = f"usage: python -m {package} NAME ..., NAME one of {', '.join(commands)}"
        if called in ("--help", "-h"):
            print(usage)
            sys.exit(0)
        print(f"{package}: {usage}", file=sys.stderr)
        sys.exit(2)
    commands[called]()


if __name__ == "__main__":
    run(start)
