"""One attempt of one job, on the machine where it runs: a process between a launcher's worker and the command.

    python -m o2o_smooth.benchmarks.launchers.minder

The first line of standard input is the order, JSON with the fields of `Order`. A further line is `stop SECONDS`, the
grace. When standard input ends, whoever started the minder is gone, and it stops its command in good order. Standard
output has a line of JSON for each thing that happens: `waits`, `runs`, `ended`.

The command has a session of its own. It is asked to stop by SIGTERM to its first process alone, so that it can end its
children itself; what is left after the grace, and whatever it leaves behind when it ends, is killed. It is killed when
the minder dies (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from o2o_smooth.benchmarks.launchers.lease import BEATS, FOLDER, LEASE_S, Attempt, Claim, asked_to_stop, claim

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # Slurm sends them to all; the worker answers, nobody else may die of them
TICK_S = 0.5
LISTEN_S = 2.0  # between looks for a file that asks to stop
END_TRIES, END_PAUSE_S = 4, 0.5  # to write how the attempt ended


@dataclass(frozen=True)
class Order:
    """What to run."""

    job: str
    command: tuple[str, ...]
    folder: str
    log: str
    token: str
    """Name of the attempt; a stop under this name ends it, or keeps it from beginning."""
    via: str = ""
    """What brought it here, for people: Ray's node, Slurm's job."""
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    """Taken where the machine has it, else `folder`."""
    grace_s: float = 30.0
    """From SIGTERM to SIGKILL."""
    lease_s: float = LEASE_S
    detach: bool = False
    """Leave the parent, which may be killed together with its children; standard input still tells of its end."""


class Minder:
    """Runs an order.

    Args:
        order: What to run.
    """

    def __init__(self, order: Order) -> None:
        self.order, self.grace_s = order, order.grace_s
        self.job = Path(order.folder)
        self._stopping: float | None = None  # when it was asked to stop, seconds of the monotonic clock
        self._why = self._killed = ""
        self._sign = "go on"
        self._beaten = time.monotonic()
        self._over = threading.Event()
        self._input: int | None = 0
        self._rest = b""

    def run(self) -> dict[str, Any]:
        """Wait until the job is free, run it, and tell how it ended: fields of `ended`."""
        try:
            mine = claim(
                self.job,
                self.order.token,
                {"via": self.order.via, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "when": _now()},
                lease_s=self.order.lease_s,
                given_up=self._given_up,
                waits_for=self._waits_for,
            )
        except OSError as error:
            return self._tell("ended", code=None, detail=f"cannot use the job's folder {self.job}: {error.strerror}")
        if mine is None:
            return self._tell("ended", code=None, stopped=True, detail=f"{self._why or 'stopped'} before it began")
        ended = self._attempt(mine)
        for _ in range(END_TRIES):
            try:
                mine.end({**ended, "when": _now()})
                break
            except OSError:  # a full disk: the lease runs out by itself
                time.sleep(END_PAUSE_S)
        return ended

    def _attempt(self, mine: Claim) -> dict[str, Any]:
        try:
            command = self._begin(mine)
        except OSError as error:
            what = error.filename or self.order.command[0]
            return self._tell("ended", code=None, failed=True, detail=f"cannot start it: {what}: {error.strerror}")
        self._beaten = time.monotonic()
        threading.Thread(target=self._beat, args=(mine,), daemon=True).start()
        self._tell("runs", pid=command.pid, attempt=mine.number)
        self._mind(command)
        self._over.set()
        _kill_all(command.pid)
        stopped = self._stopping is not None
        detail = self._killed or (self._why if stopped else "")
        return self._tell("ended", code=command.returncode, stopped=stopped, killed=bool(self._killed), detail=detail)

    def _begin(self, mine: Claim) -> subprocess.Popen[bytes]:
        parent, libc = os.getpid(), _libc()

        def tie() -> None:  # runs in the child: the command dies with its minder
            for number in WARNINGS:
                signal.signal(number, signal.SIG_IGN)
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)

        if libc is not None:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command come here, to be killed with it
        cwd = self.order.cwd
        with Path(self.order.log).open("ab") as log:
            log.write(f"--- attempt {mine.number} on {os.uname().nodename}, {self.order.via}, {_now()}\n".encode())
            log.flush()
            return subprocess.Popen(
                self.order.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd if cwd is not None and Path(cwd).is_dir() else self.job,
                env={**os.environ, **self.order.environment, "O2O_SMOOTH_ATTEMPT": str(mine.number)},
                start_new_session=True,
                preexec_fn=tie,
            )

    def _mind(self, command: subprocess.Popen[bytes]) -> None:
        """Until the command has ended: hear what is asked, and see that the job is still ours."""
        asked, since = False, time.monotonic()
        last = since
        while command.poll() is None:
            self._hear(TICK_S)
            now = time.monotonic()
            if now - last > 2 * TICK_S + self.order.lease_s / BEATS:  # frozen, as by Slurm's suspend; a beat tells more
                since = now
            last = now
            if self._sign == "lost":
                self._kill(command, "another attempt has taken the job over")
            elif now - max(self._beaten, since) > self.order.lease_s / 2:
                self._kill(command, f"its folder could not be written for {self.order.lease_s / 2:g} s")
            elif self._sign == "stop":
                self.stop("asked to stop")
            if self._stopping is None:
                continue
            if not asked:
                asked = True
                command.terminate()
            if now - self._stopping > self.grace_s:
                self._kill(command, f"{self._why}; had not stopped {self.grace_s:g} s after SIGTERM")

    def _kill(self, command: subprocess.Popen[bytes], why: str) -> None:
        self._killed = self._killed or f"killed: {why}"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)

    def stop(self, why: str, grace_s: float | None = None) -> None:
        """Ask the command to stop, once; a later call may only shorten the grace."""
        if self._stopping is None:
            self._stopping, self._why = time.monotonic(), why
        if grace_s is not None:
            self.grace_s = min(self.grace_s, grace_s)

    def _beat(self, mine: Claim) -> None:
        """In a thread of its own, for a file system that hangs must not keep the minder from killing its command."""
        every_s = self.order.lease_s / BEATS
        while not self._over.wait(min(every_s, LISTEN_S)):
            begun = time.monotonic()
            with contextlib.suppress(OSError):
                if begun - self._beaten >= every_s:
                    self._sign = mine.beat()
                    self._beaten = begun
                elif asked_to_stop(mine.path.parent, mine.token) and self._sign == "go on":
                    self._sign = "stop"

    def _hear(self, wait_s: float) -> None:
        """Read what was asked on standard input; returns at once when a child ends or a signal comes."""
        inputs = [_wakeup()] if self._input is None else [self._input, _wakeup()]
        ready, _, _ = select.select(inputs, [], [], wait_s)
        if _wakeup() in ready:
            os.read(_wakeup(), 4096)
        if self._input is None or self._input not in ready:
            return
        got = os.read(self._input, 4096)
        if not got:
            self._input = None
            self.stop("whoever started it is gone")
            return
        *lines, self._rest = (self._rest + got).split(b"\n")
        for line in lines:
            if line.startswith(b"stop"):
                self.stop("asked to stop", float(line.split()[1]))

    def _given_up(self) -> bool:
        self._hear(0.0)
        if self._stopping is None and asked_to_stop(self.job / FOLDER, self.order.token):
            self.stop("asked to stop")
        return self._stopping is not None

    def _waits_for(self, other: Attempt) -> None:
        where = f"{other.begun.get('host')}, process {other.begun.get('pid')}"
        self._tell("waits", detail=f"waits until attempt {other.number} on {where} has stopped")

    def _tell(self, what: str, **fields: Any) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(1, (json.dumps({"what": what, **fields}) + "\n").encode())
        return fields


def _kill_all(group: int) -> None:
    """Kill a command's process group, and what it has left to us, its subreaper."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for _ in range(100):  # a child's own orphans come only after it
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = _children(os.getpid())
        if not children:
            return
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


_WAKEUP: list[int] = []


def _wakeup() -> int:
    """A pipe that signals make readable."""
    if not _WAKEUP:
        _WAKEUP.extend(os.pipe())
        for end in _WAKEUP:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(_WAKEUP[1], warn_on_full_buffer=False)
    return _WAKEUP[0]


def main() -> int:
    """Run the order on standard input."""
    line = bytearray()
    while not line.endswith(b"\n"):  # not a byte more: the rest is read as it comes
        byte = os.read(0, 1)
        if not byte:
            return 2
        line += byte
    fields = json.loads(line)
    order = Order(**{**fields, "command": tuple(fields["command"])})
    if order.detach:
        if os.fork():
            return 0
        os.setsid()
    minder = Minder(order)

    def ask(number: int, _: FrameType | None) -> None:
        minder.stop(f"{signal.Signals(number).name} to its minder")

    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    for number in (*WARNINGS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _wakeup()
    minder.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
