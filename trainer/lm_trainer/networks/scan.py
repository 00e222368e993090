"""Recurrent layers over a window of steps, forward and backward, for training on the CPU.

torch's own modules add to the hidden weights' gradient at every step, and the LSTM converts the weights at
every step of the backward pass. Here each layer's input products are one matrix product, its weights'
gradient another, and a step is one small product and the cell's arithmetic. Products are in the type of the
given weight, bfloat16 in mixed precision; the state, which is summed over time, keeps its own type.

The formulas are those of torch.nn.LSTM, GRU and RNN, in the order of torch's gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scan_layer(
    layer: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], w_hidden: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run ``layer`` over x ``(time, batch, input)`` from its state's tensors ``(1, batch, hidden)``.

    Products are in autocast's type where autocast is on, else in that of the weights.

    Args:
        layer: torch's layer.
        x: the input.
        state: the state before the first step.
        w_hidden: its weights from the hidden state to itself, ``(gates * hidden, hidden)``, in place of its
            own.

    Returns:
        y ``(time, batch, hidden)`` in the products' type, and the state after the last step in its own.
    """
    w_input, b_input, b_hidden = (
        layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "bias_ih", "bias_hh")
    )
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else w_hidden.dtype
    begin = [tensor[0] for tensor in state]
    if layer.mode == "GRU":
        gates = F.linear(x.to(dtype), w_input.to(dtype), b_input.to(dtype))
        y, *end = _SCANS[layer.mode](gates, w_hidden, b_hidden, *begin)
    else:
        gates = F.linear(x.to(dtype), w_input.to(dtype), (b_input + b_hidden).to(dtype))
        y, *end = _SCANS[layer.mode](gates, w_hidden, *begin)
    return y, tuple(tensor[None] for tensor in end)


class _LstmScan(torch.autograd.Function):
    """gates ``(time, batch, 4 hidden)``: the input's part of them; w ``(4 hidden, hidden)``."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        time, batch, width = gates.shape
        hidden = width // 4
        product = w.to(gates.dtype).t()
        hs = gates.new_empty(time + 1, batch, hidden)
        cs = c.new_empty(time + 1, batch, hidden)
        tanh_cs = c.new_empty(time, batch, hidden)
        values = c.new_empty(time, batch, width)  # of the gates
        hs[0], cs[0] = h, c
        for step in range(time):
            value = values[step]
            torch.add(gates[step], hs[step] @ product, out=value)
            i, f, g, o = value.chunk(4, dim=1)
            value[:, : 2 * hidden].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, cs[step], out=cs[step + 1]).addcmul_(i, g)
            torch.tanh(cs[step + 1], out=tanh_cs[step])
            hs[step + 1] = o * tanh_cs[step]
        ctx.save_for_backward(product, hs, cs, tanh_cs, values)
        ctx.type = w.dtype
        return hs[1:], hs[-1].to(c.dtype, copy=True), cs[-1].clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor, ...]:
        product, hs, cs, tanh_cs, values = ctx.saved_tensors
        time, batch, width = values.shape
        i, f, g, o = values.view(time, batch, 4, width // 4).unbind(2)
        # The factors of dc and dh are known for all steps, and are computed at once: a small operation takes
        # most of its time to begin.
        dc_dh = (1 - tanh_cs * tanh_cs).mul_(o)
        factors = torch.empty_like(values).view(time, batch, 4, width // 4)
        di, df, dg, do = factors.unbind(2)
        torch.mul(g, i, out=di).mul_(1 - i)
        torch.mul(cs[:-1], f, out=df).mul_(1 - f)
        torch.mul(g, g, out=dg).neg_().add_(1).mul_(i)
        torch.mul(tanh_cs, o, out=do).mul_(1 - o)
        dgates = hs.new_empty(time, batch, width)
        dhs, dc = dy.to(cs.dtype, copy=True), dc.clone()
        for step in range(time - 1, -1, -1):
            dh = dhs[step].add_(dh)
            dc.addcmul_(dh, dc_dh[step])
            factors[step, :, :3].mul_(dc[:, None])
            do[step].mul_(dh)
            dgates[step] = factors[step].view(batch, width)
            dc.mul_(f[step])
            dh = torch.mm(dgates[step], product.t())
        return dgates, _weight_gradient(dgates, hs, ctx.type), dh.to(cs.dtype), dc


class _GruScan(torch.autograd.Function):
    """gates ``(time, batch, 3 hidden)``: the input's part; w ``(3 hidden, hidden)`` and b the hidden one."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        time, batch, width = gates.shape
        hidden = width // 3
        product = w.to(gates.dtype).t()
        read = gates.new_empty(time + 1, batch, hidden)  # h, in the products' type
        hs = h.new_empty(time + 1, batch, hidden)
        candidates = h.new_empty(time, batch, hidden)  # the hidden part of n
        values = h.new_empty(time, batch, width)
        read[0], hs[0] = h, h
        for step in range(time):
            ours = torch.add(b, read[step] @ product)
            value = values[step]
            r, z, n = value.chunk(3, dim=1)
            torch.add(gates[step, :, : 2 * hidden], ours[:, : 2 * hidden], out=value[:, : 2 * hidden])
            value[:, : 2 * hidden].sigmoid_()
            candidates[step] = ours[:, 2 * hidden :]
            torch.mul(r, candidates[step], out=n).add_(gates[step, :, 2 * hidden :]).tanh_()
            torch.lerp(n, hs[step], z, out=hs[step + 1])
            read[step + 1] = hs[step + 1]
        ctx.save_for_backward(w, read, hs, candidates, values)
        return read[1:], hs[-1].clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor, ...]:
        w, read, hs, candidates, values = ctx.saved_tensors
        time, batch, width = values.shape
        hidden = width // 3
        product = w.to(read.dtype)
        dgates = read.new_empty(time, batch, width)
        dours = read.new_empty(time, batch, width)
        dvalue = values.new_empty(batch, 3, hidden)
        dr, dz, dn = dvalue.unbind(1)
        for step in range(time - 1, -1, -1):
            r, z, n = values[step].chunk(3, dim=1)
            dh = dh + dy[step]
            torch.mul(dh, 1 - z, out=dn).mul_(1 - n * n)
            torch.mul(dh, hs[step] - n, out=dz).mul_(z).mul_(1 - z)
            torch.mul(dn, candidates[step], out=dr).mul_(r).mul_(1 - r)
            dgates[step] = dvalue.view(batch, width)
            dn.mul_(r)
            dours[step] = dvalue.view(batch, width)
            dh = dh * z + dours[step] @ product
        return dgates, _weight_gradient(dours, read, w.dtype), dours.sum((0, 1), dtype=w.dtype), dh


class _RnnScan(torch.autograd.Function):
    """gates ``(time, batch, hidden)``: the input's part of the sum; w ``(hidden, hidden)``."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        product = w.to(gates.dtype).t()
        hs = gates.new_empty(gates.shape[0] + 1, *gates.shape[1:])
        hs[0] = h
        for step in range(gates.shape[0]):
            hs[step + 1] = torch.add(gates[step].to(h.dtype), hs[step] @ product).tanh_()
        ctx.save_for_backward(w, hs)
        return hs[1:], hs[-1].to(h.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor, ...]:
        w, hs = ctx.saved_tensors
        product = w.to(hs.dtype)
        dgates = torch.empty_like(hs[1:])
        for step in range(dy.shape[0] - 1, -1, -1):
            h = hs[step + 1].to(dh.dtype)
            dgates[step] = (dh + dy[step]) * (1 - h * h)
            dh = (dgates[step] @ product).to(dh.dtype)
        return dgates, _weight_gradient(dgates, hs, w.dtype), dh


def _weight_gradient(dgates: Tensor, hs: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over time and batch of ``dgates`` times what each step read: ``(gates, hidden)``."""
    return (dgates.flatten(0, 1).t() @ hs[:-1].flatten(0, 1)).to(dtype)


_SCANS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "LSTM": _LstmScan.apply,
    "GRU": _GruScan.apply,
    "RNN_TANH": _RnnScan.apply,
}
"""By torch's name of the layer's mode."""
