"""The optimizer and its schedule, as a recipe names them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from lm_trainer.config import TrainingConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names, for ``parameters``.

    Raises:
        ValueError: there is none of this name.
    """
    found = list(parameters)
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(found, config.lr, weight_decay=config.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(found, config.lr, weight_decay=config.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(found, config.lr, weight_decay=config.weight_decay, fused=True)
    raise ValueError(f"optimizer must be adam, adamw or sgd, got {config.optimizer}")


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """The learning rate of step ``step`` (from 0) of ``total``.

    Raises:
        ValueError: there is no schedule of this name.
    """
    warmup = min(config.warmup_steps, total // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"schedule must be constant, cosine or linear, got {config.schedule}")
