"""A lock that only one of several workers holds, on one machine or on a file system that many share.

The lock is a file with its owner's name, which the owner touches every few seconds by writing a higher number. It is
free when there is no file, when its owner is a process of this machine that is gone, or when the number has not moved
for `STALE_S` by the clock of who looks (clocks of machines need not agree). An owner that finds another's name in its
file has been taken for dead and must stop.

It says who may write. Who may run on a cluster, and who is asked to stop for that, is the matter of launchers/lease.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEAT_S = 3.0
STALE_S = 60.0
_POLL_S = 0.3


def here() -> str:
    """This machine since its start, as far as processes can see each other."""
    parts = [platform.node()]
    for file in ("/proc/sys/kernel/random/boot_id",):
        with contextlib.suppress(OSError):
            parts.append(Path(file).read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def begun(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's own unit; None where there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self").exists():
            return None
        try:  # no /proc here
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    return None if fields[0] in "ZX" else fields[19]


class Lock:
    """See the module docstring; a context manager once acquired.

    Args:
        path: The lock's file; its folder exists.
        lost: Called, in another thread, when the lock turns out to be another's.
    """

    def __init__(self, path: Path, lost: Callable[[], None] | None = None) -> None:
        self.path = path
        self._lost = lost
        self._id = uuid.uuid4().hex
        self._beat = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: tuple[Any, float] | None = None  # the other's content, and since when
        self._moved = False  # the other has touched it since we look

    def acquire(self) -> bool:
        """Take the lock if it is free now; a stale one has to be looked at for a while, so ask again."""
        if self._create():
            self._begin()
            return True
        other = self._read()
        if other is None:
            self._seen = None  # gone, or being written: the next call finds out
            return False
        now = time.monotonic()
        if self._seen is None or self._seen[0] != other:
            self._moved = self._seen is not None and self._seen[0].get("id") == other.get("id")
            self._seen = (other, now)
        if self._gone(other) or now - self._seen[1] >= STALE_S:
            self._remove(other)
            if self._create():
                self._begin()
                return True
        return False

    def wait(self, until: Callable[[], bool] | None = None, waiting: Callable[[str], None] | None = None) -> bool:
        """Wait for the lock, or until something holds that makes it needless.

        Args:
            until: Asked now and then; once it is true, False is returned without the lock.
            waiting: Told whose lock it is, once.
        """
        told = False
        while not self.acquire():
            if until is not None and until():
                return False
            if not told and waiting is not None and (owner := self.owner()) is not None:
                waiting(owner)
                told = True
            time.sleep(_POLL_S)
        return True

    def owner(self) -> str | None:
        """Who holds it, for people; None where it is free."""
        other = self._read()
        if other is None or self._gone(other):
            return None
        return f"process {other.get('pid')} on {other.get('node')}"

    def alive(self) -> bool:
        """Whether the owner surely lives: a process of this machine, or one that touched it between calls of `acquire`.

        False does not mean that it is dead: one elsewhere may not have come to touch it yet.
        """
        other = self._read()
        return other is not None and not self._gone(other) and (other.get("here") == here() or self._moved)

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        content = self._read()
        if content is not None and content.get("id") == self._id:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # The file

    def _content(self) -> str:
        pid = os.getpid()
        content = {"id": self._id, "node": platform.node(), "here": here(), "pid": pid, "begun": begun(pid)}
        return json.dumps({**content, "beat": self._beat})

    def _create(self) -> bool:
        """Make the file with its content, unless there is one; a link is whole at once, also on NFS."""
        temporary = self.path.with_name(f".{self.path.name}.{self._id}.tmp")
        try:
            temporary.write_text(self._content(), encoding="utf-8")
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            try:
                with self.path.open("x", encoding="utf-8") as file:
                    file.write(self._content())
                return True
            except FileExistsError:
                return False
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else {}

    def _gone(self, other: dict[str, Any]) -> bool:
        """Whether the owner is a process of this machine that is no more."""
        if other.get("here") != here():
            return False
        return begun(int(other.get("pid", -1))) != other.get("begun")

    def _remove(self, stale: dict[str, Any]) -> None:
        """Take a stale lock away; of several that try, one does, and none takes a fresh one."""
        aside = self.path.with_name(f".{self.path.name}.{self._id}.stale")
        try:
            if self._read() != stale:
                return
            self.path.rename(aside)
        except OSError:
            return
        try:
            taken = json.loads(aside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            taken = stale
        if taken.get("id") != stale.get("id") or taken.get("beat") != stale.get("beat"):  # somebody was quicker
            with contextlib.suppress(OSError):
                os.link(aside, self.path)
        with contextlib.suppress(OSError):
            aside.unlink()

    # The heartbeat

    def _begin(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True, name="lock")
        self._thread.start()

    def _run(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{self._id}.beat")
        while not self._stop.wait(BEAT_S):
            content = self._read()
            if content is not None and content.get("id") != self._id:
                if self._lost is not None:
                    self._lost()
                return
            self._beat += 1
            with contextlib.suppress(OSError):  # a full disk; the others wait long
                temporary.write_text(self._content(), encoding="utf-8")
                temporary.replace(self.path)
