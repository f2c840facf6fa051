"""The diagonal of the Fisher information of stacked networks, exact for the rows it is given; for EWC.

    F_i = mean over rows of E_y [(d log p(y | row) / d theta_i)^2]

with y the network's own outcome: the Gaussian policy's action, or a unit Gaussian around a deterministic action, Q, V.
The expectation is taken in closed form, nothing is sampled.

Source: Kirkpatrick et al. 2017 (arXiv 1612.00796).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from o2o_smooth.agents.heads import gaussian
from o2o_smooth.agents.networks import MLP, Actor, Networks

FISHER_ROWS = 256  # at a time


def component_fisher(
    networks: Networks, components: Iterable[str], obs: Tensor, action: Tensor
) -> dict[str, list[Tensor]]:
    """Fisher information of the networks of components (`actor`, `critic`, `value`), in the order of their parameters.

    Args:
        networks: An agent's.
        components: Which of them.
        obs: Encoded, (M, B, O).
        action: In [-1, 1], (M, B, A).
    """
    found: dict[str, list[Tensor]] = {}
    for name in components:
        if name == "actor":
            found[name] = diagonal_fisher(networks.actor.net, obs, policy_scores(networks.actor))
        elif name == "critic":
            found[name] = diagonal_fisher(networks.critic, torch.cat([obs, action], -1), lambda out: out.movedim(-1, 0))
        elif networks.value is not None:
            found[name] = diagonal_fisher(networks.value, obs, lambda out: out.movedim(-1, 0))
    return found


def diagonal_fisher(mlp: MLP, x: Tensor, scores: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Sum over scores of the mean over rows of the squared gradient of every parameter.

    With scores whose squared gradients sum to the Fisher information of a row's output distribution, this is the
    diagonal of the Fisher information of the parameters, without sampling.

    Args:
        mlp: The networks, (M, E copies).
        x: Their input, (M, B, in).
        scores: Output (M, E, B, out) to scores (K, M, E, B).

    Returns:
        One tensor per parameter, in the order of `mlp.parameters()`.
    """
    sums: list[Tensor] = []
    for rows in torch.split(x, FISHER_ROWS, dim=1):
        found = _squared_gradients(mlp, rows, scores)
        sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
    return [total / x.shape[1] for total in sums]


def _squared_gradients(mlp: MLP, x: Tensor, scores: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The same, a sum over rows.

    A row's gradient of a weight is the product of the layer's input and the gradient of its output, so the sum of the
    squares is one matrix product of squares.
    """
    weights, biases, gains, shifts = ([p.detach() for p in part] for part in mlp.parts)
    inputs, outputs, normed, affine = [], [], [], []
    x = x.detach().unsqueeze(1).expand(-1, mlp.copies, -1, -1)
    last = len(weights) - 1
    with torch.enable_grad():
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            inputs.append(x)
            x = x @ weight + bias
            if i == 0:
                x.requires_grad_()
            outputs.append(x)
            if i < last:
                if mlp.layer_norm:
                    normed.append(F.layer_norm(x, x.shape[-1:]))
                    x = normed[-1] * gains[i] + shifts[i]
                    affine.append(x)
                x = F.relu(x)
        values = scores(x)
    points = [*outputs, *affine]
    squares = [torch.zeros_like(p) for part in (weights, biases, gains, shifts) for p in part]
    n = len(weights)
    for value in values:
        deltas = torch.autograd.grad(value.sum(), points, retain_graph=True)
        for i in range(n):
            square = deltas[i].square()
            squares[i] += inputs[i].detach().square().transpose(-1, -2) @ square
            squares[n + i] += square.sum(-2, keepdim=True)
        for i, own in enumerate(normed):
            delta = deltas[n + i]
            squares[2 * n + i] += (delta * own.detach()).square().sum(-2, keepdim=True)
            squares[2 * n + len(normed) + i] += delta.square().sum(-2, keepdim=True)
    return squares


def policy_scores(actor: Actor) -> Callable[[Tensor], Tensor]:
    """Scores of an actor's output: mean / std and sqrt(2) log std of each dimension, or the deterministic action.

    The Fisher information of a Gaussian is 1 / std^2 for its mean and 2 for log std; tanh leaves it as it is.
    """

    def scores(out: Tensor) -> Tensor:
        if not actor.stochastic:
            return torch.tanh(out).movedim(-1, 0)
        mean, log_std = gaussian(out)
        return torch.cat([mean / log_std.detach().exp(), math.sqrt(2.0) * log_std], -1).movedim(-1, 0)

    return scores
