"""The losses and densities that agents share, on the outputs of their networks.

Each is written out in plain torch, which is what compiled graphs, other devices and float64 use; for float32 on the CPU
the native kernels give value and gradient in one call, since there a call costs more than the arithmetic.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from o2o_smooth.agents.stacked import kernels_take
from o2o_smooth.kernels.cpu import library, threads

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
MAX_ADVANTAGE_WEIGHT = 100.0
_LOG_2 = math.log(2.0)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
PerMember = float | Tensor  # one for all, or a tensor that broadcasts from the members' axis


def encode_batch(
    obs: Tensor, next_obs: Tensor, action: Tensor, scales: tuple[Tensor, Tensor, Tensor, Tensor], limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw rows as the losses see them: observations normalised, actions brought to [-limit, limit].

    Args:
        obs: (M, B, O).
        next_obs: (M, B, O).
        action: (M, B, A).
        scales: Mean and deviation of observations, (O,) each; centre and half width of the action box, (A,) each.
        limit: Bound of encoded actions.

    Returns:
        obs, next_obs, action; where the kernels make them, obs and action are views side by side (`join`).
    """
    mean, std, center, half = scales
    if not _native(obs, next_obs, action, *scales) or any(x.stride(2) != 1 for x in (obs, next_obs, action)):
        return (obs - mean) / std, (next_obs - mean) / std, ((action - center) / half).clamp(-limit, limit)
    members, rows, obs_dim = obs.shape
    dim = action.shape[2]
    joined, following = obs.new_empty((members, rows, obs_dim + dim)), obs.new_empty((members, rows, obs_dim))
    strides = [s for x in (obs, next_obs, action) for s in (x.stride(0), x.stride(1))]
    library().o2o_encode(
        obs.data_ptr(),
        next_obs.data_ptr(),
        action.data_ptr(),
        (ctypes.c_int64 * 6)(*strides),
        members,
        rows,
        obs_dim,
        dim,
        *[scale.data_ptr() for scale in scales],
        limit,
        joined.data_ptr(),
        following.data_ptr(),
    )
    return joined[..., :obs_dim], following, joined[..., obs_dim:]


def join(obs: Tensor, action: Tensor) -> Tensor:
    """Observations and actions side by side, (M, B, O + A); where they lie so already, without a copy."""
    if _native(obs, action) and not (obs.requires_grad or action.requires_grad):
        width = obs.shape[2] + action.shape[2]
        strides = (obs.shape[1] * width, width, 1)
        together = action.data_ptr() == obs.data_ptr() + 4 * obs.shape[2]
        if together and obs.stride() == strides and action.stride() == strides:
            return obs.as_strided((*obs.shape[:2], width), strides)
    return torch.cat([obs, action], -1)


def td_error(q: Tensor, target: Tensor) -> Tensor:
    """Squared Bellman error, a mean over rows and a sum over critics: (M, E, B), (M, B) -> (M,)."""
    if _native(q, target) and not target.requires_grad:
        return _apply(_TDError, q, target)
    return (q - target[:, None]).square().mean(-1).sum(-1)


def expectile_error(target: Tensor, v: Tensor, expectile: PerMember) -> Tensor:
    """L2^expectile(target - v), a mean over rows: (M, B), (M, B) -> (M,)."""
    if _native(v, target) and not target.requires_grad:
        return _apply(_Expectile, v, target, _members(expectile, len(v)))
    error = target - v
    weight = (expectile - (error < 0).to(error.dtype)).abs()
    return (weight * error.square()).mean(-1)


def advantage_weighted(log_prob: Tensor, advantage: Tensor, beta: PerMember) -> Tensor:
    """-exp(beta A) log pi, weights clipped at 100, a mean over rows: (M, B), (M, B) -> (M,)."""
    if _native(log_prob, advantage) and not advantage.requires_grad:
        return _apply(_AdvantageWeighted, log_prob, advantage, _members(beta, len(advantage)))
    weight = torch.exp(beta * advantage).clamp(max=MAX_ADVANTAGE_WEIGHT)
    return -(weight * log_prob).mean(-1)


def gaussian(out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean before the tanh and log standard deviation, (M, B, A) each, of an actor's output (M, B, 2A)."""
    mean, log_std = out.chunk(2, dim=-1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def tanh_log_prob(noise: Tensor, log_std: Tensor, pre_tanh: Tensor) -> Tensor:
    """Log density of a = tanh(u), u = mean + std * noise, summed over the last axis.

    Uses log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not cancel for large |u|.
    """
    normal = -0.5 * noise.square() - log_std - _HALF_LOG_2PI
    squash = 2.0 * (_LOG_2 - pre_tanh - F.softplus(-2.0 * pre_tanh))
    return (normal - squash).sum(-1)


def gaussian_log_prob(out: Tensor, action: Tensor, edge: PerMember) -> Tensor:
    """Log density (M, B) of actions (M, B, A), clipped to +-(1 - edge), under an actor's output (M, B, 2A)."""
    if _native(out, action) and not action.requires_grad:
        return _apply(_LogProb, out, action, _members(edge, len(out)))
    mean, log_std = gaussian(out)
    if isinstance(edge, Tensor):
        pre_tanh = torch.atanh(torch.clamp(action, edge - 1.0, 1.0 - edge))
    else:
        pre_tanh = torch.atanh(action.clamp(edge - 1.0, 1.0 - edge))
    return tanh_log_prob((pre_tanh - mean) * torch.exp(-log_std), log_std, pre_tanh)


def gaussian_sample(out: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparametrised actions (M, n, B, A), log density (M, n, B): an actor output (M, B, 2A), noise (M, n, B, A)."""
    if _native(out, noise):
        action, log_prob = _Sample.apply(out, noise)  # type: ignore[no-untyped-call]
        return action, log_prob
    mean, log_std = (x.unsqueeze(1) for x in gaussian(out))
    pre_tanh = mean + log_std.exp() * noise
    return torch.tanh(pre_tanh), tanh_log_prob(noise, log_std, pre_tanh)


# In one call each


def _native(*tensors: Tensor) -> bool:
    return not torch.compiler.is_compiling() and all(kernels_take(x) for x in tensors)


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


@lru_cache(maxsize=64)
def _filled(value: float, members: int) -> Tensor:
    return torch.full((members,), value, dtype=torch.float32)


def _members(value: PerMember, members: int) -> Tensor:
    """(M,) float32, contiguous."""
    if isinstance(value, Tensor):
        return value.reshape(-1).expand(members).contiguous()
    return _filled(float(value), members)


class _Prepared(torch.autograd.Function):
    """A function whose forward pass has made the gradient of its first argument; the others get none."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        above = grads[0]
        above = above.reshape(above.shape + (1,) * (gradient.dim() - above.dim()))
        return gradient * above, *[None] * (len(ctx.needs_input_grad) - 1)


class _TDError(_Prepared):
    @staticmethod
    def forward(ctx: Any, q: Tensor, target: Tensor) -> Tensor:
        q, target = q.contiguous(), target.contiguous()
        loss, gradient = q.new_empty(q.shape[0]), torch.empty_like(q)
        library().o2o_td_error(q.data_ptr(), target.data_ptr(), *q.shape, loss.data_ptr(), gradient.data_ptr())
        ctx.save_for_backward(gradient)
        return loss


class _Expectile(_Prepared):
    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, expectile: Tensor) -> Tensor:
        v, target = v.contiguous(), target.contiguous()
        loss, gradient = v.new_empty(v.shape[0]), torch.empty_like(v)
        library().o2o_expectile(
            target.data_ptr(), v.data_ptr(), expectile.data_ptr(), *v.shape, loss.data_ptr(), gradient.data_ptr()
        )
        ctx.save_for_backward(gradient)
        return loss


class _AdvantageWeighted(_Prepared):
    @staticmethod
    def forward(ctx: Any, log_prob: Tensor, advantage: Tensor, beta: Tensor) -> Tensor:
        log_prob, advantage = log_prob.contiguous(), advantage.contiguous()
        loss, gradient = log_prob.new_empty(log_prob.shape[0]), torch.empty_like(log_prob)
        library().o2o_advantage_weighted(
            log_prob.data_ptr(),
            advantage.data_ptr(),
            beta.data_ptr(),
            *log_prob.shape,
            loss.data_ptr(),
            gradient.data_ptr(),
        )
        ctx.save_for_backward(gradient)
        return loss


class _LogProb(_Prepared):
    @staticmethod
    def forward(ctx: Any, out: Tensor, action: Tensor, edge: Tensor) -> Tensor:
        out, action = out.contiguous(), action.contiguous()
        log_prob, gradient = out.new_empty(out.shape[:2]), torch.empty_like(out)
        library().o2o_log_prob(
            out.data_ptr(),
            action.data_ptr(),
            edge.data_ptr(),
            *action.shape,
            log_prob.data_ptr(),
            gradient.data_ptr(),
            threads(),
        )
        ctx.save_for_backward(gradient)
        return log_prob


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        out, noise = out.contiguous(), noise.contiguous()
        action, log_prob = torch.empty_like(noise), noise.new_empty(noise.shape[:-1])
        library().o2o_sample(
            out.data_ptr(),
            noise.data_ptr(),
            *noise.shape,
            action.data_ptr(),
            log_prob.data_ptr(),
            threads(),
        )
        ctx.save_for_backward(out, noise, action)
        return action, log_prob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        out, noise, action = ctx.saved_tensors
        da, dl, gradient = grads[0].contiguous(), grads[1].contiguous(), torch.empty_like(out)
        library().o2o_sample_back(
            out.data_ptr(),
            noise.data_ptr(),
            action.data_ptr(),
            da.data_ptr(),
            dl.data_ptr(),
            *noise.shape,
            gradient.data_ptr(),
            threads(),
        )
        return gradient, None
