"""The process that local jobs are children of: it has the heavy imports done, so that a job begins in milliseconds.

It is alone in its process and has one thread, so it can fork. Orders come as JSON lines on standard input, reports go
to standard output:

    {"start": ID, "command": [...], "environment": {...}, "cores": [...], "log": FILE}     {"signal": ID, "number": 15}
    {"started": ID, "pid": 7}                                                   {"ended": ID, "code": 0, "signal": null}

A command that is this package's worker runs in the fork itself; any other is executed. Every job is a session of its
own, and is killed with the keeper, which is killed with whoever started it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

WORKER = "o2o_smooth.benchmarks.worker"
LIGHT_VARIABLE = "O2O_SMOOTH_KEEPER"
"""Environment variable: `light` leaves the imports to the jobs, for tests with jobs that need none."""
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_HEAVY = (
    WORKER,  # and with it torch and all of ours
    "torch._dynamo",
    "matplotlib.pyplot",
    "minari",
    "mujoco",
    "gymnasium_robotics",
    "o2o_smooth.stability.plots",
    "o2o_smooth.training.pictures",
)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before that
        os._exit(1)


class Keeper:
    """See the module docstring."""

    def __init__(self) -> None:
        self.jobs: dict[int, str] = {}  # pid -> id
        self._rest = b""

    def run(self) -> None:
        """Follow orders until there are none to come, then kill what is left."""
        while True:
            ready, _, _ = select.select([0], [], [], _POLL_S)
            if ready:
                data = os.read(0, 65536)
                if not data:
                    break
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._order(json.loads(line))
            self._reap()
        for pid in self.jobs:
            _kill(pid, signal.SIGKILL)

    def _order(self, order: Mapping[str, Any]) -> None:
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _be(order)
            self.jobs[pid] = order["start"]
            _say(started=order["start"], pid=pid)
        else:
            for pid, job in self.jobs.items():
                if job == order["signal"]:
                    _kill(pid, order["number"])

    def _reap(self) -> None:
        for pid in list(self.jobs):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                continue
            _kill(pid, signal.SIGKILL)  # what it has left behind; its number is still taken
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            job = self.jobs.pop(pid)
            _say(ended=job, code=code if code >= 0 else None, signal=-code if code < 0 else None)


def _kill(pid: int, number: int) -> None:
    """Signal a job's session; before it is one, the process alone."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
    except PermissionError:  # of a zombie, on some systems
        return


def _say(**report: Any) -> None:
    os.write(1, json.dumps(report).encode() + b"\n")


def _be(order: Mapping[str, Any]) -> None:
    """In the fork: become the job; never returns."""
    code = 1
    try:
        die_with_parent(_self)
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.close(null)
        if order["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, order["cores"])
        os.environ.update(order["environment"])
        code = _execute(order["command"])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(command: Sequence[str]) -> int:
    if list(command[:3]) != [sys.executable, "-m", WORKER]:
        os.execvpe(command[0], list(command), os.environ)
    from o2o_smooth.benchmarks.worker import main as work

    return work(command[3:])


_self = os.getpid()


def main() -> None:
    """Begin: import what jobs need, then follow orders."""
    global _self
    _self = os.getpid()
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner, which tells the jobs

    gc.collect()
    gc.freeze()  # pages of these objects stay shared
    Keeper().run()


if __name__ == "__main__":
    main()
