"""A replay buffer's rows on disk, a file for what is new: a checkpoint never costs the size of the whole buffer.

A segment holds the rows written since the one before it, and the Monte-Carlo returns of earlier rows that were not
known then. Segments are put back in their order; what a ring has overwritten since is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector
from o2o_smooth.errors import CheckpointError
from o2o_smooth.files import describe_file, fsync, verify_file, written_whole

PIECE = 32 * 2**20  # bytes of rows in a file, so that writing needs little memory beside the buffer
Segment = Mapping[str, Any]  # file, first, stop, returns_first, bytes, sha256


@dataclass(frozen=True)
class Replay:
    """A buffer, and how far its rows are settled."""

    rows: ReplayBuffer
    settled: int
    """The first row of which more than the return may still change, by number."""
    unfinished: int
    """The first row whose return is not known yet."""

    @classmethod
    def of(cls, collector: Collector) -> Replay:
        """The buffer of a collector: an environment's last row may still become a truncation."""
        rows = collector.buffer
        return cls(rows, max(0, rows.written - collector.per_member), collector.unfinished)


class ReplayFiles:
    """The segments of one buffer.

    Args:
        folder: Where they lie.
        segments: Those of the checkpoint that a run goes on from.
        settled: See `Replay`, when they were written.
        unfinished: The same.
    """

    def __init__(
        self, folder: Path, segments: Sequence[Segment] = (), *, settled: int = 0, unfinished: int = 0
    ) -> None:
        self.folder = folder
        self.segments: list[Segment] = list(segments)
        self._settled, self._unfinished = settled, unfinished

    def write(self, replay: Replay, mark: str) -> list[Segment]:
        """Bring what is new to the disk; gives the segments that make up the buffer now.

        Args:
            replay: The buffer.
            mark: In the names of the new files.

        Raises:
            O2OError: They cannot be written.
        """
        buffer = replay.rows
        alive = max(0, buffer.written - buffer.capacity)
        first = max(self._settled, alive)
        known = max(min(self._unfinished, first), alive)
        segments = [s for s in self.segments if s["stop"] > alive]
        rings, row = 1 if buffer.shared else buffer.members, 4 * _width(buffer)
        piece = max(1, PIECE // (rings * row))
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(first, buffer.written, piece) or [first]:
            stop = min(start + piece, buffer.written)
            if stop == start and known == first:
                break
            content = {"rows": buffer.part(start, stop)}
            if known < first and start == first:
                content["returns"] = buffer.returns(known, first)
            file = self.folder / f"{mark}-{start}-{stop}.safetensors"
            try:
                with written_whole(file) as temporary:
                    save_file(content, temporary)
            except SafetensorError as error:
                raise CheckpointError(f"cannot write {file}: {error}") from error
            segments.append(
                {
                    "file": file.name,
                    "first": start,
                    "stop": stop,
                    "returns_first": known if "returns" in content else start,
                    **describe_file(file),
                }
            )
        fsync(self.folder)
        self.segments, self._settled, self._unfinished = segments, replay.settled, replay.unfinished
        return segments


def check_segments(folder: Path, segments: Sequence[Segment]) -> None:
    """Check that the files are what they were.

    Raises:
        CheckpointError: One is absent or broken.
    """
    for segment in segments:
        name = str(segment.get("file"))
        if Path(name).name != name:
            raise CheckpointError(f"{folder}: a segment of rows lies outside of the folder: {name!r}")
        verify_file(folder / name, segment)


def read_rows(buffer: ReplayBuffer, folder: Path, segments: Sequence[Segment], written: int) -> None:
    """Fill a fresh buffer from its segments, one after the other.

    Raises:
        CheckpointError: A file is broken, or belongs to a buffer of another shape.
    """
    alive = max(0, written - buffer.capacity)
    buffer.set_written(written)
    rings, width = 1 if buffer.shared else buffer.members, _width(buffer)
    for segment in segments:
        file = folder / str(segment["file"])
        try:
            content = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is absent or broken: {error}") from None
        first, stop, returns_first = (int(segment[key]) for key in ("first", "stop", "returns_first"))
        rows = content.get("rows")
        if rows is None or rows.shape != (rings, stop - first, width) or rows.dtype != np.float32:
            raise CheckpointError(f"{file} does not hold {stop - first} rows of {rings} x {width} numbers")
        skipped = max(0, alive - first)
        buffer.put(first + skipped, rows[:, skipped:])
        if "returns" in content:
            skipped = max(0, alive - returns_first)
            buffer.put_returns(returns_first + skipped, content["returns"][:, skipped:])


def _width(buffer: ReplayBuffer) -> int:
    return 2 * buffer.obs_dim + buffer.action_dim + 4
