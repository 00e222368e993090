"""The training loss: output layer, softmax and cross entropy as one, which keeps one tensor of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of ``-log softmax(x weight' + bias)[target]``, in nats, a scalar of float32.

    The softmax is kept for the backward pass, where it becomes the logits' gradient in its place. Products
    are in autocast's type where autocast is on, else in that of x.

    Args:
        x: the last hidden layer ``(tokens, hidden)``.
        weight: of the output layer ``(vocab, hidden)``.
        bias: of the output layer ``(vocab,)``.
        target: ids, int64, ``(tokens,)``.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):  # which would choose different types forward and backward
        return _apply(x, weight, bias, target)


_ROWS = 32_768
"""Rows of the weights' gradient that are computed and converted at a time."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        logits = F.linear(x, weight, bias.to(x.dtype))
        softmax = torch.softmax(logits, dim=1)
        # From the largest probability, which is not rounded to 0 as the target's may be.
        normalizer = logits.amax(1).float() - softmax.amax(1).float().log()
        place = torch.arange(len(x), device=x.device), target
        loss = (normalizer - logits[place].float()).mean()
        softmax[place] -= 1
        ctx.save_for_backward(x, weight, softmax)
        ctx.types = bias.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, dlogits = ctx.saved_tensors
        scale = dloss / x.shape[0]  # of the small factors, so that the large one is not read again
        dx = ((dlogits @ weight) * scale).to(x.dtype)
        x = x * scale.to(x.dtype)
        dweight = torch.empty_like(weight, dtype=ctx.types)
        for rows, part in zip(torch.split(dweight, _ROWS), torch.split(dlogits, _ROWS, dim=1), strict=True):
            rows.copy_(part.t() @ x)
        return dx, dweight, dlogits.sum(0).to(ctx.types) * scale, None


_apply: Callable[..., Tensor] = _LinearCrossEntropy.apply
