"""What a run collected online, kept as datasets: a file a seed, in D4RL's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.hdf5 import write_hdf5
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.sources import ONLINE_FOLDER


def write_online(
    out: Path,
    buffer: ReplayBuffer,
    seeds: Sequence[int],
    *,
    num_envs: int,
    reward_map: RewardMap,
    record: Mapping[str, Any],
    members: Sequence[int] | None = None,
) -> None:
    """Write `out/online/seed-N.hdf5`, with raw rewards; a lane whose last episode still ran ends with a truncation.

    Args:
        out: The run's folder.
        buffer: The members' online rows.
        seeds: Of the members to write.
        num_envs: Lanes per member, whose steps alternate in the buffer.
        reward_map: Of the rewards in the buffer, which is undone.
        record: Goes into the files.
        members: Their places in the buffer; default: the first ones.
    """
    for member, seed in zip(range(len(seeds)) if members is None else members, seeds, strict=True):
        lanes = [_lane(buffer, member, lane, num_envs, reward_map) for lane in range(min(num_envs, buffer.written))]
        joined = Transitions(*(np.concatenate(arrays) for arrays in zip(*lanes, strict=True)))
        write_hdf5(out / ONLINE_FOLDER / f"seed-{seed}.hdf5", joined, {**record, "seed": seed})


def _lane(buffer: ReplayBuffer, member: int, lane: int, num_envs: int, reward_map: RewardMap) -> list[Any]:
    """One lane's steps, oldest first, as the arrays of `Transitions`."""
    oldest = buffer.written - len(buffer)
    numbers = np.arange(oldest + (lane - oldest) % num_envs, buffer.written, num_envs)
    rows = buffer.packed_rows(member, numbers)
    o, a = buffer.obs_dim, buffer.action_dim
    # Undone in float64: exact for shifts of whole numbers, else to the rounding of the mapped reward.
    reward = (rows[:, -4].astype(np.float64) - reward_map.shift) / reward_map.scale
    terminated, truncated = rows[:, -3] > 0.5, rows[:, -2] > 0.5
    if len(rows):
        truncated[-1] |= not terminated[-1]
    return [
        rows[:, :o],
        rows[:, 2 * o : 2 * o + a],
        reward.astype(np.float32),
        rows[:, o : 2 * o],
        terminated,
        truncated,
    ]
