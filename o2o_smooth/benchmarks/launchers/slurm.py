"""Jobs as batch jobs of Slurm, through submitit.

Each job is one batch job whose process runs a minder (minder.py); the minder's record in the job's folder tells how the
command ended, Slurm's state tells the rest. `slurm.json` in the job's folder keeps the batch job's number, so that a
runner that is started again finds its queued and running jobs and submits nothing twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from o2o_smooth.benchmarks.launchers import lease
from o2o_smooth.benchmarks.launchers.base import Ended, Job, Outcome
from o2o_smooth.benchmarks.launchers.minder import Order
from o2o_smooth.benchmarks.launchers.slurm_queue import (
    HELD,
    NEVER,
    Queue,
    as_from_outside,
    line,
    named,
    passes,
    scancel,
)
from o2o_smooth.benchmarks.launchers.worker import Worker, judged, order_for
from o2o_smooth.errors import LaunchError
from o2o_smooth.files import written_whole

RECORD = "slurm.json"
TOOLS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
MARGIN_S = 30  # between the end of the grace and Slurm's own kill
BESIDE_MB = 320  # of memory, for the processes around a job's command, and the C compiler that builds the kernels
RESOLUTION_S = 60  # by which Slurm's signal may come early
HUNGRY = re.compile(r"exceeded (?:job )?memory limit|oom[ _-]kill", re.IGNORECASE)  # what slurmstepd says
TAIL, LINE = 4000, 200  # characters of its output that are looked at, and that are told
REQUEUES = 1000  # after time limits; each goes on where the last one stopped
OVER: dict[str, tuple[Outcome, str]] = {
    "BOOT_FAIL": ("lost", "its node did not boot"),
    "CANCELLED": ("lost", "cancelled with scancel, not by the runner"),
    "COMPLETED": ("lost", "it ended without a record of how"),
    "DEADLINE": ("failed", "Slurm's deadline for it has passed"),
    "FAILED": ("lost", "its process on the node died, or could not begin"),
    "GONE": ("lost", "Slurm knows nothing of it any more"),
    "NODE_FAIL": ("lost", "its node failed"),
    "OUT_OF_MEMORY": ("failed", "out of memory: ask for more (--launcher-option sbatch.mem=8G)"),
    "PREEMPTED": ("lost", "preempted"),
    "REVOKED": ("lost", "taken back by Slurm"),
    "TIMEOUT": ("interrupted", "its time limit has passed"),
}
"""States in which a batch job stays, and what they mean where the minder has not told."""


class SlurmTask:
    """What a batch job runs on its node; submitit calls `checkpoint` when the job is preempted or its time is up.

    Args:
        order: What to run.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._worker: Worker | None = None

    def __call__(self) -> dict[str, Any]:
        """Run the command; how it ended."""
        number, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
        token = lease.part(self.order.token, restarts)  # so that a requeued job can tell its last attempt from itself
        self._worker = Worker(dataclasses.replace(self.order, token=token, via=f"Slurm job {number}"))
        return self._worker.outcome()

    def checkpoint(self) -> Any:
        """Stop the command in good order; what the requeued job runs."""
        if self._worker is not None:
            self._worker.stop(self.order.grace_s)
            self._worker.outcome()
        submitit: Any = importlib.import_module("submitit")
        return submitit.helpers.DelayedSubmission(SlurmTask(self.order))


class _Passing(Exception):
    """Slurm cannot take a job, or tell of it, just now."""


@dataclass(frozen=True)
class _Record:
    """Contents of slurm.json."""

    name: str
    """Of the batch job: to find one that was submitted when the runner was killed before it had the number."""
    token: str
    """Of its attempts."""
    command: str
    """Hash of the command and what it needs."""
    number: str | None = None
    """Of the batch job."""
    reported: bool = False
    """The runner has been told how it ended."""
    cancelled: bool = False


@dataclass
class _Submitted:
    job: Job
    record: _Record
    over_since: float | None = None
    """When it was first seen to be over, seconds of the monotonic clock."""


class SlurmLauncher:
    """Submits jobs to Slurm.

    Args:
        partition: Slurm's partition; default: the cluster's.
        time_min: Time limit of a batch job, minutes, 0: none; a job that needs longer is requeued and goes on.
        memory_gb: Memory of jobs that do not say what they need; default: the partition's.
        sbatch: Further options of sbatch by their long names: `account`, `qos`, `constraint`, `gres`, ...
        setup: Lines of shell before the command: `module load ...`.
        max_jobs: Batch jobs at a time, queued ones too.
        keep: Leave queued and running batch jobs alone on `close`; a runner started again finds them.
        poll_s: How often Slurm is asked.
        settle_s: How long the record of a batch job that is over may take to be seen from here.
        grace_s: From SIGTERM to SIGKILL; at a time limit or preemption too, where Slurm's own grace allows it.
        lease_s: Time without a sign after which an attempt on a lost node counts as dead.

    Raises:
        LaunchError: Submitit is not installed, Slurm's commands are not here, or the time limit leaves no time to work.
    """

    name = "slurm"

    def __init__(
        self,
        partition: str | None = None,
        *,
        time_min: int = 240,
        memory_gb: float | None = None,
        sbatch: Mapping[str, str | int | bool] | None = None,
        setup: Sequence[str] = (),
        max_jobs: int = 200,
        keep: bool = False,
        poll_s: float = 10.0,
        settle_s: float = 60.0,
        grace_s: float = 60.0,
        lease_s: float = lease.LEASE_S,
    ) -> None:
        try:
            self._submitit: Any = importlib.import_module("submitit")
        except ImportError as error:
            raise LaunchError("the launcher slurm needs submitit: pip install 'o2o_smooth[slurm]'") from error
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise LaunchError(f"the launcher slurm needs Slurm's {', '.join(missing)}; start it on a login node")
        self.time_min, self.max_jobs, self.keep = time_min, max_jobs, keep
        self.poll_s, self.settle_s, self.grace_s, self.lease_s = poll_s, settle_s, grace_s, lease_s
        signal_s = math.ceil(grace_s) + MARGIN_S
        early_s = signal_s + RESOLUTION_S
        if 0 < time_min * 60 <= early_s:
            raise LaunchError(
                f"time-min={time_min} leaves no time to work: it is asked to stop up to {early_s} s before the end; "
                f"take at least {early_s // 60 + 1}, or a shorter grace-s"
            )
        self._gres = "gres" in (sbatch or {})  # how GPUs are asked for is the user's business then
        self._memory = None if memory_gb is None else math.ceil(memory_gb * 1024)
        self._parameters = {
            "partition": partition,
            "time": time_min,
            "setup": list(setup) or None,
            "signal_delay_s": signal_s,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **(sbatch or {})},
        }
        self._submitted: dict[str, _Submitted] = {}
        self._later: list[Job] = []
        self._dropped: list[Ended] = []
        self._queue = Queue(OVER, poll_s)

    def room_for(self, job: Job) -> bool:
        """See `Launcher`: fewer than `max_jobs` are at the cluster."""
        return not self._later and len(self._submitted) < self.max_jobs

    def start(self, job: Job) -> None:
        """See `Launcher`; where an earlier runner has submitted the same job, that one goes on."""
        if job.id in self._submitted or any(one.id == job.id for one in self._later):
            raise LaunchError(f"job {job.id} is already started")
        self._start(job)

    def _start(self, job: Job) -> None:
        try:
            self._start_now(job)
        except _Passing:  # the next call of `poll` tries again
            self._later.append(job)

    def _start_now(self, job: Job) -> None:
        record = _read(job)
        if record is not None and not record.reported:
            record = self._found(job, record)
            if record is not None and record.command == _hash(job):
                self._submitted[job.id] = _Submitted(job, record)
                self._ask(now=True)
                return
            if record is not None:  # it asks for something else now
                _scancel(record)
        self._submitted[job.id] = _Submitted(job, self._submit(job))

    def running(self) -> dict[str, str]:
        """See `Launcher`."""
        self._ask()
        at_cluster = {name: self._where(submitted) for name, submitted in self._submitted.items()}
        return at_cluster | {job.id: "queued" for job in self._later}

    def poll(self) -> list[Ended]:
        """See `Launcher`."""
        self._ask()
        if not self._queue.news():
            return []
        later, self._later = self._later, []
        ended, self._dropped = self._dropped, []
        for job in later:
            try:
                self._start(job)
            except LaunchError as error:
                ended.append(Ended(job.id, "failed", "queued", str(error)))
        for submitted in list(self._submitted.values()):
            judgement = self._judge(submitted)
            if judgement is None:
                continue
            where = self._where(submitted)
            del self._submitted[submitted.job.id]
            _write(submitted.job, dataclasses.replace(submitted.record, reported=True))
            ended.append(Ended(submitted.job.id, *judgement[:1], where, judgement[1]))
        return ended

    def cancel(self, job: str) -> None:
        """See `Launcher`: through a file in the job's folder, which its minder looks for every other second."""
        submitted = self._submitted.get(job)
        if submitted is None:  # `poll` tells of those that still wait to be submitted
            self._dropped += [Ended(job, "interrupted", "queued", "stopped") for one in self._later if one.id == job]
            self._later = [one for one in self._later if one.id != job]
            return
        submitted.record = dataclasses.replace(submitted.record, cancelled=True)
        _write(submitted.job, submitted.record)
        self._stop_by_file(submitted.job, submitted.record)
        self._ask(now=True)
        if self._queue.state(submitted.record.number)[0] == "PENDING":
            _scancel(submitted.record)

    def close(self, grace_s: float = 10.0) -> None:
        """See `Launcher`; with `keep` nothing is stopped."""
        if self.keep:
            return
        self._later.clear()
        for job in self._submitted:
            self.cancel(job)
        until = time.monotonic() + grace_s
        while self._submitted and time.monotonic() < until:
            time.sleep(min(1.0, self.poll_s))
            self._ask(now=True)
            self.poll()
        for submitted in self._submitted.values():
            _scancel(submitted.record)

    def _submit(self, job: Job) -> _Record:
        order = order_for(job, via="Slurm", grace_s=self.grace_s, lease_s=self.lease_s, environment={}, detach=False)
        record = _Record(f"o2o-{job.id[:40]}-{order.token[:8]}", order.token, _hash(job))
        _write(job, record)  # before it is submitted: a runner that is killed now finds it by its name
        memory = self._memory if job.memory is None else math.ceil(job.memory / 2**20) + BESIDE_MB
        parameters = {
            **self._parameters,
            "job_name": record.name,
            "cpus_per_task": job.cpus,
            "gpus_per_node": math.ceil(job.gpus) if job.gpus and not self._gres else None,
            "mem": None if memory is None else f"{memory}M",
            "srun_args": [f"--cpus-per-task={job.cpus}"],  # from 22.05 on srun does not take it from sbatch
        }
        executor = self._submitit.SlurmExecutor(job.folder.absolute() / "slurm", max_num_timeout=REQUEUES)
        try:
            executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
            with as_from_outside():
                submitted = executor.submit(SlurmTask(order))
        except Exception as error:  # what sbatch says comes as one of submitit's own kinds
            if passes(str(error)):
                raise _Passing from error
            why = line(str(error)) or type(error).__name__
            raise LaunchError(f"Slurm does not take job {job.id}: {why}") from error
        record = dataclasses.replace(record, number=str(submitted.job_id))
        _write(job, record)
        return record

    def _found(self, job: Job, record: _Record) -> _Record | None:
        """The record with its number; None: it never came to be submitted."""
        if record.number is not None:
            return record
        number = named(record.name)
        if number is None:
            raise _Passing
        if number:
            record = dataclasses.replace(record, number=number)
            _write(job, record)
            return record
        return record if lease.last_of(job.folder, record.token) is not None else None

    def _judge(self, submitted: _Submitted) -> tuple[Outcome, str] | None:
        """How it ended; None: it has not, or not yet for good."""
        record, job = submitted.record, submitted.job
        attempt = lease.last_of(job.folder, record.token)
        told = None if attempt is None or attempt.ended is None else judged(attempt.ended)
        if told is not None and told[0] in ("done", "failed"):
            return told
        state, reason = self._queue.state(record.number)
        if state == "PENDING" and reason == HELD:
            _scancel(record)
            return "lost", f"its node could not start it (Slurm: {reason})"
        if state == "FAILED" and reason == NEVER:
            return "failed", f"no node can run it: check its account, partition and other options (Slurm: {reason})"
        if state not in OVER:
            submitted.over_since = None  # also of a command that was interrupted: Slurm has requeued it
            return None
        if state == "OUT_OF_MEMORY" or (state == "CANCELLED" and not record.cancelled):
            return OVER[state]
        said = _said(job, record)
        if (told is None or told[0] == "lost") and HUNGRY.search(said):  # where Slurm's state does not tell
            return OVER["OUT_OF_MEMORY"]
        if told is not None:
            return told
        if submitted.over_since is None:
            submitted.over_since = time.monotonic()
        if record.cancelled and state in ("CANCELLED", "GONE"):
            return "interrupted", "stopped"
        if time.monotonic() - submitted.over_since < self.settle_s:
            return None  # a file system shows what others write with some delay
        outcome, detail = OVER[state]
        last = next((f"; {' '.join(line.split())[-LINE:]}" for line in said.split("\n")[::-1] if line.strip()), "")
        return outcome, f"{detail} (Slurm: {state}{last}; {job.folder / 'slurm'} has its output)"

    def _where(self, submitted: _Submitted) -> str:
        record = submitted.record
        attempt = lease.last_of(submitted.job.folder, record.token)
        state, reason = self._queue.state(record.number)
        if state in ("PENDING", "UNKNOWN"):
            return f"queued ({reason})" if reason not in ("", "None") else "queued"
        if attempt is not None and attempt.begun:
            return f"{attempt.begun['host']}, process {attempt.begun['pid']}, Slurm job {record.number}"
        return f"Slurm job {record.number}"

    def _ask(self, *, now: bool = False) -> None:
        numbers = [one.record.number for one in self._submitted.values()]
        self._queue.ask([number for number in numbers if number is not None], now=now)

    def _stop_by_file(self, job: Job, record: _Record) -> None:
        folder = job.folder / lease.FOLDER
        folder.mkdir(exist_ok=True)
        lease.ask_to_stop(folder, record.token)


def _scancel(record: _Record) -> None:
    if record.number is not None:
        scancel(record.number)


def _said(job: Job, record: _Record) -> str:
    """The end of what the batch job has printed."""
    try:
        with (job.folder / "slurm" / f"{record.number}_0_log.out").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _hash(job: Job) -> str:
    asked = [job.command, job.cpus, job.gpus, job.memory, sorted(job.environment.items())]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _read(job: Job) -> _Record | None:
    path = job.folder / RECORD
    try:
        return _Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LaunchError(
            f"{path} is broken, and job {job.id} may be in the queue: see squeue --me, scancel it, remove the file"
        ) from error


def _write(job: Job, record: _Record) -> None:
    with written_whole(job.folder / RECORD) as path:
        path.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
