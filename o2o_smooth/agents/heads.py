"""The losses and densities that agents share, on the outputs of their networks.

Each is written out in plain torch, which is what compiled graphs, other devices and float64 use; for float32 on the CPU
the native kernels give value and gradient in one call, since there a call costs more than the arithmetic.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from o2o_smooth.agents.native_heads import (
    AdvantageWeighted,
    Expectile,
    LogProb,
    MeanSquare,
    PerMember,
    PolicyValue,
    Sample,
    SoftValue,
    Tanh,
    TDError,
    apply,
    native,
    per_member,
)
from o2o_smooth.kernels.cpu import library

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
MAX_ADVANTAGE_WEIGHT = 100.0
_LOG_2 = math.log(2.0)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def encode_batch(
    obs: Tensor,
    next_obs: Tensor,
    action: Tensor,
    scales: tuple[Tensor, Tensor, Tensor, Tensor],
    limit: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw rows as the losses see them: observations normalised, actions brought to [-limit, limit].

    Args:
        obs: (M, B, O).
        next_obs: (M, B, O).
        action: (M, B, A).
        scales: Mean and deviation of observations, (O,) each; centre and half width of the action box, (A,) each.
        limit: Bound of encoded actions.
        out: Where to put them: obs and action side by side (M, B, O + A), next_obs (M, B, O); contiguous.

    Returns:
        obs, next_obs, action; where the kernels make them, obs and action are views side by side (`join`).
    """
    mean, std, center, half = scales
    if not native(obs, next_obs, action, *scales) or any(x.stride(2) != 1 for x in (obs, next_obs, action)):
        found = (obs - mean) / std, (next_obs - mean) / std, ((action - center) / half).clamp(-limit, limit)
        if out is not None:
            torch.cat([found[0], found[2]], -1, out=out[0])
            out[1].copy_(found[1])
        return found
    members, rows, obs_dim = obs.shape
    dim = action.shape[2]
    joined, following = out or (obs.new_empty((members, rows, obs_dim + dim)), obs.new_empty((members, rows, obs_dim)))
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
    if native(obs, action) and not (obs.requires_grad or action.requires_grad):
        width = obs.shape[2] + action.shape[2]
        strides = (obs.shape[1] * width, width, 1)
        together = action.data_ptr() == obs.data_ptr() + 4 * obs.shape[2]
        if together and obs.stride() == strides and action.stride() == strides:
            return obs.as_strided((*obs.shape[:2], width), strides)
    return torch.cat([obs, action], -1)


def least(q: Tensor) -> Tensor:
    """The least of the critics: (M, E, B) -> (M, B)."""
    if not native(q) or (q.requires_grad and torch.is_grad_enabled()):
        return q.amin(1)
    q = q.contiguous()
    out = q.new_empty((q.shape[0], q.shape[2]))
    library().o2o_least(q.data_ptr(), *q.shape, out.data_ptr())
    return out


def td_target(
    reward: Tensor, terminated: Tensor, discount: PerMember, q: Tensor, bonus: Tensor | None = None
) -> Tensor:
    """Reward + discount (1 - terminated) (least q - bonus), without gradient.

    Args:
        reward: (M, B).
        terminated: (M, B), 0 or 1.
        discount: Of a step.
        q: (M, E, B), the successor's values.
        bonus: (M, B), what is taken off them, such as the entropy's price.

    Returns:
        (M, B).
    """
    q, reward, terminated, *rest = (x.detach() for x in (q, reward, terminated, *([] if bonus is None else [bonus])))
    if not native(q, reward, terminated, *rest):
        value = q.amin(1) - rest[0] if rest else q.amin(1)
        return reward + discount * (1.0 - terminated) * value
    q, reward, terminated, *rest = (x.contiguous() for x in (q, reward, terminated, *rest))
    target = torch.empty_like(reward)
    library().o2o_td_target(
        q.data_ptr(),
        reward.data_ptr(),
        terminated.data_ptr(),
        per_member(discount, len(q)).data_ptr(),
        rest[0].data_ptr() if rest else None,
        *q.shape,
        target.data_ptr(),
    )
    return target


def smoothed_action(out: Tensor, noise: Tensor, scale: PerMember, clip: PerMember) -> Tensor:
    """TD3's target action clip(tanh(out) + clip(scale noise, -clip, clip), -1, 1), all (M, B, A), without gradient."""
    out = out.detach()
    if not native(out, noise):
        wide = scale * noise
        smoothing = torch.clamp(wide, -clip, clip) if isinstance(clip, Tensor) else wide.clamp(-clip, clip)
        return (torch.tanh(out) + smoothing).clamp(-1.0, 1.0)
    out, noise = out.contiguous(), noise.contiguous()
    action, count = torch.empty_like(out), len(out)
    library().o2o_smoothed(
        out.data_ptr(),
        noise.data_ptr(),
        per_member(scale, count).data_ptr(),
        per_member(clip, count).data_ptr(),
        count,
        out[0].numel(),
        action.data_ptr(),
    )
    return action


def policy_value(q: Tensor, norm: PerMember | None) -> tuple[Tensor, Tensor]:
    """-scale mean q over rows, and the scale, held fixed: norm / mean |q|, or 1 without norm; (M, B) -> (M,), (M,)."""
    if native(q):
        loss, scale = PolicyValue.apply(q, None if norm is None else per_member(norm, len(q)))  # type: ignore[no-untyped-call]
        return loss, scale
    if norm is None:
        scale = torch.ones_like(q[:, 0])
    else:
        scale = (norm.reshape(-1) if isinstance(norm, Tensor) else norm) / q.detach().abs().mean(-1)
    return -scale * q.mean(-1), scale


def squashed(out: Tensor) -> Tensor:
    """The tanh of an actor's output."""
    return apply(Tanh, out) if native(out) else torch.tanh(out)


def entropy_gap(log_prob: Tensor, target: PerMember) -> Tensor:
    """By how much the entropy of samples exceeds a target, a mean over rows without gradient: (M, B) -> (M,)."""
    log_prob = log_prob.detach()
    if not native(log_prob):
        return (-log_prob - target).mean(-1)
    log_prob, gap = log_prob.contiguous(), log_prob.new_empty(len(log_prob))
    targets = per_member(target, len(log_prob))
    library().o2o_entropy_gap(log_prob.data_ptr(), targets.data_ptr(), *log_prob.shape, gap.data_ptr())
    return gap


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """Mean of (x - y)^2 over all but members: (M, ...), (M, ...) -> (M,)."""
    if native(x, y) and not y.requires_grad:
        return apply(MeanSquare, x, y)
    return (x - y).square().flatten(1).mean(1)


def soft_value(q: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """SAC's policy loss, mean over rows of alpha log_prob - least q (M,), and that least q (M, B), detached.

    Args:
        q: (M, E, B).
        log_prob: (M, B).
        alpha: (M,), without gradient.
    """
    if native(q, log_prob, alpha):
        loss, low = SoftValue.apply(q, log_prob, alpha)  # type: ignore[no-untyped-call]
        return loss, low.detach()
    low = q.amin(1)
    return (alpha[:, None] * log_prob - low).mean(-1), low.detach()


def td_error(q: Tensor, target: Tensor) -> Tensor:
    """Squared Bellman error, a mean over rows and a sum over critics: (M, E, B), (M, B) -> (M,)."""
    if native(q, target) and not target.requires_grad:
        return apply(TDError, q, target)
    return (q - target[:, None]).square().mean(-1).sum(-1)


def expectile_error(target: Tensor, v: Tensor, expectile: PerMember) -> Tensor:
    """L2^expectile(target - v), a mean over rows: (M, B), (M, B) -> (M,)."""
    if native(v, target) and not target.requires_grad:
        return apply(Expectile, v, target, per_member(expectile, len(v)))
    error = target - v
    weight = (expectile - (error < 0).to(error.dtype)).abs()
    return (weight * error.square()).mean(-1)


def advantage_weighted(log_prob: Tensor, advantage: Tensor, beta: PerMember) -> Tensor:
    """-exp(beta A) log pi, weights clipped at 100, a mean over rows: (M, B), (M, B) -> (M,)."""
    if native(log_prob, advantage) and not advantage.requires_grad:
        return apply(AdvantageWeighted, log_prob, advantage, per_member(beta, len(advantage)))
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
    if native(out, action) and not action.requires_grad:
        return apply(LogProb, out, action, per_member(edge, len(out)))
    mean, log_std = gaussian(out)
    if isinstance(edge, Tensor):
        pre_tanh = torch.atanh(torch.clamp(action, edge - 1.0, 1.0 - edge))
    else:
        pre_tanh = torch.atanh(action.clamp(edge - 1.0, 1.0 - edge))
    return tanh_log_prob((pre_tanh - mean) * torch.exp(-log_std), log_std, pre_tanh)


def gaussian_sample(out: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparametrised actions (M, n, B, A), log density (M, n, B): an actor output (M, B, 2A), noise (M, n, B, A)."""
    if native(out, noise):
        action, log_prob = Sample.apply(out, noise)  # type: ignore[no-untyped-call]
        return action, log_prob
    mean, log_std = (x.unsqueeze(1) for x in gaussian(out))
    pre_tanh = mean + log_std.exp() * noise
    return torch.tanh(pre_tanh), tanh_log_prob(noise, log_std, pre_tanh)
