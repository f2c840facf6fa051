"""How much memory and disk can still be had: of the machine, of the container, of the process.

Every limit is asked, since the narrowest one counts: a container's limit (cgroups of both versions, each folder up to
the mount) and `ulimit -v` are often far below what the machine has free.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from o2o_smooth.data.store import SCRATCH_VARIABLE

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # cgroups of version 1 say "no limit" with a number near 2^63
MACHINE, CONTAINER, PROCESS = "the machine's free memory", "the container's limit (cgroup)", "ulimit -v"


@dataclass(frozen=True)
class Room:
    """What a process can still take, in bytes."""

    free: int | None
    """None where it cannot be told."""
    limit: str
    """Which limit is the narrowest, in words."""


def memory_left(proc: Path = PROC, cgroup: Path = CGROUP) -> Room:
    """Memory that this process can still have, swap left out.

    Args:
        proc: Where the process file system is mounted.
        cgroup: Where the control groups are mounted.
    """
    known: list[tuple[int, str]] = []
    if (machine := _numbers(proc / "meminfo").get("MemAvailable:")) is not None:
        known.append((1024 * machine, MACHINE))
    known += [(free, CONTAINER) for free in _containers(proc, cgroup)]
    if (left := _left_of_address_space(proc)) is not None:
        known.append((left, PROCESS))
    free, limit = min(known, default=(None, "not told by this system"))
    return Room(free, limit)


def own_memory(proc: Path = PROC) -> int | None:
    """Resident memory of this process in bytes; None where it cannot be told."""
    kib = _numbers(proc / "self" / "status").get("VmRSS:")
    return None if kib is None else 1024 * kib


def peak_memory(proc: Path = PROC) -> int | None:
    """The most that was ever resident of this process, in bytes; None where it cannot be told."""
    kib = _numbers(proc / "self" / "status").get("VmHWM:")
    return None if kib is None else 1024 * kib


def free_disk(folder: Path) -> int | None:
    """Free bytes of the disk that a folder lies on, or would; None where it cannot be told."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def scratch_folder() -> Path:
    """Where data that do not fit into memory are mapped from."""
    return Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())


def lies_in_memory(folder: Path, proc: Path = PROC) -> bool:
    """Whether a folder's "disk" is memory (tmpfs)."""
    try:
        mounts = [line.split() for line in (proc / "mounts").read_text(encoding="utf-8").splitlines()]
        place = folder.resolve()
    except OSError:
        return False
    over = [m for m in mounts if len(m) > 2 and (place == Path(m[1]) or Path(m[1]) in place.parents)]
    return bool(over) and max(over, key=lambda m: len(m[1]))[2] in ("tmpfs", "ramfs")


def _containers(proc: Path, cgroup: Path) -> Iterator[int]:
    """What is left below each limit that the process's control groups set."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            for mount in (cgroup, cgroup / "unified"):
                yield from _levels(mount, path, ("memory.max", "memory.high"), "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes",)
            yield from _levels(cgroup / "memory", path, names, "memory.usage_in_bytes", "total_inactive_file")


def _levels(mount: Path, path: str, limits: tuple[str, ...], usage: str, cache: str) -> Iterator[int]:
    """From the process's group up to the mount; inside a container only the mount may be there to see."""
    own = mount / path.strip("/")
    for folder in (own, *(parent for parent in own.parents if parent == mount or mount in parent.parents)):
        used = _number(folder / usage)
        if used is None:
            continue
        reclaimable = _numbers(folder / "memory.stat").get(cache, 0)  # cached files go when memory is needed
        for limit in (_number(folder / name) for name in limits):
            if limit is not None and limit < UNLIMITED:
                yield max(0, limit - used + reclaimable)


def _left_of_address_space(proc: Path) -> int | None:
    """What `ulimit -v` leaves; None without such a limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    used = _numbers(proc / "self" / "status").get("VmSize:")
    return None if used is None else max(0, limit - 1024 * used)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file that are a name and a number."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
