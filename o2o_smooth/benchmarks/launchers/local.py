"""Jobs as processes of this machine, each on cores of its own, and on a share of a GPU where it asks for one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from o2o_smooth.benchmarks.launchers.base import THREADS, Ended, Job, Outcome, outcome_of
from o2o_smooth.errors import LaunchError


@dataclass
class _Running:
    job: Job
    cores: tuple[int, ...]
    gpu: str | None
    pid: int | None = None
    cancelled: bool = False


class LocalLauncher:
    """See the module docstring; no package is needed.

    Args:
        cores: Numbers of the cores to use; default: all that this process may use.
        gpus: Ids of the GPUs to use, as CUDA_VISIBLE_DEVICES has them; default: all that there are.
    """

    name = "local"
    keep = False

    def __init__(self, *, cores: Sequence[int] | None = None, gpus: Sequence[str] | None = None) -> None:
        self.cores = tuple(cores) if cores is not None else _cores()
        self._free = list(self.cores)
        self._gpus: dict[str, float] | None = None if gpus is None else dict.fromkeys(gpus, 1.0)  # what is left
        self._running: dict[str, _Running] = {}
        self._ended: list[Ended] = []
        self._keeper: subprocess.Popen[bytes] | None = None
        self._rest = b""

    # As a `Launcher`

    def room_for(self, job: Job) -> bool:
        """See `Launcher`."""
        return job.cpus <= len(self._free) and (not job.gpus or self._gpu(job) is not None)

    def start(self, job: Job) -> None:
        """See `Launcher`."""
        if job.cpus > len(self.cores):
            raise LaunchError(f"job {job.id} asks for {job.cpus} cores, and {len(self.cores)} can be used here")
        if job.gpus and (job.gpus > 1 or not self._all_gpus()):
            raise LaunchError(
                f"job {job.id} asks for {job.gpus:g} of a GPU, and there are {len(self._all_gpus())} here; a job takes "
                f"one at most"
            )
        gpu = self._gpu(job) if job.gpus else None
        cores, self._free = tuple(self._free[: job.cpus]), self._free[job.cpus :]
        if gpu is not None:
            self._all_gpus()[gpu] -= job.gpus
        self._running[job.id] = _Running(job, cores, gpu)
        environment = {name: str(job.cpus) for name in THREADS}
        environment["CUDA_VISIBLE_DEVICES"] = "" if gpu is None else gpu  # without a share it sees none
        self._tell(
            start=job.id,
            command=list(job.command),
            environment={**environment, **job.environment},
            cores=list(cores),
            log=str(job.log),
        )

    def running(self) -> dict[str, str]:
        """See `Launcher`."""
        return {name: _where(one) for name, one in self._running.items()}

    def poll(self) -> list[Ended]:
        """See `Launcher`."""
        self._listen()
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, job: str) -> None:
        """See `Launcher`."""
        if job in self._running:
            self._running[job].cancelled = True
            self._tell(signal=job, number=int(signal.SIGTERM))

    def close(self, grace_s: float = 10.0) -> None:
        """See `Launcher`."""
        for name in list(self._running):
            self.cancel(name)
        deadline = time.monotonic() + grace_s
        while self._running and time.monotonic() < deadline:
            self._listen()
            time.sleep(0.05)
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin is not None and keeper.stdout is not None
            with contextlib.suppress(OSError):
                keeper.stdin.close()  # it kills what is left
            try:
                keeper.wait(5.0)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
            keeper.stdout.close()
        for one in self._running.values():
            self._ended.append(Ended(one.job.id, "lost", _where(one), "killed after the grace"))
        self._running.clear()
        self._free = list(self.cores)

    # The keeper

    def _tell(self, **order: Any) -> None:
        if self._keeper is None:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "o2o_smooth.benchmarks.launchers.keeper", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **dict.fromkeys(THREADS, "1")},  # threads of libraries would not survive a fork
                start_new_session=True,
            )
            assert self._keeper.stdout is not None
            os.set_blocking(self._keeper.stdout.fileno(), False)
        assert self._keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, which the next call to poll finds
            self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
            self._keeper.stdin.flush()

    def _listen(self) -> None:
        if self._keeper is None:
            return
        assert self._keeper.stdout is not None
        gone = self._keeper.poll() is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._keeper.stdout.fileno(), 65536):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._report(json.loads(line))
        if gone:
            assert self._keeper.stdin is not None
            self._keeper.stdout.close()
            with contextlib.suppress(OSError):
                self._keeper.stdin.close()
            self._keeper, self._rest = None, b""
            for name in list(self._running):
                self._end(name, "lost", "the process that keeps the jobs is gone")

    def _report(self, report: Mapping[str, Any]) -> None:
        if "started" in report:
            if report["started"] in self._running:
                self._running[report["started"]].pid = report["pid"]
            return
        name, code, number = report["ended"], report["code"], report["signal"]
        if name not in self._running:
            return
        self._end(name, *outcome_of(code if number is None else -number, stopped=self._running[name].cancelled))

    def _end(self, name: str, outcome: Outcome, detail: str) -> None:
        one = self._running.pop(name)
        self._free = sorted((*self._free, *one.cores))
        if one.gpu is not None:
            self._all_gpus()[one.gpu] += one.job.gpus
        self._ended.append(Ended(name, outcome, _where(one), detail))

    # GPUs

    def _all_gpus(self) -> dict[str, float]:
        if self._gpus is None:
            self._gpus = dict.fromkeys(_gpus(), 1.0)
        return self._gpus

    def _gpu(self, job: Job) -> str | None:
        """The fullest GPU that still has room."""
        fitting = [(left, gpu) for gpu, left in self._all_gpus().items() if left >= job.gpus - 1e-9]
        return min(fitting)[1] if fitting else None


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    """Ids of the GPUs of this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _where(one: _Running) -> str:
    cores = ",".join(map(str, one.cores))
    gpu = "" if one.gpu is None else f", GPU {one.gpu}"
    return f"{platform.node()}, process {one.pid or '?'}, core {cores}{gpu}"
