"""Replay buffers on the learner's device, with a members axis.

A row is packed into one float32 vector, so that a write is one copy and a batch is one gather. The offline data of a
run is stored once and shared by all members; each member's online data is its own.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.data.batch import Batch, FloatArray, Transitions
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.store import UNKNOWN_RETURN, row_width
from o2o_smooth.data.suspicion import SLICE_ROWS
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

    @classmethod
    def from_transitions(
        cls,
        transitions: Transitions,
        members: int,
        *,
        discount: float,
        reward_map: RewardMap | None = None,
        device: torch.device | str = "cpu",
    ) -> ReplayBuffer:
        """A full, shared buffer of a dataset's rows, with the rewards and returns of the learner's reward map.

        Rows that are packed already (`data.store`) are served where they lie, in memory or mapped from disk, and not
        copied: the dataset stays readable, with raw rewards; its last column gets the Monte-Carlo returns.
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
        buffer._written = len(store)
        return buffer

    def __len__(self) -> int:
        """Rows per ring that can be sampled."""
        return min(self._written, self.capacity)

    @property
    def written(self) -> int:
        """Rows ever written per ring; row number `k` sits at `k % capacity` until it is overwritten."""
        return self._written

    def add(self, rows: FloatArray) -> None:
        """Append packed rows (rings, n, width), made by `pack`; the same number for every ring.

        Raises:
            DataError: A shape that does not fit.
        """
        rings = 1 if self.shared else self.members
        width = self._rows.shape[1]
        if rows.ndim != 3 or rows.shape[0] != rings or rows.shape[2] != width:
            raise DataError(f"rows have shape {rows.shape}, expected ({rings}, n, {width})")
        n = rows.shape[1]
        kept = rows[:, max(0, n - self.capacity) :]
        start = self._written + n - kept.shape[1]
        slots = (start + torch.arange(kept.shape[1])) % self.capacity
        flat = (torch.arange(rings)[:, None] * self.capacity + slots).flatten()
        self._rows[flat.to(self.device)] = torch.from_numpy(np.ascontiguousarray(kept)).flatten(0, 1).to(self.device)
        self._written += n

    def set_mc_returns(self, member: int, rows: NDArray[np.int64], returns: FloatArray) -> None:
        """Fill in Monte-Carlo returns of finished episodes; rows already overwritten are left alone.

        Args:
            member: Whose ring.
            rows: Row numbers as `written` counted them, (n,).
            returns: (n,).
        """
        alive = rows >= self._written - self.capacity
        slots = rows[alive] % self.capacity + (0 if self.shared else member * self.capacity)
        self._rows[torch.from_numpy(slots).to(self.device), -1] = torch.from_numpy(returns[alive]).to(self.device)

    def packed_rows(self, member: int, numbers: NDArray[np.int64]) -> FloatArray:
        """Packed rows (n, width) of a member by their numbers, as `written` counted them; on the CPU."""
        slots = numbers % self.capacity + (0 if self.shared else member * self.capacity)
        return np.asarray(self._rows[torch.from_numpy(slots).to(self.device)].cpu().numpy())

    def gather(self, index: Tensor) -> Batch:
        """Rows by slot: index (M, B) in [0, len) -> a batch of (M, B, ...) views."""
        if not self.shared:
            index = index + (torch.arange(self.members, device=self.device) * self.capacity)[:, None]
        rows = self._rows.index_select(0, index.flatten()).view(*index.shape, -1)
        batch = unpack(rows, self.obs_dim, self.action_dim)
        if self._reward_map is None:
            return batch
        return batch._replace(reward=batch.reward * self._reward_map.scale + self._reward_map.shift)


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
    if mc_return is None:
        mc_return = np.full(reward.shape, UNKNOWN_RETURN, np.float32)
    columns = [
        obs,
        next_obs,
        action,
        reward[..., None],
        terminated[..., None],
        truncated[..., None],
        mc_return[..., None],
    ]
    return np.concatenate([np.asarray(c, np.float32) for c in columns], axis=-1)


def unpack(rows: Tensor, obs_dim: int, action_dim: int) -> Batch:
    """Packed rows (M, B, width) to a batch of views."""
    obs, next_obs, action, rest = torch.split(rows, [obs_dim, obs_dim, action_dim, 4], dim=-1)
    reward, terminated, truncated, mc_return = rest.unbind(-1)
    return Batch(obs, action, reward, next_obs, terminated, truncated, mc_return)


def concatenate(a: Batch, b: Batch) -> Batch:
    """Rows of both batches, along the batch axis."""
    return Batch(*(torch.cat([x, y], dim=1) for x, y in zip(a, b, strict=True)))
