"""What a launcher is: it starts commands somewhere and tells how they ended. It knows nothing of studies.

A job is a command that may be started again at any time: it goes on where an earlier attempt stopped, and ends at once
where there is nothing left to do. So a launcher never has to know whether work was lost, only that a command has ended.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Outcome = Literal["done", "failed", "interrupted", "lost"]
"""How an attempt ended. `done`: exit code 0. `interrupted`: code `INTERRUPTED`, the command stopped in good order and
goes on when started again. `lost`: it was killed, or its machine went away. `failed`: any other code, which another
attempt would only repeat."""

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)  # the program's own doing
TERMINATED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # how a shell tells of a signal
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Environment variables that a job gets its number of cores in."""


@dataclass(frozen=True)
class Job:
    """One command, and what it needs."""

    id: str
    """Unique in a study; letters, digits, `-`, `_` and `.`."""
    command: tuple[str, ...]
    """Program and arguments; run in `folder`'s parent process environment plus `environment`."""
    folder: Path
    """The job's own folder, on a file system that every machine of the launcher sees; it exists."""
    log: Path
    """Takes standard output and error of every attempt, appended."""
    cpus: int = 1
    """Cores."""
    gpus: float = 0.0
    """Share of GPUs: 0.25 lets four such jobs share one."""
    memory: int | None = None
    """Bytes of memory, where known."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables."""


@dataclass(frozen=True)
class Ended:
    """An attempt that has come to its end."""

    job: str
    outcome: Outcome
    where: str
    """Machine and process, for people."""
    detail: str = ""
    """Why, in a line, where it is known: a signal's name, a lost node, an exit code."""


def outcome_of(code: int, *, stopped: bool = False) -> tuple[Outcome, str]:
    """Outcome and detail of an attempt whose command has ended by itself or of a signal.

    Args:
        code: Exit code; negative: minus the number of a signal, as `subprocess` has it.
        stopped: It had been asked to stop: then dying of that is an interruption.
    """
    if code == 0:
        return "done", ""
    if code == INTERRUPTED:
        return "interrupted", "stopped in good order"
    if stopped and (code in TERMINATED or code in (-signal.SIGTERM, -signal.SIGINT)):
        return "interrupted", "stopped by SIGTERM"
    if code > 0:
        return "failed", f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if -code in CRASHES:
        return "failed", f"crashed with {name}"
    return "lost", f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


class Launcher(Protocol):
    """Somewhere that jobs run. Not thread-safe; every call returns soon."""

    name: str
    keep: bool
    """Whether `close` leaves its jobs at the cluster; a runner that is started again finds them."""

    def room_for(self, job: Job) -> bool:
        """Whether `start` would begin it now, not queue it; a cluster with a queue of its own always has room."""

    def start(self, job: Job) -> None:
        """Start a job, or hand it to the cluster.

        Raises:
            LaunchError: It can never run here: it asks for more than any machine has.
        """

    def running(self) -> dict[str, str]:
        """Where each started job is, by id: machine and process, or `queued`."""

    def poll(self) -> list[Ended]:
        """The attempts that have ended since the last call."""

    def cancel(self, job: str) -> None:
        """Ask a job to stop in good order (SIGTERM); `poll` tells when it has."""

    def close(self, grace_s: float = 10.0) -> None:
        """Stop all jobs in good order, kill what is left after the grace, give back what was taken; see `keep`."""
