"""What a network's run would take, measured on a few of its steps."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lm_runtime.commands import file_size
from lm_trainer.networks.base import negative_log_likelihood
from lm_trainer.training.memory import peak_memory

if TYPE_CHECKING:
    from lm_trainer.training.loop import Trainer

_WARM_UP_STEPS = 2
_STEPS = 3
_SECONDS = 2.0
_VALID_TOKENS = 1024


def forecast(trainer: Trainer, setup_seconds: float) -> dict[str, str]:
    """As :meth:`lm_trainer.families.ModelTrainer.forecast`."""
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
    memory = torch.cuda.max_memory_reserved(device) if on_gpu else peak_memory()
    return {
        "parameters": f"{trainer.model.parameter_count():,}",
        "tokens an epoch": f"{trainer.windows * trainer.tokens_per_step:,}",
        "steps": f"{trainer.total_steps:,}",
        **({"peak memory": f"about {file_size(memory)}{' of the GPU' if on_gpu else ''}"} if memory else {}),
        "tokens a second": f"about {trainer.tokens_per_step / step_seconds:,.0f}",
        "time": f"about {timedelta(seconds=round(seconds))}",
    }


def _step(trainer: Trainer) -> None:
    """One step, from the next window or the first; on every device it is done when this returns."""
    trainer.progress.window %= trainer.windows
    trainer.step()
    _ = next(trainer.model.parameters()).flatten()[0].item()
