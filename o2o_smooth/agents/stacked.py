"""An MLP stack evaluated by the native CPU kernels, inside torch's autograd and inside compiled graphs.

In eager mode a Python autograd function calls the kernels; under torch.compile the same calls are opaque operators, so
that a compiled step keeps them and fuses the losses around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from o2o_smooth.kernels.cpu import Gradients, StackedNet, Workspace, layer_sizes, saved_floats, unavailable

if TYPE_CHECKING:
    from o2o_smooth.agents.networks import MLP

Taken = TypeVar("Taken")
Parts = Sequence[Sequence[Tensor]]  # weights, biases, gains and shifts of the layers
_ready: bool | None = None


def make_ready() -> None:
    """Build and load the kernels if that has not been tried yet; outside of any compiled graph."""
    global _ready
    if _ready is None:
        _ready = unavailable() is None


def kernels_take(x: Tensor) -> bool:
    """Whether a tensor is for the kernels: float32 on the CPU, where they could be built."""
    return bool(_ready) and x.dtype == torch.float32 and x.device.type == "cpu"


def stacked_forward(mlp: MLP, x: Tensor, *, frozen: bool, copies: int) -> Tensor:
    """As `MLP.forward`: (M, B, in) -> (M, copies, B, out)."""
    half = mlp.precision == "bf16"
    if torch.compiler.is_compiling():
        flat = [p.detach() if frozen else p for part in mlp.parts for p in part]
        compiled: Tensor = stack_forward(x.contiguous(), flat, copies, mlp.layer_norm, half)[0]
        return compiled
    if x.shape[0] != mlp.members or x.shape[2] != mlp.in_dim:
        raise ValueError(f"a stack of {mlp.members} members and {mlp.in_dim} features got {tuple(x.shape)}")
    x = apart(x)
    if not torch.is_grad_enabled():
        return bound_net(mlp).forward(x, copies, half=half)[0]
    if copies < mlp.copies and not frozen:
        raise ValueError("fewer copies than all have no gradients of the parameters here; use frozen=True")
    if frozen:
        parameters: list[Tensor] = []
    elif mlp.depositing:
        parameters = [mlp.anchor()]
    else:
        parameters = [p for part in mlp.parts for p in part]
    function: Any = _Stacked
    result: Tensor = function.apply(x, mlp, copies, half, *parameters)
    return result


def apart(x: Tensor) -> Tensor:
    """(M, B, F) as the kernels read it: features side by side, and rows that do not lie in each other."""
    if x.stride(2) == 1 and x.stride(1) >= x.shape[2]:
        return x
    return x.clone(memory_format=torch.contiguous_format)  # `contiguous` leaves the strides of a single row as they are


def bound_net(mlp: MLP) -> StackedNet:
    """The kernels' view of a stack, at the parameters that it has now."""
    if mlp.native is None:
        mlp.native = StackedNet(mlp.members, mlp.copies, layer_sizes(mlp.parts[0]), layer_norm=mlp.layer_norm)
    mlp.native.bind(mlp.parts)
    return mlp.native


class _Stacked(torch.autograd.Function):
    """Parameters come as arguments so that autograd knows them; a frozen stack comes without any."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: MLP, copies: int, half: bool, *parameters: Tensor) -> Tensor:
        out, saved = bound_net(mlp).forward(x, copies, half=half)
        ctx.mlp, ctx.saved, ctx.half = mlp, saved, half
        ctx.deposit = mlp.deposit if parameters and mlp.depositing else None
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        wants, mlp, half = ctx.needs_input_grad, ctx.mlp, ctx.half
        learns = any(wants[4:])
        if ctx.deposit is not None:  # which has a single argument, its anchor
            dx = ctx.deposit.backward(mlp, x, ctx.saved, grads[0], learns=learns, want_input=wants[0], half=half)
            return dx, None, None, None, None
        made = Gradients(mlp.parts) if learns else None
        dx = bound_net(mlp).backward(x, ctx.saved, grads[0], made, want_input=wants[0], half=half)
        return (dx, None, None, None, *([None] * (len(wants) - 4) if made is None else made.tensors))


class Deposit:
    """Where a stack's gradients go while an update owns its parameters: straight into `.grad`, in memory that is kept.

    Autograd's own way there (a fresh tensor per parameter and pass, handed on node by node) takes a noticeable part of
    a small network's pass. Only for updates that step the parameters themselves: `torch.autograd.grad` sees nothing.

    Args:
        mlp: Whose.
    """

    def __init__(self, mlp: MLP) -> None:
        self.gradients = Gradients(mlp.parts)
        self.anchor = torch.zeros((), requires_grad=True)  # keeps the graph connected

    def backward(
        self, mlp: MLP, x: Tensor, saved: Workspace, grad: Tensor, *, learns: bool, want_input: bool, half: bool
    ) -> Tensor | None:
        """As `StackedNet.backward`; adds to `.grad` where the update has been here before."""
        if not learns:
            return bound_net(mlp).backward(x, saved, grad, None, want_input=want_input, half=half)
        net = bound_net(mlp)
        return self.take(
            mlp, lambda into, add: net.backward(x, saved, grad, into, want_input=want_input, add=add, half=half)
        )

    def take(self, mlp: MLP, give: Callable[[Gradients, bool], Taken]) -> Taken:
        """Have gradients put here, or added where the update has put some before; then they are the stack's `.grad`."""
        again = mlp.parts[0][0].grad is not None
        result = give(self.gradients, again)
        if not again:
            for parameter, gradient in zip(
                (p for part in mlp.parts for p in part), self.gradients.tensors, strict=True
            ):
                parameter.grad = gradient
        return result


# The same as operators, for compiled graphs

_nets: dict[tuple[int, ...], StackedNet] = {}


def _parts(flat: Sequence[Tensor], layer_norm: bool) -> tuple[list[Tensor], ...]:
    """Undo the flattening: weights, biases, gains and shifts."""
    layers = (len(flat) + 2) // 4 if layer_norm else len(flat) // 2
    norms = layers - 1 if layer_norm else 0
    rest = iter(flat)
    return tuple([next(rest) for _ in range(n)] for n in (layers, layers, norms, norms))


def _net(flat: Sequence[Tensor], layer_norm: bool) -> StackedNet:
    key = tuple([p.data_ptr() for p in flat])
    net = _nets.get(key)
    if net is None:
        parts = _parts(flat, layer_norm)
        if len(_nets) > 256:  # agents come and go
            _nets.clear()
        net = _nets[key] = StackedNet(flat[0].shape[0], flat[0].shape[1], layer_sizes(parts[0]), layer_norm=layer_norm)
        net.bind(parts)
    return net


@torch.library.custom_op("o2o_smooth::stack_forward", mutates_args=())
def stack_forward(x: Tensor, flat: list[Tensor], copies: int, layer_norm: bool, half: bool) -> tuple[Tensor, Tensor]:
    """Output (M, copies, B, out) and what the backward pass needs."""
    net = _net(flat, layer_norm)
    size = saved_floats(net.members, copies, net.sizes, x.shape[1], layer_norm=layer_norm)
    saved = torch.empty(size, dtype=torch.float32)
    return net.forward(x, copies, Workspace(size, saved), half=half)[0], saved


@stack_forward.register_fake
def _(x: Tensor, flat: list[Tensor], copies: int, layer_norm: bool, half: bool) -> tuple[Tensor, Tensor]:
    sizes = layer_sizes(_parts(flat, layer_norm)[0])
    members, rows = x.shape[:2]
    size = saved_floats(members, copies, sizes, rows, layer_norm=layer_norm)
    return x.new_empty((members, copies, rows, sizes[-1])), x.new_empty(size)


@torch.library.custom_op("o2o_smooth::stack_backward", mutates_args=())
def stack_backward(
    x: Tensor,
    saved: Tensor,
    grad: Tensor,
    flat: list[Tensor],
    layer_norm: bool,
    half: bool,
    learns: bool,
    want_input: bool,
) -> list[Tensor]:
    """Gradients of the parameters, if they learn, and then of the input, if it is wanted."""
    made = Gradients(_parts(flat, layer_norm)) if learns else None
    kept = Workspace(saved.numel(), saved)
    dx = _net(flat, layer_norm).backward(x, kept, grad, made, want_input=want_input, half=half)
    gradients = [] if made is None else made.tensors
    return gradients if dx is None else [*gradients, dx]


@stack_backward.register_fake
def _(
    x: Tensor,
    saved: Tensor,
    grad: Tensor,
    flat: list[Tensor],
    layer_norm: bool,
    half: bool,
    learns: bool,
    want_input: bool,
) -> list[Tensor]:
    gradients = [torch.empty_like(p) for p in flat] if learns else []
    return [*gradients, torch.empty_like(x)] if want_input else gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, flat, _, ctx.layer_norm, ctx.half = inputs
    ctx.learns = any(p.requires_grad for p in flat)
    ctx.save_for_backward(x, output[1], *flat)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
    x, saved, *flat = ctx.saved_tensors
    want_input = ctx.needs_input_grad[0]
    gradients = stack_backward(x, saved, grad.contiguous(), flat, ctx.layer_norm, ctx.half, ctx.learns, want_input)
    dx = gradients[-1] if want_input else None
    return dx, (list(gradients[: len(flat)]) if ctx.learns else [None] * len(flat)), None, None, None


stack_forward.register_autograd(_backward, setup_context=_keep)
