"""Replay buffers on the learner's device, with a members axis.

A row is packed into one float32 vector, so that a write is one copy and a batch is one gather. The offline data of a
run is stored once and shared by all members; each member's online data is its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.data.batch import Batch, Drawn, FloatArray, Packed, Transitions
from o2o_smooth.data.holdout import Ranges, RowMap
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.store import UNKNOWN_RETURN, row_width
from o2o_smooth.data.suspicion import SLICE_ROWS
from o2o_smooth.data.transfer import to_device
from o2o_smooth.errors import ConfigError, DataError


class ReplayBuffer:
    """A ring of packed transitions per member; the oldest row goes first when it is full.

    Args:
        members: M; the axis that `gather` serves.
        capacity: Rows per member.
        obs_dim: O.
        action_dim: A.
        device: Where the rows live.
        shared: One ring for all members (offline data) instead of one each.
    """

    def __init__(
        self,
        members: int,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        *,
        device: torch.device | str = "cpu",
        shared: bool = False,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"a replay buffer needs a capacity of at least 1, got {capacity}")
        self.members, self.capacity, self.shared = members, capacity, shared
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.device = torch.device(device)
        rings = 1 if shared else members
        width = row_width(obs_dim, action_dim)
        try:
            self._rows = torch.zeros((rings * capacity, width), device=self.device)
        except RuntimeError as error:
            gib = rings * capacity * width * 4 / 2**30
            raise ConfigError(
                f"a replay buffer of {rings} x {capacity:,} rows needs {gib:.1f} GiB, which {self.device} does not "
                f"have; use fewer members or a smaller capacity"
            ) from error
        self._written = 0  # rows per ring, ever
        self._reward_map: RewardMap | None = None  # of rows that hold raw rewards
        self._map: RowMap | None = None  # where rows are held out
        self._packed: Packed | None = None

    @classmethod
    def from_transitions(
        cls,
        transitions: Transitions,
        members: int,
        *,
        discount: float,
        reward_map: RewardMap | None = None,
        device: torch.device | str = "cpu",
        held_out: Ranges = (),
    ) -> ReplayBuffer:
        """A full, shared buffer of a dataset's rows, with the rewards and returns of the learner's reward map.

        Rows that are packed already (`data.store`) are served where they lie, in memory or mapped from disk, and not
        copied: the dataset stays readable, with raw rewards; its last column gets the Monte-Carlo returns. Rows that
        are held out stay there too; `len` and `gather` pass over them, and `gather_held_out` has them alone.
        """
        store = transitions.rows
        if store is None:
            store = pack(
                transitions.obs,
                transitions.action,
                transitions.reward,
                transitions.next_obs,
                transitions.terminated,
                transitions.truncated,
            )
        reward_map = reward_map or RewardMap()
        returns = store[:, -1]
        for i in range(0, len(store), SLICE_ROWS):  # in place, so that the rewards are not held once more
            returns[i : i + SLICE_ROWS] = reward_map(transitions.reward[i : i + SLICE_ROWS])
        transitions.mc_returns(discount, returns, out=returns)
        buffer = cls.__new__(cls)
        buffer.members, buffer.capacity, buffer.shared = members, len(store), True
        buffer.obs_dim, buffer.action_dim = transitions.obs.shape[1], transitions.action.shape[1]
        buffer.device = torch.device(device)
        buffer._reward_map = None if reward_map == RewardMap() else reward_map
        try:
            buffer._rows = torch.from_numpy(store).to(buffer.device)
        except RuntimeError as error:
            gib = store.nbytes / 2**30
            raise ConfigError(
                f"the offline rows need {gib:.1f} GiB, which {device} does not have; take a smaller dataset or the CPU"
            ) from error
        buffer._map = RowMap(held_out, len(store), buffer.device) if held_out else None
        buffer._written = len(store) - buffer.held_out
        buffer._packed = None
        return buffer

    def __len__(self) -> int:
        """Rows per ring that can be sampled."""
        return min(self._written, self.capacity)

    @property
    def held_out(self) -> int:
        """Rows that are held out."""
        return 0 if self._map is None else self._map.held

    @property
    def written(self) -> int:
        """Rows ever written per ring; row number `k` sits at `k % capacity` until it is overwritten."""
        return self._written

    def add(self, rows: FloatArray) -> None:
        """Append packed rows (rings, n, width), made by `pack`; the same number for every ring.

        Raises:
            DataError: A shape that does not fit, or a buffer of which some rows are held out.
        """
        if self._map is not None:
            raise DataError("rows cannot be added where some are held out")
        rings = 1 if self.shared else self.members
        width = self._rows.shape[1]
        if rows.ndim != 3 or rows.shape[0] != rings or rows.shape[2] != width:
            raise DataError(f"rows have shape {rows.shape}, expected ({rings}, n, {width})")
        n = rows.shape[1]
        kept = min(n, self.capacity)
        slot = (self._written + n - kept) % self.capacity
        before_end = min(kept, self.capacity - slot)
        self._write(slot, rows[:, n - kept : n - kept + before_end])
        if before_end < kept:
            self._write(0, rows[:, n - kept + before_end :])
        self._written += n

    def _write(self, slot: int, rows: FloatArray) -> None:
        """Copy rows (rings, n, width) to consecutive slots of every ring."""
        if self.device.type == "cpu":
            self._host[:, slot : slot + rows.shape[1]] = rows
        else:
            rings = self._rows.view(-1, self.capacity, rows.shape[2])
            rings[:, slot : slot + rows.shape[1]].copy_(to_device(rows, self.device))

    @property
    def _host(self) -> FloatArray:
        """The rows of a buffer in CPU memory, (rings, capacity, width), without a copy."""
        return self._rows.numpy().reshape(-1, self.capacity, self._rows.shape[1])

    def set_mc_returns(
        self, member: int, rows: NDArray[np.int64], returns: FloatArray, *, truncated: bool = False
    ) -> None:
        """Fill in Monte-Carlo returns of finished episodes; rows already overwritten are left alone.

        Args:
            member: Whose ring.
            rows: Row numbers as `written` counted them, (n,).
            returns: (n,).
            truncated: The last of the rows was the end of its episode, as nobody knew when it was written.
        """
        alive = rows >= self._written - self.capacity
        slots, ring = rows[alive] % self.capacity, 0 if self.shared else member
        ends = truncated and bool(alive[-1:].any())
        at = columns(self.obs_dim, self.action_dim)
        if self.device.type == "cpu":
            self._host[ring, slots, at.mc_return] = returns[alive]
            if ends:
                self._host[ring, slots[-1], at.truncated] = 1.0
        else:
            where = to_device(slots + ring * self.capacity, self.device)
            self._rows[where, at.mc_return] = to_device(returns[alive], self.device)
            if ends:
                self._rows[where[-1], at.truncated] = 1.0

    def newest(self, count: int) -> Batch:
        """The rows that were written last, oldest first: (M, B, ...) with B = count, or all where there are fewer."""
        numbers = np.arange(self._written - min(count, len(self)), self._written) % self.capacity
        return self.gather(torch.from_numpy(numbers).to(self.device).expand(self.members, -1))

    def packed_rows(self, member: int, numbers: NDArray[np.int64]) -> FloatArray:
        """Packed rows (n, width) of a member by their numbers, as `written` counted them; on the CPU."""
        slots = numbers % self.capacity + (0 if self.shared else member * self.capacity)
        return np.asarray(self._rows[torch.from_numpy(slots).to(self.device)].cpu().numpy())

    # Keeping

    def part(self, first: int, stop: int) -> FloatArray:
        """Rows (rings, n, width) with numbers `first` up to `stop`, as `written` counted them; a copy, on the CPU."""
        return np.concatenate([self._lying(slots).cpu().numpy() for slots in self._slots(first, stop)], axis=1)

    def put(self, first: int, rows: FloatArray) -> None:
        """Put packed rows (rings, n, width) back in their places, from number `first` on."""
        done = 0
        for slots in self._slots(first, first + rows.shape[1]):
            n = slots.stop - slots.start
            self._lying(slots).copy_(torch.from_numpy(np.ascontiguousarray(rows[:, done : done + n])))
            done += n

    def returns(self, first: int, stop: int) -> FloatArray:
        """Monte-Carlo returns (rings, n) of such rows; a copy, on the CPU."""
        return np.concatenate([self._lying(s)[..., -1].cpu().numpy() for s in self._slots(first, stop)], axis=1)

    def put_returns(self, first: int, returns: FloatArray) -> None:
        """Put Monte-Carlo returns (rings, n) back."""
        done = 0
        for slots in self._slots(first, first + returns.shape[1]):
            n = slots.stop - slots.start
            self._lying(slots)[..., -1].copy_(torch.from_numpy(np.ascontiguousarray(returns[:, done : done + n])))
            done += n

    def truncate(self, ring: int, number: int) -> None:
        """Mark a row as the last of an episode that was cut short, unless it ended or is overwritten already."""
        if number >= max(0, self._written - self.capacity):
            row = self._rows[ring * self.capacity + number % self.capacity]
            row[-2] = torch.maximum(row[-2], 1.0 - row[-3])

    def set_written(self, written: int) -> None:
        """Say how many rows have been put back, with those that were overwritten before."""
        self._written = written

    def _slots(self, first: int, stop: int) -> list[slice]:
        """Where rows of such numbers lie: one stretch, or two where they go over the ring's end."""
        if stop - first > self.capacity:
            raise DataError(f"rows {first} to {stop} do not lie together in {self.capacity} slots")
        start = first % self.capacity
        end = start + stop - first
        if end <= self.capacity:
            return [slice(start, end)]
        return [slice(start, self.capacity), slice(0, end - self.capacity)]

    def _lying(self, slots: slice) -> Tensor:
        """Consecutive slots of every ring, (rings, n, width), a view."""
        return self._rows.view(-1, self.capacity, self._rows.shape[1])[:, slots]

    def gather(self, index: Tensor) -> Batch:
        """Rows by slot: index (M, B) in [0, len) -> a batch of (M, B, ...) views."""
        if not self.shared:
            index = index + (torch.arange(self.members, device=self.device) * self.capacity)[:, None]
        flat = index.flatten()
        return self._batch(flat if self._map is None else self._map.left(flat.contiguous()), index)

    def gather_held_out(self, index: Tensor) -> Batch:
        """Held-out rows by number: index (M, B) in [0, held_out) -> a batch of (M, B, ...) views."""
        if self._map is None:
            raise DataError("no rows are held out")
        return self._batch(self._map.apart(index.flatten().contiguous()), index)

    def dataset_rows(self, index: Tensor) -> Tensor:
        """Where in the dataset the rows stand that `gather` gives, (n,)."""
        return index if self._map is None else self._map.left(index)

    def drawn(self, index: Tensor) -> Drawn:
        """The same rows, gathered when they are needed, and by whom.

        Raises:
            DataError: The numbers are not int64, or not (M, B); of a shared buffer M may be any number of members,
                of another it must be the buffer's.
        """
        fits = index.dim() == 2 and (self.shared or index.shape[0] == self.members)
        if index.dtype != torch.int64 or not fits:  # native code reads them
            got, members = f"{index.dtype} of shape {tuple(index.shape)}", "M" if self.shared else self.members
            raise DataError(f"row numbers are {got}, expected torch.int64 of ({members}, B)")
        return Drawn(self.packed, len(self), index.contiguous(), self.gather)

    @property
    def packed(self) -> Packed:
        """The rows where they lie, as `kernels.rows` reads them; always the same object."""
        found = self._packed
        if found is None:
            gaps, shift = (None, None) if self._map is None else self._map.steps
            mapped = self._reward_map
            found = self._packed = Packed(
                self._rows,
                self.obs_dim,
                self.action_dim,
                0 if self.shared else self.capacity,
                gaps,
                shift,
                None if mapped is None else (mapped.scale, mapped.shift),
            )
        return found

    def _batch(self, slots: Tensor, index: Tensor) -> Batch:
        rows = self._rows.index_select(0, slots).view(*index.shape, -1)
        batch = unpack(rows, self.obs_dim, self.action_dim)
        if self._reward_map is None:
            return batch
        return batch._replace(reward=batch.reward * self._reward_map.scale + self._reward_map.shift)


class Columns(NamedTuple):
    """Where the parts of a transition stand in a packed row."""

    obs: slice
    next_obs: slice
    action: slice
    reward: int
    terminated: int
    truncated: int
    mc_return: int

    @property
    def width(self) -> int:
        """Floats in a row."""
        return self.mc_return + 1


def columns(obs_dim: int, action_dim: int) -> Columns:
    """The parts of a packed row, whose width is `row_width`."""
    first = 2 * obs_dim + action_dim
    action = slice(2 * obs_dim, first)
    return Columns(slice(0, obs_dim), slice(obs_dim, 2 * obs_dim), action, first, first + 1, first + 2, first + 3)


def pack(
    obs: FloatArray,
    action: FloatArray,
    reward: FloatArray,
    next_obs: FloatArray,
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    mc_return: FloatArray | None = None,
) -> FloatArray:
    """Transitions (..., features) to packed rows (..., width)."""
    at = columns(obs.shape[-1], action.shape[-1])
    rows = np.empty((*reward.shape, at.width), dtype=np.float32)
    rows[..., at.obs], rows[..., at.next_obs], rows[..., at.action] = obs, next_obs, action
    rows[..., at.reward], rows[..., at.terminated], rows[..., at.truncated] = reward, terminated, truncated
    rows[..., at.mc_return] = UNKNOWN_RETURN if mc_return is None else mc_return
    return rows


def unpack(rows: Tensor, obs_dim: int, action_dim: int) -> Batch:
    """Packed rows (M, B, width) to a batch of views."""
    obs, next_obs, action, rest = torch.split(rows, [obs_dim, obs_dim, action_dim, 4], dim=-1)
    reward, terminated, truncated, mc_return = rest.unbind(-1)
    return Batch(obs, action, reward, next_obs, terminated, truncated, mc_return)


def concatenate(a: Batch, b: Batch) -> Batch:
    """Rows of both batches, along the batch axis."""
    return Batch(*(torch.cat([x, y], dim=1) for x, y in zip(a, b, strict=True)))
