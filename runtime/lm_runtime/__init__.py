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
    from lm_runtime.beam import BeamHypothesis, beam_search
    from lm_runtime.completion import Completion, Request, complete
    from lm_runtime.engine import Engine, Piece
    from lm_runtime.files import UnusableFileError
    from lm_runtime.generation import generate, generate_batch, generate_samples, suggest
    from lm_runtime.interpolation import InterpolatedModel, fit_weight
    from lm_runtime.model import initial_state, load
    from lm_runtime.params import SamplingParams
    from lm_runtime.rescoring import Hypothesis, Rescored, read_hypotheses, rescore, score_texts
    from lm_runtime.scoring import Score, score_file
    from lm_runtime.session import Session
    from lm_runtime.stepper import State

__all__ = [
    "BeamHypothesis",
    "Completion",
    "Engine",
    "Hypothesis",
    "InterpolatedModel",
    "Piece",
    "Request",
    "Rescored",
    "SamplingParams",
    "Score",
    "Session",
    "State",
    "UnusableFileError",
    "beam_search",
    "complete",
    "fit_weight",
    "generate",
    "generate_batch",
    "generate_samples",
    "initial_state",
    "load",
    "read_hypotheses",
    "rescore",
    "score_file",
    "score_texts",
    "suggest",
]

_HOME = {
    "InterpolatedModel": "interpolation",
    "fit_weight": "interpolation",
    "BeamHypothesis": "beam",
    "Completion": "completion",
    "Engine": "engine",
    "Hypothesis": "rescoring",
    "Piece": "engine",
    "Request": "completion",
    "Rescored": "rescoring",
    "SamplingParams": "params",
    "Score": "scoring",
    "Session": "session",
    "State": "stepper",
    "UnusableFileError": "files",
    "beam_search": "beam",
    "complete": "completion",
    "generate": "generation",
    "generate_batch": "generation",
    "generate_samples": "generation",
    "initial_state": "model",
    "load": "model",
    "read_hypotheses": "rescoring",
    "rescore": "rescoring",
    "score_file": "scoring",
    "score_texts": "rescoring",
    "suggest": "generation",
}


def __getattr__(name: str) -> Any:
    # The trainer and --help take parts of this package and should not wait for onnxruntime.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"lm_runtime.{_HOME[name]}")
    return getattr(module, name)
