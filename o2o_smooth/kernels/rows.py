"""Row numbers and encoded rows by the native kernels (rows.c), one call each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
from torch import Tensor

from o2o_smooth.kernels.cpu import library, threads

HIGHEST = 2**28 - 1  # from here on torch's generator makes one number of two


class _Rows(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("gaps", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("holes", ctypes.c_int64),
        ("ring", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("obs_dim", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("mean", ctypes.c_void_p),
        ("std", ctypes.c_void_p),
        ("center", ctypes.c_void_p),
        ("half", ctypes.c_void_p),
        ("limit", ctypes.c_float),
        ("reward_scale", ctypes.c_float),
        ("reward_shift", ctypes.c_float),
        ("mapped", ctypes.c_int64),
    )


class PackedRows(Protocol):
    """Packed rows (`data.batch.Packed`)."""

    @property
    def rows(self) -> Tensor:
        """(rings x capacity, width)."""

    @property
    def obs_dim(self) -> int:
        """O."""

    @property
    def action_dim(self) -> int:
        """A."""

    @property
    def ring(self) -> int:
        """Rows between the rings of two members; 0: all share one."""

    @property
    def gaps(self) -> Tensor | None:
        """Numbers at which rows are passed over."""

    @property
    def shift(self) -> Tensor | None:
        """By how many in all: before, between and after them."""

    @property
    def reward(self) -> tuple[float, float] | None:
        """Scale and shift of rewards; None: as they lie."""


class Encoder:
    """Gathers rows by number and encodes them (`heads.encode_batch`), into memory that stays.

    Args:
        scales: Mean and deviation of observations, (O,) each; centre and half width of the action box, (A,) each.
        limit: Bound of encoded actions.
        joined: Observations and actions side by side, (M, B, O + A).
        following: Next observations, (M, B, O).
        rest: Reward, terminated, truncated and Monte-Carlo return, (4, M, B).
    """

    def __init__(self, scales: Sequence[Tensor], limit: float, joined: Tensor, following: Tensor, rest: Tensor) -> None:
        self._call = library().o2o_rows
        self._from = _Rows(limit=limit)
        self._from.mean, self._from.std, self._from.center, self._from.half = (x.data_ptr() for x in scales)
        self._at, self._shape = ctypes.addressof(self._from), joined.shape[:2]
        self._kept = (*scales, joined, following, rest)
        self._out = joined.data_ptr(), following.data_ptr(), rest.data_ptr()
        self._packed: PackedRows | None = None

    def __call__(self, packed: PackedRows, size: int, index: Tensor) -> None:
        """Encode rows.

        Args:
            packed: Where they lie.
            size: Row numbers that there are.
            index: Numbers of the rows, (M, B) int64, contiguous.

        Raises:
            IndexError: A number beyond the rows that there are.
        """
        members, count = self._shape
        if packed is not self._packed:
            self._point(packed)
        self._from.size = size
        bad = self._call(self._at, index.data_ptr(), members, count, *self._out, threads())
        if bad >= 0:
            raise IndexError(f"row number {index.flatten()[bad].item()} is not among the {size:,} rows there are")

    def _point(self, packed: PackedRows) -> None:
        at = self._from
        at.rows, at.obs_dim, at.dim, at.ring = packed.rows.data_ptr(), packed.obs_dim, packed.action_dim, packed.ring
        at.holes = 0
        if packed.gaps is not None and packed.shift is not None:
            at.gaps, at.shift, at.holes = packed.gaps.data_ptr(), packed.shift.data_ptr(), len(packed.gaps)
        at.mapped = packed.reward is not None
        at.reward_scale, at.reward_shift = packed.reward or (1.0, 0.0)
        self._packed = packed


@cache
def _seeds(seeds: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([seed & (2**64 - 1) for seed in seeds], np.uint64)


def integers(seeds: tuple[int, ...], name: int, step: int, high: int, out: Tensor) -> None:
    """Fill `out` with integers in [0, high), the numbers of `draws.Draws`.

    Args:
        seeds: One per member.
        name: Hash of the draw's name.
        step: Of the first draw.
        high: At most `HIGHEST`.
        out: Where to, (S, M, count) for S steps one after the other, int64, contiguous.
    """
    steps, members, count = out.shape
    library().o2o_integers(
        _seeds(seeds).ctypes.data, name, step & (2**64 - 1), steps, members, count, high, out.data_ptr()
    )
