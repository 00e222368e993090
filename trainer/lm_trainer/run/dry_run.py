"""What a run would take, from a few of its steps."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch

from lm_runtime.commands import file_size
from lm_trainer.networks.base import negative_log_likelihood
from lm_trainer.networks.registry import parameter_count
from lm_trainer.ngram.training import NgramTrainer
from lm_trainer.training.loop import Trainer

_WARM_UP_STEPS = 2
_STEPS = 3
_SECONDS = 2.0
_VALID_TOKENS = 1024
_NGRAM_BYTES = 14
_TOKEN_BYTES = 70


def estimate(trainer: Trainer | NgramTrainer, setup_seconds: float) -> dict[str, str]:
    """What a run that was set up in ``setup_seconds`` would take: figures by their names, for people.

    A network's are measured; ``trainer`` is of no further use. The memory of counting n-grams is the bound
    of :func:`lm_trainer.ngram.estimation.estimate`.
    """
    if isinstance(trainer, NgramTrainer):
        return _counting(trainer)
    for _ in range(_WARM_UP_STEPS):
        _step(trainer)
    steps, begun = 0, time.perf_counter()
    while steps < _STEPS or time.perf_counter() - begun < _SECONDS:
        _step(trainer)
        steps += 1
    step_seconds = (time.perf_counter() - begun) / steps
    valid = trainer.valid[:_VALID_TOKENS]
    begun = time.perf_counter()
    negative_log_likelihood(trainer.model, valid, 0)
    valid_seconds = (time.perf_counter() - begun) / valid.size * trainer.valid.size
    seconds = setup_seconds + trainer.total_steps * step_seconds + trainer.epochs * valid_seconds
    device = trainer.model.device
    on_gpu = device.type == "cuda"
    memory = torch.cuda.max_memory_reserved(device) if on_gpu else _peak_memory()
    return {
        "parameters": f"{parameter_count(trainer.model):,}",
        "tokens an epoch": f"{trainer.windows * trainer.tokens_per_step:,}",
        "steps": f"{trainer.total_steps:,}",
        **({"peak memory": f"about {file_size(memory)}{' of the GPU' if on_gpu else ''}"} if memory else {}),
        "tokens a second": f"about {trainer.tokens_per_step / step_seconds:,.0f}",
        "time": f"about {timedelta(seconds=round(seconds))}",
    }


def _step(trainer: Trainer) -> None:
    """One step, wherever the epoch ends; it is over when this returns, on every device."""
    trainer.progress.window %= trainer.windows
    trainer.step()
    _ = next(trainer.model.parameters()).flatten()[0].item()


def _counting(trainer: NgramTrainer) -> dict[str, str]:
    tokens, order, vocab_size = trainer.tokens_per_step, trainer.config.order, trainer.config.vocab_size
    ngrams = sum(min(vocab_size**length, tokens) for length in range(1, order + 1))
    memory = _peak_memory() + _NGRAM_BYTES * ngrams + _TOKEN_BYTES * tokens
    return {"tokens": f"{tokens:,}", "order": f"{order}", "peak memory": f"at most about {file_size(memory)}"}


def _peak_memory() -> int:
    """Of this process so far, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource  # which only Unix has

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
