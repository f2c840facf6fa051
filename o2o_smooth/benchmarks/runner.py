"""Bringing a study to its end: what is ready is started, what was lost is started again, what failed is told."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from o2o_smooth.benchmarks.job_lock import STALE_S, Lock
from o2o_smooth.benchmarks.launchers.base import Ended, Job, Launcher
from o2o_smooth.benchmarks.pretrained import CACHE_VARIABLE
from o2o_smooth.benchmarks.study import PlannedJob, Study, StudyError, write_json
from o2o_smooth.errors import LaunchError

RETRIES = 3
"""Times that a lost job is started again, in one go of the runner."""
_POLL_S = 0.2
_WHERE_S = 5.0  # between questions where jobs are: a queued one begins at some time
_PAUSE_S = 2.0  # before a job that was preempted is started again
GRACE_S = 20.0
"""Seconds for workers to stop in good order."""


@dataclass
class Standing:
    """A job as the runner sees it."""

    job: PlannedJob
    state: str = "waiting"  # waiting | running | done | failed | blocked
    detail: str = ""
    where: str = ""
    lost: int = 0
    not_before: float = 0.0
    begun: float = 0.0
    """Of this attempt, by `time.monotonic`."""
    seconds: float = 0.0
    """That its work took, in this go of the runner."""
    earlier: bool = False
    """Whether it was done before the runner began."""


class View(Protocol):
    """Where the runner shows what it does."""

    def begin(self, standings: Mapping[str, Standing]) -> None:
        """All jobs, before the first is started."""

    def event(self, text: str) -> None:
        """Something worth a line."""

    def refresh(self, standings: Mapping[str, Standing]) -> None:
        """Called several times a second."""


@dataclass(frozen=True)
class Ending:
    """How a go of the runner ended."""

    done: tuple[str, ...]
    failed: Mapping[str, str]
    """Why, by job."""
    blocked: Mapping[str, str]
    """By what failed job."""
    interrupted: bool = False
    seconds: float = 0.0


class Runner:
    """See the module docstring.

    Args:
        study: What is to be done.
        launcher: Where.
        view: Who is told.
        retries: Times that a lost job is started again.
        cache: Folder of the cache of pretrainings, for workers; default: theirs.
    """

    def __init__(
        self, study: Study, launcher: Launcher, view: View, *, retries: int = RETRIES, cache: Path | None = None
    ) -> None:
        self.study, self.launcher, self.view, self.retries = study, launcher, view, retries
        self.environment = {} if cache is None else {CACHE_VARIABLE: str(cache.resolve())}
        self.standings = {job.id: Standing(job) for job in study.ordered()}
        self._rank = _ranks(study)
        self._asked_where = time.monotonic()

    def run(self) -> Ending:
        """Do all that can be done; Ctrl-C and SIGTERM stop everything in good order.

        Raises:
            StudyError: Another runner has the study.
        """
        lock = Lock(self.study.folder / "lock")
        self._take(lock)
        begun, interrupted = time.monotonic(), False
        before = signal.getsignal(signal.SIGTERM)
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._look()
            self.view.begin(self.standings)
            self._loop()
        except KeyboardInterrupt:
            interrupted = True
            self._stop()
        finally:
            self.launcher.close(GRACE_S if interrupted else 5.0)
            signal.signal(signal.SIGTERM, before)
            self._fill_in()
            lock.release()
        by: dict[str, list[Standing]] = {}
        for standing in self.standings.values():
            by.setdefault(standing.state, []).append(standing)
        return Ending(
            tuple(s.job.id for s in by.get("done", ())),
            {s.job.id: s.detail for s in by.get("failed", ())},
            {s.job.id: s.detail for s in by.get("blocked", ())},
            interrupted,
            time.monotonic() - begun,
        )

    def _take(self, lock: Lock) -> None:
        """Take the study; of an owner elsewhere, or before this machine's restart, a sign of life is waited for."""
        deadline, told = time.monotonic() + 1.0, False
        while not lock.acquire():
            owner = lock.owner()
            if time.monotonic() > deadline and owner is not None:
                if lock.alive():
                    raise StudyError(
                        f"{owner} is at work on {self.study.folder}; o2o-smooth bench status {self.study.folder} shows "
                        f"how far it is"
                    )
                if not told:
                    told = True
                    self.view.event(f"{owner} had this study; waiting up to {STALE_S:.0f} s for a sign of it")
            time.sleep(0.1)

    # The loop

    def _loop(self) -> None:
        while True:
            for ended in self.launcher.poll():
                self._ended(ended)
            self._block()
            self._start()
            self._find()
            self.view.refresh(self.standings)
            if not any(s.state in ("waiting", "running") for s in self.standings.values()):
                return
            time.sleep(_POLL_S)

    def _look(self) -> None:
        """What is done or has failed already."""
        running = self.launcher.running()  # of a cluster, which has gone on without us
        for name, standing in self.standings.items():
            found = self.study.progress(name)
            if found.state == "done":
                standing.state, standing.earlier = "done", True
            elif found.state == "failed" and found.content.get("launch"):  # it never began
                (self.study.job_folder(name) / "failed.json").unlink()
            elif found.state == "failed":
                standing.state, standing.detail = "failed", found.detail
            elif name in running:
                standing.state, standing.where = "running", running[name]
                standing.begun = time.monotonic()

    def _find(self) -> None:
        """Where the jobs are now."""
        if time.monotonic() - self._asked_where < _WHERE_S:
            return
        self._asked_where = time.monotonic()
        for name, where in self.launcher.running().items():
            if name in self.standings:
                self.standings[name].where = where

    def _start(self) -> None:
        now = time.monotonic()
        done = {name for name, s in self.standings.items() if s.state == "done"}
        ready = [
            s
            for s in self.standings.values()
            if s.state == "waiting" and s.not_before <= now and all(need in done for need in s.job.needs)
        ]
        for standing in sorted(ready, key=lambda s: -self._rank[s.job.id]):
            job = self._launchable(standing.job)
            if not self.launcher.room_for(job):
                if any(s.state == "running" for s in self.standings.values()):
                    continue
                if self.launcher.running():
                    continue
            try:
                self.launcher.start(job)
            except LaunchError as error:  # of this launcher; the next go may have another, or a larger machine
                self._failed(standing, str(error), launch=True)
                continue
            standing.state, standing.begun = "running", now
            standing.where = self.launcher.running().get(job.id, "")
            again = f" (again, {standing.lost + 1})" if standing.lost else ""
            self.view.event(f"started{again}: {job.id}")

    def _launchable(self, job: PlannedJob) -> Job:
        folder = self.study.job_folder(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        return Job(
            job.id,
            (sys.executable, "-m", "o2o_smooth.benchmarks.worker", str(folder.resolve())),
            folder.resolve(),
            (folder / "log.txt").resolve(),
            cpus=job.cpus,
            gpus=job.gpus,
            memory=job.memory,
            environment=self.environment,
        )

    def _ended(self, ended: Ended) -> None:
        standing = self.standings.get(ended.job)
        if standing is None or standing.state != "running":
            return
        took = time.monotonic() - standing.begun
        found = self.study.progress(ended.job)  # the files know better than any exit code
        if found.state == "done":
            standing.state, standing.seconds = "done", float(found.content.get("wall_s", took))
            self.view.event(f"done: {ended.job} ({standing.seconds:.0f} s)")
        elif found.state == "failed":
            self._failed(standing, found.detail)
        elif ended.outcome == "failed":
            why = ended.detail or "it ended with an error"
            self._failed(standing, f"{why}, before it could say why; its log: {self._log(standing)}")
        elif ended.outcome == "interrupted":
            standing.state, standing.not_before = "waiting", time.monotonic() + _PAUSE_S
            self.view.event(f"interrupted, goes on: {ended.job}")
        else:
            standing.lost += 1
            why = ended.detail or ("it ended without a result" if ended.outcome == "done" else "lost")
            if standing.lost > self.retries:
                self._failed(standing, f"lost {standing.lost} times, at last: {why}; its log: {self._log(standing)}")
            else:
                standing.state = "waiting"
                self.view.event(f"lost, starts again: {ended.job}: {why} ({ended.where})")

    def _failed(self, standing: Standing, why: str, *, launch: bool = False) -> None:
        standing.state, standing.detail = "failed", why
        file = self.study.job_folder(standing.job.id) / "failed.json"
        if not file.is_file():
            write_json(file, {"job": standing.job.id, "error": why, "runs": {}, "traceback": None, "launch": launch})
        self.view.event(f"FAILED: {standing.job.id}: {why}")

    def _block(self) -> None:
        for standing in self.standings.values():  # in the order of their needs
            if standing.state != "waiting":
                continue
            for need in standing.job.needs:
                other = self.standings[need]
                if other.state in ("failed", "blocked"):
                    standing.state = "blocked"
                    standing.detail = need if other.state == "failed" else other.detail
                    self.view.event(f"blocked: {standing.job.id}, by {standing.detail}")
                    break

    def _stop(self) -> None:
        """Tell that the launcher is closed, which stops all jobs in good order, or leaves them alone."""
        left = sum(standing.state == "running" for standing in self.standings.values())
        if self.launcher.keep:
            self.view.event(f"stopping; {left} jobs stay at the cluster")
        else:
            self.view.event("stopping; jobs write down where they are")

    def _log(self, standing: Standing) -> Path:
        return self.study.job_folder(standing.job.id) / "log.txt"

    def _fill_in(self) -> None:
        """Write into the study what pretraining each run goes on from, where that is known by now."""
        study = self.study
        with contextlib.suppress(StudyError):
            study = Study.read(study.folder)  # more may have been planned meanwhile
        runs = []
        for run in study.runs:
            known = run.pretraining
            for need in study.jobs[run.job].needs:
                found = study.progress(need)
                if found.state == "done" and "pretraining" in found.content:
                    known = str(found.content["pretraining"])
            runs.append(dataclasses.replace(run, pretraining=known))
        if runs != study.runs:
            study.runs = runs
            study.write()


def _ranks(study: Study) -> dict[str, float]:
    """Predicted seconds from a job's beginning to the end of all that hangs on it."""
    found: dict[str, float] = {}
    for job in reversed(study.ordered()):
        after = [found[other.id] for other in study.jobs.values() if job.id in other.needs]
        found[job.id] = job.predicted_s + max(after, default=0.0)
    return found


def forget_failures(study: Study, jobs: list[str] | None = None) -> list[str]:
    """Let failed jobs run again; what failed.json said is kept beside it.

    Args:
        study: Where.
        jobs: Ids; default: all failed ones.

    Raises:
        StudyError: There is no such job, or it has not failed.
    """
    for job in jobs or ():
        if job not in study.jobs:
            raise StudyError(f"{study.folder} has no job '{job}'; o2o-smooth bench status {study.folder} lists them")
    found = [job for job in jobs or study.jobs if study.progress(job).state == "failed"]
    for job in jobs or ():
        if job not in found:
            raise StudyError(f"job '{job}' has not failed: it is {study.progress(job).state}")
    for job in found:
        file = study.job_folder(job) / "failed.json"
        k = 1
        while file.with_name(f"failed-{k}.json").exists():
            k += 1
        file.rename(file.with_name(f"failed-{k}.json"))
    return found
