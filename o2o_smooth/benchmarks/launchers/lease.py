"""Who may run a job: one process at a time, over all machines that see the job's folder.

Every attempt has a file in `attempts/`, numbered. It begins with a line of JSON (who, where), grows by a dot a beat
while the attempt lives, and ends with a line of JSON (how it ended). The highest number owns the job. A file appears
under its number only once (O_EXCL), so two claimants never have the same one.

Whoever wants a job with an unfinished attempt asks it to stop (`TOKEN.stop` beside it) and waits: for its last line, or
until no beat came for `lease_s`. An owner whose beats do not arrive kills its command after `lease_s / 2`, and one that
finds a higher number at once. So a machine that is only cut off or slow stops before its job begins elsewhere; clocks
of machines are never compared. What remains: a machine that is frozen as a whole for longer than `lease_s` runs on for
the time of a beat when it wakes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LEASE_S = 90.0  # longer than the 60 s for which NFS may show a file as it was
BEATS = 8  # in a lease
FOLDER = "attempts"

Sign = Literal["go on", "stop", "lost"]


@dataclass(frozen=True)
class Attempt:
    """What the file of an attempt says."""

    number: int
    beats: int
    """Bytes of its file: a count that moves while it lives."""
    begun: dict[str, Any]
    """First line; empty in the moment before it is written."""
    ended: dict[str, Any] | None
    """Last line; None: it runs, or nobody could write how it ended."""


class Claim:
    """The right to run a job, held by one attempt.

    Args:
        path: The attempt's file.
        token: Name under which the attempt can be asked to stop.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token, self.number = path, token, int(path.name)

    def beat(self) -> Sign:
        """Say that the attempt lives, and hear whether it may go on.

        Raises:
            OSError: The folder cannot be reached.
        """
        if newest(self.path.parent) > self.number:
            return "lost"
        _append(self.path, ".")
        return "stop" if asked_to_stop(self.path.parent, self.token) else "go on"

    def end(self, record: dict[str, Any]) -> None:
        """Write how the attempt ended; the job is free from now on.

        Raises:
            OSError: The folder cannot be written.
        """
        _append(self.path, "\n" + json.dumps(record) + "\n")


def claim(
    job: Path,
    token: str,
    about: dict[str, Any],
    *,
    lease_s: float = LEASE_S,
    given_up: Callable[[], bool] = lambda: False,
    waits_for: Callable[[Attempt], None] = lambda _: None,
) -> Claim | None:
    """Take a job once nobody else has it.

    Args:
        job: The job's folder.
        token: Name of the new attempt.
        about: What its first line says beside where it is.
        lease_s: Time without a beat after which an attempt counts as dead; the same for all claimants.
        given_up: Whether to stop waiting.
        waits_for: Told which attempt is in the way.

    Returns:
        The claim; None: given up, or asked to stop, before it was had.

    Raises:
        OSError: The folder cannot be read or written.
    """
    folder = job / FOLDER
    folder.mkdir(exist_ok=True)
    seen, since, told = (0, 0), time.monotonic(), 0
    while not (given_up() or asked_to_stop(folder, token)):
        last = read(folder, newest(folder))
        if last is None or last.ended is not None or _gone(last.begun) or time.monotonic() - since >= lease_s:
            mine = _new(folder, 1 if last is None else last.number + 1, token, about)
            if mine is not None:
                return mine
            continue
        if (last.number, last.beats) != seen:
            seen, since = (last.number, last.beats), time.monotonic()
        if told != last.number and last.begun:
            told = last.number
            ask_to_stop(folder, str(last.begun["token"]))
            waits_for(last)
        time.sleep(min(0.5, lease_s / BEATS))
    return None


def newest(folder: Path) -> int:
    """Number of the newest attempt; 0: there is none."""
    with contextlib.suppress(FileNotFoundError):
        return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
    return 0


def read(folder: Path, number: int) -> Attempt | None:
    """What the file of an attempt says; None where there is none."""
    try:
        text = (folder / f"{number:04d}").read_text()
    except FileNotFoundError:
        return None
    lines = text.split("\n")
    ended = _json(lines[2]) if len(lines) > 3 else None  # a last line without its end is still being written
    return Attempt(number, len(text), _json(lines[0]) or {}, ended)


def last_of(job: Path, token: str) -> Attempt | None:
    """The newest attempt of a job under a name, or under a part of it; None where there is none."""
    folder = job / FOLDER
    for number in range(newest(folder), 0, -1):
        attempt = read(folder, number)
        if attempt is not None and token in _names(str(attempt.begun.get("token"))):
            return attempt
    return None


def ask_to_stop(folder: Path, token: str) -> None:
    """Ask the attempt of that name to stop in good order; it hears it with its next beat."""
    (folder / f"{token}.stop").touch()


def asked_to_stop(folder: Path, token: str) -> bool:
    """Whether somebody has asked the attempt of that name to stop, or all parts of the name."""
    return any((folder / f"{name}.stop").exists() for name in _names(token))


def part(token: str, which: str) -> str:
    """A name for one of several attempts that are asked to stop under one name."""
    return f"{token}.{which}"


def _names(token: str) -> set[str]:
    """A name, and that of which it is a part."""
    return {token, token.partition(".")[0]}


def here() -> dict[str, Any]:
    """Which process this is: machine, its boot, process and when that began; for people and for `_gone`."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(), "born": _born(os.getpid())}


def _new(folder: Path, number: int, token: str, about: dict[str, Any]) -> Claim | None:
    path = folder / f"{number:04d}"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        os.write(file, (json.dumps({"token": token, **here(), **about}) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)
    return Claim(path, token)


def _append(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, text.encode())
        os.fsync(file)
    finally:
        os.close(file)


def _json(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    return None


def _gone(begun: dict[str, Any]) -> bool:
    """Whether a process was on this machine, since its last boot, and is no more; False where that cannot be known."""
    boot = _boot()
    return boot is not None and begun.get("boot") == boot and _born(int(begun["pid"])) != begun.get("born")


def _boot() -> str | None:
    """This boot of this machine, and the processes that can be seen from here; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None: there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
