"""The soft maximum of critics over actions tried in each state, which CQL's penalty pushes down.

Passing all tried actions through the critics at once leaves activations of tens of megabytes a critic for the way
back. The native kernel goes through a few states at a time, forward and backward, and leaves gradients of the
parameters' size: one a critic, or one a share of the states where there are more threads than critics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from o2o_smooth.agents.native_heads import native
from o2o_smooth.agents.stacked import apart, bound_net
from o2o_smooth.kernels.cpu import MAX_LAYERS, Gradients, Tried

if TYPE_CHECKING:
    from o2o_smooth.agents.networks import MLP


def soft_maximum(
    critic: MLP, obs: Tensor, action: Tensor, log_density: Tensor, bound: Tensor | None = None, bounded: int = 0
) -> Tensor:
    """Mean over states of log sum_j exp(Q(s, a_j) - log mu_j), of every critic, with the gradient of the parameters.

    Args:
        critic: (M, B, O + A) -> (M, E, B, 1).
        obs: (M, B, O).
        action: Tried in each state, (M, J, B, A).
        log_density: log mu_j, of the actions under what they were drawn from, (M, J, B); finite.
        bound: (M, B); from the `bounded`-th action on, values below it count as it (Cal-QL).
        bounded: See `bound`.

    Returns:
        (M, E).
    """
    if _native(critic, obs, action, log_density, bound, bounded):
        parameters = [critic.anchor()] if critic.depositing else [p for part in critic.parts for p in part]
        result: Tensor = _SoftMaximum.apply(critic, obs, action, log_density, bound, bounded, *parameters)  # type: ignore[no-untyped-call]
        return result
    q = values(critic, obs, action)
    if bound is not None:
        q = torch.cat([q[:, :, :bounded], torch.maximum(q[:, :, bounded:], bound[:, None, None])], 2)
    return torch.logsumexp(q - log_density[:, None], 2).mean(-1)


def values(critic: MLP, obs: Tensor, action: Tensor) -> Tensor:
    """Critics at several actions per state: (M, B, O), (M, J, B, A) -> (M, E, J, B)."""
    tried = action.shape[1]
    wide = obs.unsqueeze(1).expand(-1, tried, -1, -1).flatten(1, 2)  # (M, J B, O)
    q: Tensor = critic(torch.cat([wide, action.flatten(1, 2)], -1))
    return q.view(*q.shape[:2], tried, -1)


def _native(critic: MLP, obs: Tensor, action: Tensor, log_density: Tensor, bound: Tensor | None, bounded: int) -> bool:
    """Whether the kernel takes these; what does not fit is left to torch, which says so."""
    weights = critic.parts[0]
    given = [obs, action, log_density] if bound is None else [obs, action, log_density, bound]
    if not (native(weights[0], *given) and torch.is_grad_enabled()) or any(x.requires_grad for x in given):
        return False
    if not (2 <= len(weights) <= MAX_LAYERS and all(p.requires_grad for part in critic.parts for p in part)):
        return False
    if action.dim() != 4 or not 0 <= bounded <= action.shape[1]:
        return False
    members, tried, rows, dim = action.shape
    shapes = [(members, rows, weights[0].shape[-2] - dim), (members, tried, rows), (members, rows)]
    fit = all(x.shape == shape for x, shape in zip((obs, log_density, bound), shapes, strict=True) if x is not None)
    return fit and members == critic.members and weights[-1].shape[-1] == 1 and min(tried, rows, dim, obs.shape[2]) > 0


class _SoftMaximum(torch.autograd.Function):
    """Parameters, or what stands for them, come as arguments so that autograd knows them."""

    @staticmethod
    def forward(
        ctx: Any,
        critic: MLP,
        obs: Tensor,
        action: Tensor,
        log_density: Tensor,
        bound: Tensor | None,
        bounded: int,
        *parameters: Tensor,
    ) -> Tensor:
        tried = Tried(
            apart(obs),
            action.contiguous(),
            log_density.contiguous(),
            None if bound is None else bound.contiguous(),
            bounded,
            half=critic.precision == "bf16",
        )
        out, gradient, parts = bound_net(critic).soft_maximum(tried)
        ctx.critic, ctx.kept, ctx.given = critic, (gradient, parts), len(parameters)
        ctx.deposit = critic.deposit if critic.depositing else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        critic: MLP = ctx.critic
        gradient, parts = ctx.kept
        net, above, nothing = bound_net(critic), grads[0].contiguous(), (None,) * 6
        if ctx.deposit is not None:
            ctx.deposit.take(critic, lambda into, add: net.soft_maximum_back(gradient, parts, above, into, add=add))
            return *nothing, None
        made = Gradients(critic.parts)
        net.soft_maximum_back(gradient, parts, above, made)
        return *nothing, *made.tensors
