"""The native CPU kernels (cpu.c), called on torch tensors: stacked perceptrons forward and backward, and Adam.

`networks.MLP` and `optimizer.MemberAdam` use them for float32 on the CPU and go the plain way in torch otherwise; both
ways are held together by tests. In half precision the hidden layers' products are of bfloat16 (half.c), summed in
float32; all that is stored stays float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import get_ident
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.kernels.build import BuildError, load, processor
from o2o_smooth.kernels.calls import declare

MAX_LAYERS = 16  # as in cpu.c
HalfWay = Literal["rounded", "dots", "blas"]
HALF_WAYS: tuple[HalfWay, ...] = ("rounded", "dots", "blas")  # as in half.c
_POINTERS = ctypes.c_void_p * MAX_LAYERS


class _Net(ctypes.Structure):
    _fields_ = (
        ("members", ctypes.c_int64),
        ("copies", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("layer_norm", ctypes.c_int64),
        ("used", ctypes.c_int64),
        ("half", ctypes.c_int64),
        ("dims", ctypes.c_int64 * (MAX_LAYERS + 1)),
        ("w", _POINTERS),
        ("b", _POINTERS),
        ("gain", _POINTERS),
        ("shift", _POINTERS),
        ("ready", _POINTERS),
        ("turned", _POINTERS),
    )


class _Slot(ctypes.Structure):
    _fields_ = (
        ("parameter", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("rate", ctypes.c_void_p),
        ("root", ctypes.c_void_p),
        ("tau", ctypes.c_void_p),
        ("size", ctypes.c_int64),
    )


@cache
def library() -> ctypes.CDLL:
    """The kernels, built, loaded and bound to torch's matrix product.

    Raises:
        BuildError: Says why they cannot be had here.
    """
    lib = load()
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        blas = ctypes.CDLL(str(path))
        sgemm = ctypes.cast(blas.sgemm_, ctypes.c_void_p)
    except (OSError, AttributeError):
        raise BuildError("this build of torch does not show its BLAS (sgemm_)") from None
    threads = getattr(blas, "MKL_Set_Num_Threads_Local", None)
    halves = getattr(blas, "gemm_bf16bf16f32_", None)
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    lib.o2o_init.argtypes, lib.o2o_init.restype = [pointer, pointer, pointer], None
    lib.o2o_half_way.argtypes, lib.o2o_half_way.restype = [ctypes.c_int], ctypes.c_int
    lib.o2o_saved.argtypes, lib.o2o_saved.restype = [pointer, i64], i64
    lib.o2o_scratch.argtypes, lib.o2o_scratch.restype = [pointer, i64], i64
    lib.o2o_pushed_parts.argtypes, lib.o2o_pushed_parts.restype = [pointer, i64, i64, ctypes.c_int], i64
    lib.o2o_pushed_gradient.argtypes, lib.o2o_pushed_gradient.restype = [pointer, i64], i64
    lib.o2o_pushed_room.argtypes, lib.o2o_pushed_room.restype = [pointer, *[i64] * 4, ctypes.c_int], i64
    u64 = ctypes.c_uint64
    lib.o2o_integers.argtypes = [pointer, u64, u64, i64, i64, i64, ctypes.c_uint32, pointer]
    lib.o2o_integers.restype = None
    lib.o2o_rows.argtypes, lib.o2o_rows.restype = [pointer, pointer, i64, i64, *[pointer] * 3, ctypes.c_int], i64
    declare(lib)
    lib.o2o_init(sgemm, *(None if f is None else ctypes.cast(f, pointer) for f in (halves, threads)))
    if "amx_bf16" in processor().split():
        lib.o2o_half_way(HALF_WAYS.index("blas"))
    return lib


def half_way() -> HalfWay:
    """How bfloat16 products are made on this processor; see half.c.

    Raises:
        BuildError: There are no kernels.
    """
    number: int = library().o2o_half_way(-1)
    return HALF_WAYS[number]


@cache
def unavailable() -> str | None:
    """Why the kernels cannot be used; None where they can."""
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


def saved_floats(members: int, copies: int, sizes: Sequence[int], rows: int, *, layer_norm: bool) -> int:
    """Floats that a forward pass leaves for the backward pass; o2o_saved in cpu.c."""
    per_row = sum(sizes[1:-1])
    if layer_norm:
        per_row = 2 * per_row + len(sizes) - 2
    return members * copies * rows * per_row


Pool = dict[int, list[Tensor]]  # memory that nobody uses now, by its size
_FREE: Pool = {}  # of all networks of the process


def _taken(pool: Pool, size: int) -> Tensor | None:
    try:
        return pool[size].pop()  # one step, which no other thread comes between
    except (KeyError, IndexError):
        return None


class _Keeper(NamedTuple):
    thread: int
    keep: Callable[[Tensor], object]
    pool: Pool


class Workspace:
    """Memory of one pass, kept for the next: fresh pages for every pass would cost more than the arithmetic on them."""

    _keeper: _Keeper | None = None

    def __init__(self, size: int, tensor: Tensor | None = None) -> None:
        self.size = size
        self._pool: Pool | None = None  # where it goes; nowhere if it is somebody else's
        if tensor is None:
            keeper = Workspace._keeper
            if keeper is not None and keeper.thread != get_ident():
                keeper = None
            pool = _FREE if keeper is None else keeper.pool
            tensor = _taken(pool, size)
            if tensor is None:
                tensor = _taken(_FREE, size)
            if tensor is None:
                tensor = torch.empty(size, dtype=torch.float32)
            if keeper is not None:
                keeper.keep(tensor)
            self._pool = pool
        self.tensor, self.pointer = tensor, tensor.data_ptr()

    def __del__(self) -> None:
        if self._pool is None:
            return
        kept = self._pool.setdefault(self.size, [])
        if self._pool is not _FREE or len(kept) < 4:
            kept.append(self.tensor)

    @staticmethod
    @contextmanager
    def kept_by(keep: Callable[[Tensor], object], pool: Pool) -> Iterator[None]:
        """Tell of all memory that passes of this thread use within; it goes to `pool` and not to other passes.

        Passes within may use it again, each from its beginning: what repeats them keeps nothing there in between.
        """
        Workspace._keeper = _Keeper(get_ident(), keep, pool)
        try:
            yield
        finally:
            Workspace._keeper = None


_lent: int | None = None


def threads() -> int:
    """Threads that the kernels share their work among: torch's, or those that it has lent them."""
    return _lent or torch.get_num_threads()


@contextmanager
def all_threads() -> Iterator[None]:
    """Lend torch's threads to the kernels: torch works with one meanwhile.

    Between two kernels the losses are small; shared among torch's own threads they would gain nothing, and those
    would stand in the way of the kernels' for the next milliseconds.
    """
    global _lent
    count = torch.get_num_threads()
    if count == 1 or _lent is not None:
        yield
        return
    _lent = count
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _lent = None


_NOWHERE = (None,) * 4


class Tried(NamedTuple):
    """Actions tried in states; float32, contiguous but for the rows of `obs`, which may lie apart."""

    obs: Tensor
    """(M, B, O)."""
    action: Tensor
    """(M, J, B, A)."""
    log_density: Tensor
    """Of the actions, (M, J, B)."""
    bound: Tensor | None
    """(M, B); from the `bounded`-th action on, values below it count as it."""
    bounded: int
    half: bool


class Gradients:
    """Memory for the gradients of a stack's parameters.

    Args:
        parameters: Weights, biases, gains and shifts.
    """

    def __init__(self, parameters: Sequence[Sequence[Tensor]]) -> None:
        made = [[torch.empty_like(p, requires_grad=False) for p in group] for group in parameters]
        self.tensors = [g for group in made for g in group]
        self.pointers = tuple([_POINTERS(*[g.data_ptr() for g in group]) for group in made])


class StackedNet:
    """The kernels' view of a stack of perceptrons.

    Args:
        members: M.
        copies: E.
        sizes: Features of every layer, input first.
        layer_norm: LayerNorm in the hidden layers.
    """

    def __init__(self, members: int, copies: int, sizes: Sequence[int], *, layer_norm: bool) -> None:
        self.lib = library()
        self.members, self.copies, self.sizes = members, copies, tuple(sizes)
        self._layer_norm = layer_norm
        self._views: dict[tuple[int, bool], _Net] = {}  # by how many copies take part, and half precision
        self._groups: Sequence[Sequence[Tensor]] = ()
        self.at: tuple[int, ...] = ()  # the parameters in use, by address
        self._sizes: dict[tuple[int, int, bool], tuple[int, int, int]] = {}

    def bind(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Use these parameters: weights, biases, gains and shifts of the layers, contiguous float32."""
        at = tuple([p.data_ptr() for group in groups for p in group])
        if at == self.at:
            return
        self.at, self._groups = at, groups
        for net in self._views.values():
            self._point(net)

    def _point(self, net: _Net) -> None:
        for field, group in zip((net.w, net.b, net.gain, net.shift), self._groups, strict=bool(self._groups)):
            for i, parameter in enumerate(group):
                field[i] = parameter.data_ptr()

    def _view(self, rows: int, copies: int, half: bool) -> tuple[int, int, int]:
        """Address of the net of the first copies; floats that a pass leaves, and that a backward pass needs itself."""
        view = self._sizes.get((rows, copies, half))
        if view is None:
            net = self._views.get((copies, half))
            if net is None:
                net = self._views[copies, half] = _Net(
                    self.members, self.copies, len(self.sizes) - 1, int(self._layer_norm), copies, int(half)
                )
                net.dims[: len(self.sizes)] = list(self.sizes)
                self._point(net)
            at = ctypes.addressof(net)
            view = self._sizes[rows, copies, half] = (at, self.lib.o2o_saved(at, rows), self.lib.o2o_scratch(at, rows))
        return view

    def forward(
        self, x: Tensor, copies: int, saved: Workspace | None = None, *, half: bool = False
    ) -> tuple[Tensor, Workspace]:
        """(M, B, in), features side by side -> (M, copies, B, out) of the first copies, and what `backward` needs."""
        rows = x.shape[1]
        net, size, _ = self._view(rows, copies, half)
        saved = saved or Workspace(size)
        out = torch.empty((self.members, copies, rows, self.sizes[-1]), dtype=torch.float32)
        self.lib.o2o_forward(
            net,
            x.data_ptr(),
            x.stride(1),
            x.stride(0),
            rows,
            saved.pointer,
            out.data_ptr(),
            threads(),
        )
        return out, saved

    def backward(
        self,
        x: Tensor,
        saved: Workspace,
        grad: Tensor,
        gradients: Gradients | None,
        want_input: bool,
        *,
        add: bool = False,
        half: bool = False,
    ) -> Tensor | None:
        """Gradients of the parameters, and returned, of the input, (M, B, in).

        Args:
            x: The input of the forward pass.
            saved: What that pass left.
            grad: Gradient of its output, (M, copies, B, out); of all copies where `gradients` are given.
            gradients: Where those of the parameters go; None: they are not wanted.
            want_input: Whether the input's gradient is wanted.
            add: Add to what `gradients` hold.
            half: As in the forward pass.
        """
        rows, copies = x.shape[1], grad.shape[1]
        grad = grad.contiguous()
        net, _, size = self._view(rows, copies, half)
        scratch = Workspace(size)
        dx = None
        if want_input:
            dx = torch.empty((self.members, copies, rows, self.sizes[0]), dtype=torch.float32)
        self.lib.o2o_backward(
            net,
            x.data_ptr(),
            x.stride(1),
            x.stride(0),
            rows,
            saved.pointer,
            grad.data_ptr(),
            scratch.pointer,
            *(_NOWHERE if gradients is None else gradients.pointers),
            None if dx is None else dx.data_ptr(),
            int(add),
            threads(),
        )
        if dx is not None:
            dx = dx.squeeze(1) if copies == 1 else dx.sum(1)
        return dx

    def soft_maximum(self, tried: Tried) -> tuple[Tensor, Workspace, int]:
        """Of each network, the mean over states of log sum_j exp(value_j - log density_j), (M, E), and its gradient.

        The gradient comes in shares that `soft_maximum_back` adds up; their number is the third result.
        """
        obs, action, bound = tried.obs, tried.action, tried.bound
        count, rows, dim = action.shape[1:]
        net = self._view(rows, self.copies, tried.half)[0]
        lanes = threads()  # once: another thread may change it, and the room is for so many
        parts, *sizes = self._shares(net, rows, count, dim, lanes)
        gradient, room = (Workspace(size) for size in sizes)
        out = torch.empty((self.members, self.copies), dtype=torch.float32)
        self.lib.o2o_pushed(
            net,
            obs.data_ptr(),
            obs.stride(1),
            obs.stride(0),
            action.data_ptr(),
            dim,
            tried.log_density.data_ptr(),
            None if bound is None else bound.data_ptr(),
            tried.bounded,
            rows,
            count,
            parts,
            room.pointer,
            gradient.pointer,
            out.data_ptr(),
            lanes,
        )
        return out, gradient, parts

    def _shares(self, net: int, rows: int, count: int, dim: int, lanes: int) -> tuple[int, int, int]:
        """Shares that a network's states are cut into; floats of all their gradients, and of the lanes' room."""
        parts: int = self.lib.o2o_pushed_parts(net, rows, count, lanes)
        room: int = self.lib.o2o_pushed_room(net, rows, count, dim, parts, lanes)
        return parts, self.lib.o2o_pushed_gradient(net, parts), room

    def soft_maximum_floats(self, rows: int, count: int, dim: int, lanes: int, *, half: bool) -> int:
        """Floats that `soft_maximum` works in with so many threads, for `count` actions of `dim` in `rows` states."""
        return sum(self._shares(self._view(rows, self.copies, half)[0], rows, count, dim, lanes)[1:])

    def soft_maximum_back(
        self, gradient: Workspace, parts: int, above: Tensor, into: Gradients, *, add: bool = False
    ) -> None:
        """Put the gradients of `soft_maximum`, times those of its results, (M, E), into the parameters'."""
        net = self._view(1, self.copies, half=False)[0]
        self.lib.o2o_pushed_back(net, gradient.pointer, parts, above.data_ptr(), *into.pointers, int(add), threads())


class AdamSlots:
    """Parameters, their moments and, where they have one, their target networks, as the kernel walks through them.

    Args:
        parameters: (M, ...) each.
        first: First moments.
        second: Second moments.
        targets: Target networks' parameters.
        scales: Of each parameter, the (3, M) float32 array that holds its component's rate, root and tau; see o2o_adam
            in cpu.c. It is read at every step.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        first: Sequence[Tensor],
        second: Sequence[Tensor],
        targets: Sequence[Tensor | None],
        scales: Sequence[NDArray[np.float32]],
    ) -> None:
        self.lib = library()
        self.members = len(parameters[0])
        self.slots = (_Slot * len(parameters))()
        for slot, p, a, v, t, scale in zip(self.slots, parameters, first, second, targets, scales, strict=True):
            slot.parameter, slot.first, slot.second = p.data_ptr(), a.data_ptr(), v.data_ptr()
            slot.target = None if t is None else t.data_ptr()
            slot.rate, slot.root, slot.tau = (row.ctypes.data for row in scale)
            slot.size = p.numel() // self.members
        self.at = tuple([p.data_ptr() for p in parameters])
        self._gradients: list[Tensor | None] = [None] * len(parameters)
        self._kept = (list(first), list(second), list(targets), list(scales))  # what the pointers point at

    def step(self, gradients: Sequence[Tensor | None], betas: tuple[float, float], eps: float) -> None:
        """One step with the scales as they are now."""
        for i, (slot, gradient) in enumerate(zip(self.slots, gradients, strict=True)):
            if gradient is self._gradients[i]:  # the memory of the step before
                continue
            if gradient is not None and not gradient.is_contiguous():
                gradient = gradient.contiguous()
            self._gradients[i] = gradient
            slot.grad = None if gradient is None else gradient.data_ptr()
        self.lib.o2o_adam(ctypes.addressof(self.slots), len(self.slots), self.members, *betas, eps, threads())


def layer_sizes(weights: Sequence[Tensor]) -> list[int]:
    """Features of every layer, input first, of weights (M, E, in, out)."""
    sizes = [weights[0].shape[-2], *(w.shape[-1] for w in weights)]
    if any(a.shape[-1] != b.shape[-2] for a, b in pairwise(weights)):
        raise ValueError(f"layers do not fit: {[tuple(w.shape) for w in weights]}")
    return sizes
