"""Room for what a run writes: whether its folder can be written at all, and how much will go there."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o2o_smooth.data.room import free_disk
from o2o_smooth.data.store import row_width
from o2o_smooth.errors import ConfigError
from o2o_smooth.files import why
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.memory import FLOAT, Shape, parameters

LOGS = 2**20  # bytes a seed, for log files and pictures; they are small
AGENTS_KEPT = 3  # at the switch, the best, at the end


@dataclass(frozen=True)
class DiskPart:
    """Something that a run writes."""

    name: str
    size: int


def check_writable(out: Path) -> None:
    """Refuse a run's folder that cannot be written, before anything is loaded; nothing is written to find out.

    Raises:
        ConfigError: It, or the folder that it would be made in, is read-only.
    """
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not place.is_dir():
        raise ConfigError(f"{out} cannot be made, {place} is a file; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and bool(os.statvfs(place).f_flag & os.ST_RDONLY)
        error = OSError(errno.EROFS if read_only else errno.EACCES, "")
        raise ConfigError(f"{out} cannot be written: {why(error, place / 'manifest.json')} (--out)")


def disk_parts(config: RunConfig[Any], shape: Shape, members: int) -> list[DiskPart]:
    """What a run, or several that share a population, will write, in bytes.

    Args:
        config: The settings that they share.
        shape: Widths of observations and actions.
        members: Seeds of all of them.
    """
    trained, targets = parameters(config, shape)
    each = FLOAT * (3 * trained + targets) * members  # with Adam's moments
    parts = [DiskPart("agents in checkpoints/", AGENTS_KEPT * each), DiskPart("logs and pictures", LOGS * members)]
    rows = min(config.buffer_size, config.online_steps + config.num_envs) if config.online_steps else 0
    size = FLOAT * row_width(shape.obs_dim, shape.action_dim) * rows * members
    if config.checkpoints.save_checkpoints:
        # One more is written before the oldest goes; the replay rows lie there once, and once more where a ring wraps.
        wraps = config.online_steps > config.buffer_size
        parts.append(DiskPart("checkpoints in resume/", (config.checkpoints.keep_checkpoints + 1) * each))
        parts.append(DiskPart("replay rows in resume/", size * (2 if wraps else 1)))
    if config.save_online and rows:
        parts.append(DiskPart("online data", size))
    return parts


def room_warning(config: RunConfig[Any], shape: Shape, out: Path, members: int) -> str | None:
    """One line where the disk has less room than the run will probably take; None where it has enough."""
    parts, free = disk_parts(config, shape, members), free_disk(out)
    total = sum(part.size for part in parts)
    if free is None or total <= free:
        return None
    largest = max(parts, key=lambda part: part.size)
    return (
        f"warning: the run will write about {sized(total)} and {sized(free)} are free where {out} is; most of it are "
        f"{largest.name} ({sized(largest.size)}). Free some space, choose another --out, a smaller --buffer-size, or "
        f"--no-save-online"
    )


def sized(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
