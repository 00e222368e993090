"""The training loss: output layer, softmax and cross entropy as one, which keeps one tensor of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of ``-log softmax(x weight' + bias)[target]``, in nats, a scalar of float32.

    What is kept for the way back is the softmax, which becomes the logits' gradient in its place. Products
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
    with torch.autocast(kind, enabled=False):  # which would choose other types on the way here than back
        return _apply(x, weight, bias, target)


_ROWS = 32_768
"""Of the weights' gradient: so many tokens' are made at a time, and converted."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        logits = F.linear(x, weight, bias.to(x.dtype))
        softmax = torch.softmax(logits, dim=1)
        # By the largest probability, which cannot be rounded to 0 as that of the target can.
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
        scale = dloss / x.shape[0]  # on the small factors: the large one is not read again for it
        dx = ((dlogits @ weight) * scale).to(x.dtype)
        x = x * scale.to(x.dtype)
        dweight = torch.empty_like(weight, dtype=ctx.types)
        for rows, part in zip(torch.split(dweight, _ROWS), torch.split(dlogits, _ROWS, dim=1), strict=True):
            rows.copy_(part.t() @ x)
        return dx, dweight, dlogits.sum(0).to(ctx.types) * scale, None


_apply: Callable[..., Tensor] = _LinearCrossEntropy.apply
