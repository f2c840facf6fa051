"""Stacked perceptrons with bfloat16 matrix products: torch multiplies, the kernels (half.c) do what lies between.

Parameters stay float32 and are rounded for each pass; so are the gradients' sums, moments and everything in the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from o2o_smooth.kernels.cpu import library

Parts = Sequence[Sequence[Tensor]]  # weights, biases, gains and shifts of the layers, (M, E, ...) each


class Saved(NamedTuple):
    """What a backward pass needs: (groups, B, ...) in bfloat16, groups = M x copies in use."""

    inputs: list[Tensor]  # of each layer
    weights: list[Tensor]  # of each hidden layer, rounded
    norms: list[Tensor]  # with LayerNorm: normalised rows
    rstd: list[Tensor]  # with LayerNorm: 1 / deviation, float32
    copies: int


def forward(x: Tensor, parts: Parts, copies: int) -> tuple[Tensor, Saved]:
    """(M, B, in) -> (M, copies, B, out), all float32, and what `backward` needs."""
    lib = library()
    weights, biases, gains, shifts = parts
    members, rows = x.shape[:2]
    stored = weights[0].shape[1]
    groups = members * copies
    h = x.to(torch.bfloat16)
    if copies > 1:
        h = h.unsqueeze(1).expand(-1, copies, -1, -1).reshape(groups, rows, -1)
    saved = Saved([h], [], [], [], copies)
    last = len(weights) - 1
    for i in range(last):
        w, b = _used(weights[i], copies).to(torch.bfloat16), _used(biases[i], copies)
        z = torch.bmm(h, w)
        width = z.shape[2]
        if gains:
            gain, shift = _used(gains[i], copies), _used(shifts[i], copies)
            norm, rstd = torch.empty_like(z), z.new_empty((groups, rows), dtype=torch.float32)
            lib.o2o_half_norm_relu(
                z.data_ptr(),
                b.data_ptr(),
                gain.data_ptr(),
                shift.data_ptr(),
                norm.data_ptr(),
                rstd.data_ptr(),
                groups,
                rows,
                width,
            )
            saved.norms.append(norm)
            saved.rstd.append(rstd)
        else:
            lib.o2o_half_bias_relu(z.data_ptr(), b.data_ptr(), groups, rows, width)
        saved.weights.append(w)
        saved.inputs.append(z)
        h = z
    w, b = weights[last], biases[last]
    out = torch.empty((members, copies, rows, w.shape[-1]), dtype=torch.float32)
    sizes = (groups, copies, stored, rows, *w.shape[-2:])
    lib.o2o_half_last(h.data_ptr(), w.data_ptr(), b.data_ptr(), out.data_ptr(), *sizes)
    return out, saved


def backward(
    grad: Tensor, parts: Parts, saved: Saved, *, learns: bool, want_input: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Gradients of the parameters, in the order of `parts`, and of the input, (M, B, in); float32.

    Args:
        grad: Gradient of the output, (M, copies, B, out).
        parts: The parameters.
        saved: From the forward pass.
        learns: Whether the parameters' gradients are wanted; needs all copies.
        want_input: Whether the input's gradient is wanted.
    """
    lib = library()
    weights, _, gains, _ = parts
    copies, stored = saved.copies, weights[0].shape[1]
    groups, rows = saved.inputs[-1].shape[:2]
    last = len(weights) - 1
    made = [[torch.empty_like(p) for p in group] for group in parts] if learns else [[], [], [], []]
    grad, h, w = grad.contiguous(), saved.inputs[-1], weights[last]
    d = torch.empty_like(h)
    sizes = (groups, copies, stored, rows, *w.shape[-2:])
    lib.o2o_half_last_back(grad.data_ptr(), h.data_ptr(), w.data_ptr(), d.data_ptr(), *sizes)
    if learns:
        dw, db = made[0][last], made[1][last]
        lib.o2o_half_last_weights(
            grad.data_ptr(), h.data_ptr(), dw.data_ptr(), db.data_ptr(), groups, rows, *w.shape[-2:]
        )
    for i in range(last - 1, -1, -1):
        width = d.shape[2]
        if gains:
            lib.o2o_half_norm_back(
                d.data_ptr(),
                saved.norms[i].data_ptr(),
                saved.rstd[i].data_ptr(),
                gains[i].data_ptr(),
                made[2][i].data_ptr() if learns else None,
                made[3][i].data_ptr() if learns else None,
                groups,
                copies,
                stored,
                rows,
                width,
            )
        if learns:
            lib.o2o_half_column_sums(d.data_ptr(), made[1][i].data_ptr(), groups, rows, width)
            made[0][i].view(groups, -1, width).copy_(torch.bmm(saved.inputs[i].transpose(1, 2), d))
        if i > 0:
            d = torch.bmm(d, saved.weights[i].transpose(1, 2))
            lib.o2o_half_relu_back(d.data_ptr(), saved.inputs[i].data_ptr(), d.numel())
    dx = None
    if want_input:
        each = torch.bmm(d, saved.weights[0].transpose(1, 2)).float().view(-1, copies, rows, weights[0].shape[2])
        dx = each.squeeze(1) if copies == 1 else each.sum(1)
    return [g for group in made for g in group], dx


def _used(parameter: Tensor, copies: int) -> Tensor:
    """The first copies of a parameter (M, E, ...), as (groups, ...), contiguous."""
    return parameter[:, :copies].flatten(0, 1).contiguous()
