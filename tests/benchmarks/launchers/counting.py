"""Jobs that count: each unit of work is a line of a file, and a new attempt goes on after the last one.

Half way they wait for a file `go`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from o2o_smooth.benchmarks.launchers.base import Ended, Job, Launcher

SCRIPT = """
import os, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
units, pause = int(sys.argv[1]), float(sys.argv[2])
record = os.open("record", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
with open("record") as file:
    done = len(file.readlines())
print("counts from", done, flush=True)
for unit in range(done, units):
    while unit == units // 2 and not os.path.exists("go") and not stopped:
        time.sleep(0.02)
    time.sleep(pause)
    os.write(record, f"{unit} {os.environ['O2O_SMOOTH_ATTEMPT']}\\n".encode())
    if stopped:
        sys.exit(75)
"""
TRIES = 6


def counting_job(folder: Path, name: str, units: int, pause: float = 0.05, **needs: object) -> Job:
    job = folder / name
    job.mkdir(parents=True)
    script = f"import os; os.chdir({str(job)!r})\n{SCRIPT}"
    return Job(name, (sys.executable, "-c", script, str(units), str(pause)), job, job / "job.log", **needs)  # type: ignore[arg-type]


def go(job: Job) -> None:
    (job.folder / "go").touch()


def counted(job: Job) -> list[int]:
    """The units in the order in which they were done."""
    record = job.folder / "record"
    return [int(line.split()[0]) for line in record.read_text().splitlines()] if record.exists() else []


def attempts(job: Job) -> list[int]:
    """The attempts that did something."""
    return sorted({int(line.split()[1]) for line in (job.folder / "record").read_text().splitlines()})


def drive(launcher: Launcher, jobs: Sequence[Job], tick: Callable[[], None], within_s: float = 120.0) -> list[Ended]:
    """The least that a runner does: start what has not ended well, again where it was lost or interrupted."""
    waiting, tries = {job.id: job for job in jobs}, Counter[str]()
    everything = dict(waiting)
    ends: list[Ended] = []
    until = time.monotonic() + within_s
    while waiting or launcher.running():
        assert time.monotonic() < until, (ends, launcher.running())
        for job in [job for job in waiting.values() if launcher.room_for(job)]:
            tries[job.id] += 1
            assert tries[job.id] <= TRIES, ends
            launcher.start(waiting.pop(job.id))
        for end in launcher.poll():
            ends.append(end)
            if end.outcome in ("lost", "interrupted"):
                waiting[end.job] = everything[end.job]
        tick()
        time.sleep(0.05)
    return ends


def descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [root]
    while todo:
        todo.extend(children := parents.get(todo.pop(), []))
        found.extend(children)
    return found


def alive(text: str) -> list[int]:
    """Processes, no zombies, that have a text in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
