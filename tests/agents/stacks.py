"""Stacks of networks for tests of the native kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import stacked
from o2o_smooth.agents.networks import MLP
from o2o_smooth.kernels.cpu import unavailable

needs_kernels = pytest.mark.skipif(unavailable() is not None, reason=f"no native kernels here: {unavailable()}")


@contextmanager
def plain() -> Iterator[None]:
    """Leave the kernels out."""
    before = stacked._ready
    stacked._ready = False
    try:
        yield
    finally:
        stacked._ready = before


def stack(members: int, copies: int, layer_norm: bool, hidden: tuple[int, ...], out: int) -> MLP:
    net = MLP(members, copies, 23, hidden, out, layer_norm=layer_norm)
    for m in range(members):
        net.initialise(m, torch.Generator().manual_seed(m))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in (*net.gains, *net.shifts):
            p.add_(torch.empty_like(p).uniform_(-0.5, 0.5, generator=generator))
    return net


class _Rounded(torch.autograd.Function):
    """A product of matrices that are rounded to bfloat16, and so are the products of its gradient."""

    @staticmethod
    def forward(ctx: Any, *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(*matrices)
        x, w = (m.bfloat16().to(m) for m in matrices)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w, d = (m.bfloat16().to(m) for m in (*ctx.saved_tensors, grads[0]))
        return d @ w.mT, x.mT @ d


def rounded_stack(net: MLP, x: Tensor) -> Tensor:
    function: Any = _Rounded
    y, last = x.unsqueeze(1), len(net.weights) - 1
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        y = (function.apply(y.expand(-1, net.copies, -1, -1), w) if i < last else y @ w) + b
        if i < last:
            if net.layer_norm:
                y = torch.nn.functional.layer_norm(y, y.shape[-1:]) * net.gains[i] + net.shifts[i]
            y = y.relu()
    return y
