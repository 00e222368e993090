"""The optimizer and its schedule, as a recipe names them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

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


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], config: TrainingConfig) -> None:
    """Give ``optimizer``, which ``config`` made, the state that its ``state_dict`` was.

    Its hyperparameters stay those of ``config``.

    Raises:
        ValueError, KeyError, TypeError: the state is another optimizer's, or another network's.
    """
    own, states = optimizer.state_dict(), saved["state"]
    probe = nn.Parameter(torch.zeros(2))
    probe.grad = torch.zeros(2)
    like = make_optimizer([probe], config)
    like.step()
    expected = {
        name: value.shape == probe.shape for name, value in like.state[probe].items() if value is not None
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in states.items():
        found = {name: value for name, value in state.items() if value is not None}
        if found.keys() != expected.keys():
            raise ValueError(f"the optimizer's state has {', '.join(found) or 'nothing'}")
        for name, value in found.items():
            if value.shape != (parameters[number].shape if expected[name] else ()):
                raise ValueError(f"the optimizer's {name} of weight {number} is {list(value.shape)}")
    if states and len(states) != len(parameters):
        raise ValueError(f"the optimizer's state is of {len(states)} weights, not {len(parameters)}")
    optimizer.load_state_dict({"state": states, "param_groups": own["param_groups"]})


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
