"""Tensor operations of a tape as calls of a native kernel (small.c), where that gives the same bits.

A blend of two losses, a join of two inputs or a copy into another order is some hundred numbers: torch's way there
takes ten times as long as the numbers do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from o2o_smooth.kernels.calls import Call

MOST = 1 << 16  # numbers; torch is as good at larger ones
_AXES = 4
_COPY, _SUM = 0, 6
_ALONE = {"clone": _COPY, "neg": 1}
_PAIRS = {"add": 2, "sub": 3, "mul": 4, "div": 5}

_Steps = ctypes.c_int64 * _AXES


class _Small(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("operation", ctypes.c_int64),
        ("n", _Steps),
        ("by_a", _Steps),
        ("by_b", _Steps),
        ("by_out", _Steps),
    )


def _small(operation: int, a: Tensor, b: Tensor | None, out: Tensor) -> Call:
    """One call.

    Args:
        operation: Its number in small.c.
        a: First operand, broadcast to `out`.
        b: Second one, where it takes two.
        out: Takes the result; memory of its own.
    """
    other = a if b is None else b
    n, by = _axes(out.shape, [t.expand(out.shape).stride() for t in (a, other, out)])
    at = _Small(a.data_ptr(), None if b is None else b.data_ptr(), out.data_ptr(), operation, n, *by)
    return Call("small", (at,), kept=(a, b, out))


def small(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> list[Call] | None:
    """An operation as calls of the kernel; None where it is not one of theirs.

    Args:
        func: The operation's overload.
        args: What it was given.
        kwargs: By name.
        out: What it made, in memory of its own.
    """
    name, rest = func.overloadpacket.__name__, set(kwargs) - {"memory_format"}
    if rest or not _takes(out) or out.dim() > _AXES:
        return None
    if name == "cat":
        return _cat(*args, out=out)
    if name == "sum" and func._overloadname == "dim_IntList":
        return _sum(*args, out=out)
    if name in _ALONE and len(args) == 1 and _takes(args[0]):
        return [_small(_ALONE[name], args[0], None, out)]
    if name == "rsub" and len(args) == 2:
        name, args = "sub", args[::-1]
    if name not in _PAIRS or len(args) != 2 or func._overloadname not in ("Tensor", "Scalar"):
        return None
    operands = [_operand(x) for x in args]
    if any(x is None for x in operands):
        return None
    return [_small(_PAIRS[name], operands[0], operands[1], out)]  # type: ignore[arg-type]


def _operand(x: object) -> Tensor | None:
    if isinstance(x, Tensor):
        return x if _takes(x) else None
    return torch.tensor(float(x), dtype=torch.float32) if type(x) in (int, float) else None  # type: ignore[arg-type]


def _takes(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and 0 < x.numel() <= MOST and not x.is_neg()


def _cat(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor) -> list[Call] | None:
    if not all(_takes(t) and t.dim() == out.dim() for t in tensors):
        return None
    ends = list(accumulate(t.shape[dim] for t in tensors))
    parts = [out.narrow(dim, end - t.shape[dim], t.shape[dim]) for t, end in zip(tensors, ends, strict=True)]
    return [_small(_COPY, t, None, part) for t, part in zip(tensors, parts, strict=True)]


def _sum(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, *, out: Tensor) -> list[Call] | None:
    if not dims or len(dims) != 1 or not x.dim() or not _takes(x):
        return None
    if x.shape[dims[0]] != 2:  # of more, torch's order would matter
        return None
    first, second = x.unbind(dims[0])
    return [_small(_SUM, first, second, out.squeeze(dims[0]) if keepdim else out)]


def _axes(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[Any, list[Any]]:
    """Sizes and steps of four axes; those that follow each other in all memories are one."""
    n: list[int] = []
    by: list[list[int]] = []
    for size, steps in zip(shape, zip(*strides, strict=True), strict=True):
        if size == 1:
            continue
        if n and all(outer == inner * size for outer, inner in zip(by[-1], steps, strict=True)):
            n[-1], by[-1] = n[-1] * size, list(steps)
        else:
            n, by = [*n, size], [*by, list(steps)]
    missing = _AXES - len(n)
    sizes = [1] * missing + n
    columns = [[0] * len(strides)] * missing + by
    return _Steps(*sizes), [_Steps(*column) for column in zip(*columns, strict=True)]
