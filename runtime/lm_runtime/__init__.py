"""Run an exported recurrent language model with onnxruntime alone.

>>> import lm_runtime
>>> model = lm_runtime.load("artifacts/bundle")
>>> for piece in lm_runtime.generate(model, "The", lm_runtime.SamplingParams(max_tokens=50), seed=1):
...     print(piece, end="")
"""

from __future__ import annotations

import importlib
import os

# onnxruntime reads it as it is imported, which nothing here does before this line.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False  # the import of typing takes longer than all else before Ctrl-C is handled
if TYPE_CHECKING:
    from typing import Any

    from lm_runtime.files import UnusableFileError
    from lm_runtime.generation.beam import BeamHypothesis, beam_search
    from lm_runtime.generation.complete import Completion, Request, complete
    from lm_runtime.generation.engine import Engine
    from lm_runtime.generation.generate import generate, generate_batch, generate_samples, suggest
    from lm_runtime.generation.rows import Piece
    from lm_runtime.generation.session import Session
    from lm_runtime.generation.words import complete_word
    from lm_runtime.models.adaptation import Adaptation
    from lm_runtime.models.adaptive import AdaptiveModel
    from lm_runtime.models.interpolation import InterpolatedModel, fit_weight
    from lm_runtime.models.load import load
    from lm_runtime.models.protocol import State
    from lm_runtime.models.state import initial_state
    from lm_runtime.sampling.params import SamplingParams
    from lm_runtime.sampling.sampler import NotFiniteError
    from lm_runtime.scoring.adaptation import fit_adaptation
    from lm_runtime.scoring.rescoring import Hypothesis, Rescored, read_hypotheses, rescore
    from lm_runtime.scoring.score import Score, score_file
    from lm_runtime.scoring.texts import score_texts
    from lm_runtime.scoring.tokens import TokenScore, score_tokens
    from lm_runtime.scoring.weights import Weights

__all__ = [
    "Adaptation",
    "AdaptiveModel",
    "BeamHypothesis",
    "Completion",
    "Engine",
    "Hypothesis",
    "InterpolatedModel",
    "NotFiniteError",
    "Piece",
    "Request",
    "Rescored",
    "SamplingParams",
    "Score",
    "Session",
    "State",
    "TokenScore",
    "UnusableFileError",
    "Weights",
    "beam_search",
    "complete",
    "complete_word",
    "fit_adaptation",
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
    "score_tokens",
    "suggest",
]

_HOME = {
    "Adaptation": "models.adaptation",
    "AdaptiveModel": "models.adaptive",
    "fit_adaptation": "scoring.adaptation",
    "InterpolatedModel": "models.interpolation",
    "fit_weight": "models.interpolation",
    "BeamHypothesis": "generation.beam",
    "Completion": "generation.complete",
    "Engine": "generation.engine",
    "Hypothesis": "scoring.rescoring",
    "NotFiniteError": "sampling.sampler",
    "Piece": "generation.rows",
    "Request": "generation.complete",
    "Rescored": "scoring.rescoring",
    "SamplingParams": "sampling.params",
    "Score": "scoring.score",
    "Session": "generation.session",
    "State": "models.protocol",
    "TokenScore": "scoring.tokens",
    "UnusableFileError": "files",
    "Weights": "scoring.weights",
    "beam_search": "generation.beam",
    "complete": "generation.complete",
    "complete_word": "generation.words",
    "generate": "generation.generate",
    "generate_batch": "generation.generate",
    "generate_samples": "generation.generate",
    "initial_state": "models.state",
    "load": "models.load",
    "read_hypotheses": "scoring.rescoring",
    "rescore": "scoring.rescoring",
    "score_file": "scoring.score",
    "score_texts": "scoring.texts",
    "score_tokens": "scoring.tokens",
    "suggest": "generation.generate",
}


def __getattr__(name: str) -> Any:
    # The trainer and --help take parts of this package and should not wait for onnxruntime.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"lm_runtime.{_HOME[name]}")
    return getattr(module, name)
