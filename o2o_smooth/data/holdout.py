"""Whole episodes of a dataset that no update sees, and where rows stand once these are left out.

Nothing is copied or moved: a buffer draws from the rows that are left by numbers without gaps, which are turned into
rows of the store when a batch is gathered. So it is the same for data in memory, on a device, or mapped from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from o2o_smooth.data.batch import Transitions
from o2o_smooth.errors import DataError

Ranges = Sequence[Sequence[int]]  # (first row, row after the last), ascending

MIN_EPISODES = 200
"""With fewer, `FEWEST` would be more than a fortieth of the data."""
FEWEST = 5
"""Held-out episodes; fewer say more of their own luck than of the data."""
MIN_ROWS = 256
"""Held-out rows; fewer are too few to measure on, and nothing is held out."""
MOST_ROWS = 0.05
"""Of the data, or twice the share of episodes, where that is more: a few episodes may be most of a dataset."""
_SEED = 20_230_516  # of the choice: every run on one dataset leaves out the same episodes


@dataclass(frozen=True)
class Holdout:
    """Episodes that are held out, and why there are none where there are none."""

    ranges: tuple[tuple[int, int], ...] = ()
    """Rows of each, (first, after the last)."""
    remark: str = ""

    @property
    def rows(self) -> int:
        """How many rows."""
        return sum(stop - first for first, stop in self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {"episodes": len(self.ranges), "rows": self.rows, "remark": self.remark}


def choose_holdout(transitions: Transitions, share: float) -> Holdout:
    """Pick episodes to hold out, one at random out of each of as many equal stretches of the data.

    The choice depends on the episodes' ends and on the share, and on nothing else. Stretches make it fair to data that
    were recorded in an order: by level of play, or as an agent learned.

    Args:
        transitions: The data.
        share: Of the episodes; at least `FEWEST`; 0: none.
    """
    if share == 0.0:
        return Holdout(remark="holdout is 0: offline rows that are looked at are among those trained on")
    ends = transitions.episode_ends
    episodes = len(ends)
    if episodes < MIN_EPISODES:
        return Holdout(
            remark=f"nothing is held out of {episodes} episodes (fewer than {MIN_EPISODES}): offline rows that are "
            f"looked at are among those trained on"
        )
    count = max(FEWEST, round(share * episodes))
    edges = np.arange(count + 1) * episodes // count
    chosen = np.random.default_rng(_SEED).integers(edges[:-1], edges[1:])
    starts = np.append(0, ends[:-1] + 1)
    ranges: list[tuple[int, int]] = []
    left = max(MOST_ROWS, 2 * share) * len(transitions)
    for k in chosen:
        length = int(ends[k] + 1 - starts[k])
        if length <= left:
            ranges.append((int(starts[k]), int(ends[k]) + 1))
            left -= length
    found = Holdout(tuple(ranges))
    if found.rows >= MIN_ROWS:
        return found
    return Holdout(
        remark=f"nothing is held out: it would be {found.rows} rows, fewer than {MIN_ROWS}, and offline rows that are "
        f"looked at are among those trained on; a larger share may do"
    )


class RowMap:
    """Numbers without gaps to rows of a store, of the rows that are left and of those that are held out.

    Args:
        ranges: What is held out.
        total: Rows of the store.
        device: Where numbers come from.

    Raises:
        DataError: The ranges are none of such a store.
    """

    def __init__(self, ranges: Ranges, total: int, device: torch.device) -> None:
        edges = np.array([tuple(r) for r in ranges], np.int64).reshape(-1, 2)
        flat = edges.ravel()
        if (edges[:, 0] >= edges[:, 1]).any() or (np.diff(flat) < 0).any() or flat[0] < 0 or flat[-1] > total:
            raise DataError(f"rows to hold out do not fit a dataset of {total:,} rows: {edges[:3].tolist()} ...")
        lengths = edges[:, 1] - edges[:, 0]
        self.held = int(lengths.sum())
        if self.held == total:
            raise DataError(f"all of the {total:,} rows are held out, which leaves none to learn from")
        before = np.append(0, np.cumsum(lengths))  # rows held out before each range, and in all
        # Numbers at which each range is passed over; and, at the same time, what takes held-out numbers to their rows.
        self._gaps, self._shift, self._begins = (
            torch.from_numpy(x).to(device) for x in (edges[:, 0] - before[:-1], before, before[1:-1])
        )

    @property
    def steps(self) -> tuple[Tensor, Tensor]:
        """The numbers, ascending, at which held-out rows are passed over, and by how many before, between and after."""
        return self._gaps, self._shift

    def left(self, index: Tensor) -> Tensor:
        """Rows (n,) of the numbers (n,) of rows that are left."""
        return index + self._shift.index_select(0, torch.bucketize(index, self._gaps, right=True))

    def apart(self, index: Tensor) -> Tensor:
        """Rows (n,) of the numbers (n,) of held-out rows."""
        return index + self._gaps.index_select(0, torch.bucketize(index, self._begins, right=True))
