"""A replay buffer comes back from its segments as it was, also where the ring has gone round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o2o_smooth.data import replay_files
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.replay_files import Replay, ReplayFiles, check_segments, read_rows
from o2o_smooth.data.store import row_width
from o2o_smooth.errors import CheckpointError

MEMBERS, OBS, ACTION, LANES = 2, 3, 1, 2


def contents(buffer: ReplayBuffer) -> np.ndarray:
    first = max(0, buffer.written - buffer.capacity)
    return buffer.part(first, buffer.written)


def filled(capacity: int) -> ReplayBuffer:
    return ReplayBuffer(MEMBERS, capacity, OBS, ACTION)


def add(buffer: ReplayBuffer, rng: np.random.Generator, steps: int) -> None:
    """Rows of running episodes: nobody knows their returns yet."""
    for _ in range(steps):
        rows = rng.normal(size=(MEMBERS, LANES, row_width(OBS, ACTION))).astype(np.float32)
        rows[..., -3:-1], rows[..., -1] = 0.0, -np.inf
        buffer.add(rows)


@pytest.mark.parametrize("capacity", [1000, 37])  # the second goes round several times
@pytest.mark.parametrize("piece", [2**25, 400])  # the second cuts every segment into several files
def test_rows_and_returns_come_back(capacity: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_files, "PIECE", piece)
    rng = np.random.default_rng(0)
    buffer, files = filled(capacity), ReplayFiles(tmp_path)
    begun = 0  # first row of the running episodes
    for k, steps in enumerate((5, 3, 0, 30, 11, 2)):
        add(buffer, rng, steps)
        if k % 2:  # all episodes end: rows that were written before learn their returns
            for member in range(MEMBERS):
                numbers = np.arange(begun, buffer.written)
                buffer.set_mc_returns(member, numbers, rng.normal(size=len(numbers)).astype(np.float32))
            begun = buffer.written
        elif k:  # the last row of a lane becomes a truncation, after it was kept
            buffer.truncate(1, buffer.written - 1)
        unfinished, settled = min(begun, buffer.written), max(0, buffer.written - LANES)
        segments = files.write(Replay(buffer, settled, unfinished), f"{k:06d}")
        check_segments(tmp_path, segments)
        again = filled(capacity)
        read_rows(again, tmp_path, segments, buffer.written)
        np.testing.assert_array_equal(contents(again), contents(buffer))
        assert again.written == buffer.written
        # Going on from here, as after a kill, is no different.
        files = ReplayFiles(tmp_path, segments, settled=settled, unfinished=unfinished)


def test_a_segment_costs_what_is_new(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    buffer, files = filled(10_000), ReplayFiles(tmp_path)
    add(buffer, rng, 4000)
    first = files.write(Replay(buffer, buffer.written - LANES, 7900), "000001")
    add(buffer, rng, 10)
    second = files.write(Replay(buffer, buffer.written - LANES, 7900), "000002")
    assert second[: len(first)] == first
    assert sum(s["bytes"] for s in second[len(first) :]) < sum(s["bytes"] for s in first) / 50


def test_broken_segments_are_refused(tmp_path: Path) -> None:
    buffer, files = filled(100), ReplayFiles(tmp_path)
    add(buffer, np.random.default_rng(0), 5)
    segments = files.write(Replay(buffer, 8, 0), "000001")
    file = tmp_path / segments[0]["file"]
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        check_segments(tmp_path, segments)
    file.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match="bytes"):
        check_segments(tmp_path, segments)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_segments(tmp_path, segments)
    with pytest.raises(CheckpointError, match="outside"):
        check_segments(tmp_path, [{**segments[0], "file": "../x"}])
    file.write_bytes(good)
    with pytest.raises(CheckpointError, match="does not hold"):
        read_rows(ReplayBuffer(MEMBERS + 1, 100, OBS, ACTION), tmp_path, segments, 10)
