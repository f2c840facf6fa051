"""Slurm's queue as its commands tell of it: what state a batch job is in, and what a refusal means."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence

COMMAND_S = 60.0  # for squeue and the like to answer
PASSING = ("job submit limit", "socket timed out", "unable to contact", "temporarily", "try again", "connection")
"""Words of sbatch's errors that pass by themselves, where no limit is named."""
LIMIT = re.compile(r"\b(?:assoc|qos|max)\w+")  # by its name; only those on how many jobs are submitted pass
OF_A_JOB = ("SLURM_", "SRUN_")
OF_ALL = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
"""Variables that begin like those of a job but are for all commands."""
HELD = "launch failed requeued held"
"""Why a job waits that could not be started on its node; it would wait for an administrator."""
NEVER = "BadConstraints"
"""Why a job failed that was taken, but that nothing here can run."""
REQUEUED = ("REQUEUED", "REQUEUE_HOLD")


class Queue:
    """States of batch jobs, asked for not too often.

    Args:
        over: States in which a job stays.
        poll_s: Between two questions.
    """

    def __init__(self, over: Collection[str], poll_s: float) -> None:
        self.over, self.poll_s = over, poll_s
        self._states: dict[str, tuple[str, str]] = {}
        self._asked, self._news = -math.inf, False

    def state(self, number: str | None) -> tuple[str, str]:
        """State and reason of a job, both in Slurm's words; GONE: Slurm knows nothing of it, UNKNOWN: nor do we yet."""
        if number is None:
            return "GONE", ""
        state, reason = self._states.get(number, ("UNKNOWN", ""))
        return ("PENDING" if state in REQUEUED else state), reason

    def news(self) -> bool:
        """Whether Slurm was asked since the last call of this."""
        self._news, news = False, self._news
        return news

    def ask(self, numbers: Sequence[str], *, now: bool = False) -> None:
        """Ask for the states of jobs, unless that was done just now.

        squeue knows the jobs that are over for some minutes (MinJobAge), and at once whether one was requeued. So
        accounting, which is late and not everywhere, is asked only of those that squeue has forgotten.
        """
        if not now and time.monotonic() - self._asked < self.poll_s:
            return
        self._asked, self._news = time.monotonic(), True
        if not numbers:
            return
        queue = run("squeue", "--noheader", "--me", "--states=all", "--format", "%i|%T|%r")
        rows = [line.split("|", 2) for line in (queue or "").splitlines() if line.count("|") >= 2]
        found = {number: (state, reason) for number, state, reason in rows}
        missing = [number for number in numbers if number not in found]
        for number, state in _accounting(missing).items():
            if state in self.over or queue is None:  # else it is behind: squeue would have it
                found[number] = state, ""
        if queue is not None:
            found = dict.fromkeys(numbers, ("GONE", "")) | found
        self._states |= {number: found[number] for number in numbers if number in found}


def _accounting(numbers: Sequence[str]) -> dict[str, str]:
    if not numbers:
        return {}
    told = run("sacct", "-X", "--noheader", "-o", "JobID,State", "--parsable2", "-j", ",".join(numbers))
    rows = [line.split("|") for line in (told or "").splitlines() if line.count("|") == 1]
    return {number: state.split()[0] for number, state in rows if state.strip() and number in numbers}


def named(name: str) -> str | None:
    """Number of the job of mine that has a name, or an empty text; None where Slurm does not tell."""
    told = run("squeue", "--noheader", "--me", "--states=all", "--name", name, "--format", "%i")
    return None if told is None else " ".join(told.split()[:1])


def scancel(number: str) -> None:
    """Cancel a job; it gets SIGTERM, and later SIGKILL."""
    run("scancel", number)


def run(*command: str) -> str | None:
    """What a command prints; None where it cannot be had."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@contextlib.contextmanager
def as_from_outside() -> Iterator[None]:
    """Without what Slurm tells a batch job that this process runs in: sbatch would take it for the new job's, too."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = [name for name in os.environ if inside and name.startswith(OF_A_JOB) and name not in OF_ALL]
    before = {name: os.environ.pop(name) for name in hidden}
    try:
        yield
    finally:
        os.environ.update(before)


def passes(error: str) -> bool:
    """Whether an error of sbatch passes by itself."""
    text = error.lower()
    limits = LIMIT.findall(text)
    return any("submit" in limit for limit in limits) if limits else any(word in text for word in PASSING)


def line(error: str) -> str:
    """What sbatch says, in a line."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    telling = [line.removeprefix("sbatch: error: ") for line in lines if "error" in line.lower()]
    return "; ".join(dict.fromkeys(telling)) or (lines[-1] if lines else "")
