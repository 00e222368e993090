"""Run an exported recurrent language model with onnxruntime alone.

>>> import lm_runtime
>>> model = lm_runtime.load("artifacts/bundle")
>>> for piece in lm_runtime.generate(model, "The", lm_runtime.SamplingParams(max_tokens=50), seed=1):
...     print(piece, end="")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_runtime.engine import Engine, Piece
    from lm_runtime.files import UnusableFileError
    from lm_runtime.generation import generate, generate_batch, generate_samples, suggest
    from lm_runtime.model import initial_state, load
    from lm_runtime.sampling import SamplingParams
    from lm_runtime.scoring import Score, score_file
    from lm_runtime.session import Session
    from lm_runtime.stepper import State

__all__ = [
    "Engine",
    "Piece",
    "SamplingParams",
    "Score",
    "Session",
    "State",
    "UnusableFileError",
    "generate",
    "generate_batch",
    "generate_samples",
    "initial_state",
    "load",
    "score_file",
    "suggest",
]

_HOME = {
    "Engine": "engine",
    "Piece": "engine",
    "SamplingParams": "sampling",
    "Score": "scoring",
    "Session": "session",
    "State": "stepper",
    "UnusableFileError": "files",
    "generate": "generation",
    "generate_batch": "generation",
    "generate_samples": "generation",
    "initial_state": "model",
    "load": "model",
    "score_file": "scoring",
    "suggest": "generation",
}


def __getattr__(name: str) -> Any:
    # The trainer and --help take parts of this package and should not wait for onnxruntime.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"lm_runtime.{_HOME[name]}")
    return getattr(module, name)
