"""``lm-eval-steplm``: lm-evaluation-harness's own command line, with this project's models among its own."""

from __future__ import annotations

import importlib
import sys

from lm_runtime.commands.messages import how_to_add, one_line
from lm_runtime.files import UnusableFileError


def main() -> None:
    """Register the model and hand over to lm-eval; what it cannot use ends it in one line."""
    try:
        importlib.import_module("lm_runtime.lm_eval")
        command_line = importlib.import_module("lm_eval.__main__")
    except ModuleNotFoundError as error:
        sys.exit(
            f"lm-eval-steplm: {error.name} is not installed; install the eval extra: {how_to_add('eval')}"
        )
    try:
        command_line.cli_evaluate()
    except (UnusableFileError, ValueError) as error:
        sys.exit(f"lm-eval-steplm: {one_line(str(error))}")
