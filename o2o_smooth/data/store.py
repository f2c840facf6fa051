"""Room for transitions: one packed row a step, in memory or, where it does not fit, in a file that is mapped.

A source fills the rows once; `Transitions` are views of them and a replay buffer serves batches from them, so a dataset
is never held twice.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray, Transitions
from o2o_smooth.data.suspicion import SLICE_ROWS  # rows at a time, so that no step needs memory for all
from o2o_smooth.errors import DataError

EXTRA = 4  # reward, terminated, truncated, Monte-Carlo return
MEMORY_VARIABLE = "O2O_SMOOTH_DATA_GIB"
"""Environment variable: GiB of memory that a dataset may take before it is kept on disk; default: half of the free."""
SCRATCH_VARIABLE = "O2O_SMOOTH_SCRATCH"
"""Environment variable: folder of the files that such datasets are mapped from; default: the temporary folder."""
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN_RETURN = -float("inf")  # Monte-Carlo return of a step whose episode has not ended yet


def row_width(obs_dim: int, action_dim: int) -> int:
    """Floats in a packed row: obs, next_obs, action, reward, terminated, truncated, Monte-Carlo return."""
    return 2 * obs_dim + action_dim + EXTRA


class RowStore:
    """Packed rows (N, W) and the views of their parts.

    Raises:
        DataError: Neither memory nor disk has room; the text says how much is needed and what to do.
    """

    def __init__(self, rows: int, obs_dim: int, action_dim: int, *, memory_bytes: int | None = None) -> None:
        self.obs_dim, self.action_dim = obs_dim, action_dim
        shape = (rows, row_width(obs_dim, action_dim))
        size = shape[0] * shape[1] * 4
        limit = memory_limit() if memory_bytes is None else memory_bytes
        self.mapped = size > limit
        try:
            self.rows: FloatArray = _mapped(shape, size) if self.mapped else np.empty(shape, dtype=np.float32)
            self.terminated = np.zeros(rows, dtype=np.bool_)
            self.truncated = np.zeros(rows, dtype=np.bool_)
        except MemoryError:
            raise DataError(_no_room(size, "memory")) from None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def obs(self) -> FloatArray:
        """(N, O), a view."""
        return self.rows[:, : self.obs_dim]

    @property
    def next_obs(self) -> FloatArray:
        """(N, O), a view."""
        return self.rows[:, self.obs_dim : 2 * self.obs_dim]

    @property
    def action(self) -> FloatArray:
        """(N, A), a view."""
        return self.rows[:, 2 * self.obs_dim : 2 * self.obs_dim + self.action_dim]

    @property
    def reward(self) -> FloatArray:
        """(N,), a view."""
        return self.rows[:, -EXTRA]

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the rows that are not in `mask`, (N,), in place."""
        if mask.all():
            return
        filled = 0
        for i in range(0, len(self.rows), SLICE_ROWS):
            kept = self.rows[i : i + SLICE_ROWS][mask[i : i + SLICE_ROWS]]
            self.rows[filled : filled + len(kept)] = kept  # never ahead of what is read
            filled += len(kept)
        self.rows = self.rows[:filled]
        self.terminated, self.truncated = self.terminated[mask], self.truncated[mask]

    def transitions(self) -> Transitions:
        """Views of the parts, validated.

        Raises:
            DataError: There are none, or one holds NaN or infinity.
        """
        rows = self.rows
        for i in range(0, len(rows), SLICE_ROWS):
            rows[i : i + SLICE_ROWS, -3] = self.terminated[i : i + SLICE_ROWS]
            rows[i : i + SLICE_ROWS, -2] = self.truncated[i : i + SLICE_ROWS]
            rows[i : i + SLICE_ROWS, -1] = UNKNOWN_RETURN
        return Transitions(
            self.obs, self.action, self.reward, self.next_obs, self.terminated, self.truncated, rows=self.rows
        )


def memory_limit() -> int:
    """Bytes that a dataset may take in memory: what the environment variable says, or half of what is free."""
    configured = os.environ.get(MEMORY_VARIABLE)
    if configured is not None:
        try:
            gib = float(configured)
        except ValueError:
            gib = -1.0
        if not gib >= 0:
            raise DataError(f"{MEMORY_VARIABLE} is {configured!r}, expected a number of GiB")
        return int(min(gib, 2.0**32) * 2**30)
    free = free_memory()
    return 2**62 if free is None else free // 2


def free_memory() -> int | None:
    """Bytes of memory that can still be had, on the machine and in the container; None where that cannot be told."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        cache = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))  # goes when needed
        if limit != "max":
            known.append(max(0, int(limit) - used + cache))
    except (OSError, ValueError, IndexError):
        pass
    return min(known, default=None)


def _mapped(shape: tuple[int, int], size: int) -> FloatArray:
    """Rows in a file without a name, which is gone with the process."""
    folder = os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir()
    try:
        if shutil.disk_usage(folder).free < size:
            raise DataError(_no_room(size, f"{folder}, where it would be mapped from"))
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, and not as a bus error later
            return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    except OSError as error:
        raise DataError(f"{_no_room(size, folder)} ({error.strerror})") from error


def _no_room(size: int, where: str) -> str:
    return (
        f"the dataset needs {size / 2**30:.2f} GiB, which is not free in {where}; free some, or name another folder "
        f"with {SCRATCH_VARIABLE}, or use a smaller dataset"
    )
