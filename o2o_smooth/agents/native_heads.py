"""The losses of `heads` by the native kernels, inside torch's autograd: value and gradient in one call each."""

# ruff: noqa: D102  # autograd names the methods

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from o2o_smooth.agents.stacked import kernels_take
from o2o_smooth.kernels.cpu import library, threads

PerMember = float | Tensor  # one for all, or a tensor that broadcasts from the members' axis


def native(*tensors: Tensor) -> bool:
    """Whether the kernels take all of these, and nobody is compiling."""
    return not torch.compiler.is_compiling() and all(kernels_take(x) for x in tensors)


def apply(function: Any, *arguments: Any) -> Tensor:
    """An autograd function of one result."""
    result: Tensor = function.apply(*arguments)
    return result


@cache  # for good: tapes hold addresses
def _filled(value: float, members: int) -> Tensor:
    return torch.full((members,), value, dtype=torch.float32)


def per_member(value: PerMember, members: int) -> Tensor:
    """(M,) float32, contiguous."""
    if isinstance(value, Tensor):
        return value.reshape(-1).expand(members).contiguous()
    return _filled(float(value), members)


class _Prepared(torch.autograd.Function):
    """A function whose forward pass has made the gradient of its first argument; the others get none."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return _scaled(gradient, grads[0]), *[None] * (len(ctx.needs_input_grad) - 1)


def _scaled(gradient: Tensor, above: Tensor) -> Tensor:
    """A prepared gradient (above.shape, ...) times the gradient from above."""
    above, out = above.contiguous(), torch.empty_like(gradient)
    each = gradient.numel() // max(1, above.numel())
    library().o2o_scale(gradient.data_ptr(), above.data_ptr(), above.numel(), each, out.data_ptr())
    return out


class TDError(_Prepared):
    """See `heads.td_error`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, target: Tensor) -> Tensor:
        q, target = q.contiguous(), target.contiguous()
        loss, gradient = q.new_empty(q.shape[0]), torch.empty_like(q)
        library().o2o_td_error(q.data_ptr(), target.data_ptr(), *q.shape, loss.data_ptr(), gradient.data_ptr())
        ctx.save_for_backward(gradient)
        return loss


class Expectile(_Prepared):
    """See `heads.expectile_error`."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, expectile: Tensor) -> Tensor:
        v, target = v.contiguous(), target.contiguous()
        loss, gradient = v.new_empty(v.shape[0]), torch.empty_like(v)
        library().o2o_expectile(
            target.data_ptr(), v.data_ptr(), expectile.data_ptr(), *v.shape, loss.data_ptr(), gradient.data_ptr()
        )
        ctx.save_for_backward(gradient)
        return loss


class AdvantageWeighted(_Prepared):
    """See `heads.advantage_weighted`."""

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


class LogProb(_Prepared):
    """See `heads.gaussian_log_prob`."""

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


class MeanSquare(_Prepared):
    """See `heads.mean_square`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        loss, gradient = x.new_empty(x.shape[0]), torch.empty_like(x)
        library().o2o_mean_square(
            x.data_ptr(), y.data_ptr(), len(x), x[0].numel(), loss.data_ptr(), gradient.data_ptr()
        )
        ctx.save_for_backward(gradient)
        return loss


class Tanh(torch.autograd.Function):
    """See `heads.squashed`."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        out = out.contiguous()
        action = torch.empty_like(out)
        library().o2o_tanh(out.data_ptr(), out.numel(), action.data_ptr())
        ctx.save_for_backward(action)
        return action

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (action,) = ctx.saved_tensors
        above, gradient = grads[0].contiguous(), torch.empty_like(action)
        library().o2o_tanh_back(action.data_ptr(), above.data_ptr(), action.numel(), gradient.data_ptr())
        return gradient


class PolicyValue(torch.autograd.Function):
    """See `heads.policy_value`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, norm: Tensor | None) -> tuple[Tensor, Tensor]:
        q = q.contiguous()
        loss, scale, gradient = q.new_empty(q.shape[0]), q.new_empty(q.shape[0]), torch.empty_like(q)
        library().o2o_policy_value(
            q.data_ptr(),
            None if norm is None else norm.data_ptr(),
            *q.shape,
            loss.data_ptr(),
            scale.data_ptr(),
            gradient.data_ptr(),
        )
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(scale)
        return loss, scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return _scaled(gradient, grads[0]), None


class SoftValue(torch.autograd.Function):
    """See `heads.soft_value`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        q, log_prob, alpha = q.contiguous(), log_prob.contiguous(), alpha.contiguous()
        loss, low = q.new_empty(q.shape[0]), torch.empty_like(log_prob)
        d_log_prob, dq = torch.empty_like(log_prob), torch.empty_like(q)
        library().o2o_soft_value(
            q.data_ptr(),
            log_prob.data_ptr(),
            alpha.data_ptr(),
            *q.shape,
            loss.data_ptr(),
            low.data_ptr(),
            d_log_prob.data_ptr(),
            dq.data_ptr(),
        )
        ctx.save_for_backward(dq, d_log_prob)
        ctx.mark_non_differentiable(low)
        return loss, low

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        dq, d_log_prob = ctx.saved_tensors
        return _scaled(dq, grads[0]), _scaled(d_log_prob, grads[0]), None


class Sample(torch.autograd.Function):
    """See `heads.gaussian_sample`."""

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
