"""The near end of a minder: what a cluster's own process on a node holds, and what it gets from the launcher."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from o2o_smooth.benchmarks.launchers.base import THREADS, Job, Outcome, outcome_of
from o2o_smooth.benchmarks.launchers.minder import Order

ROOT = Path(__file__).resolve().parents[3]  # of the package: a node need not have it on its path
START = f"import sys; sys.path.append({str(ROOT)!r}); from o2o_smooth.benchmarks.launchers import minder; minder.main()"


class Worker:
    """Starts a minder and speaks with it.

    Args:
        order: What to run.
    """

    def __init__(self, order: Order) -> None:
        self._ended: dict[str, Any] | None = None
        self._now = "starts"
        self._over = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._say(json.dumps(dataclasses.asdict(order)))
        threading.Thread(target=self._listen, daemon=True).start()

    def where(self) -> str:
        """Machine, process and what it is at."""
        return f"{socket.gethostname()}, {self._now}"

    def outcome(self) -> dict[str, Any]:
        """Wait until the attempt has ended; `code`, `stopped`, `detail`, ... as the minder tells."""
        self._over.wait()
        assert self._ended is not None
        return self._ended

    def stop(self, grace_s: float) -> None:
        """Ask the command to stop in good order, and have it killed after the grace."""
        self._say(f"stop {grace_s}")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended
            self._process.stdin.write((line + "\n").encode())
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        ended: dict[str, Any] = {"code": None, "detail": "its minder was killed"}
        for line in self._process.stdout:
            told = json.loads(line)
            if told.pop("what") == "ended":
                ended = told
            else:
                self._now = f"process {told['pid']}" if "pid" in told else told["detail"]
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._ended = ended
        self._over.set()


def order_for(
    job: Job, *, via: str, grace_s: float, lease_s: float, environment: Mapping[str, str], detach: bool
) -> Order:
    """The order of a job; its own environment wins over the given one and the number of threads.

    A job without a GPU sees none.
    """
    threads = dict.fromkeys(THREADS, str(job.cpus))
    hidden = {} if job.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return Order(
        job=job.id,
        command=job.command,
        folder=str(job.folder.absolute()),
        log=str(job.log.absolute()),
        token=uuid.uuid4().hex,
        via=via,
        environment={**environment, **threads, **hidden, **job.environment},
        cwd=str(Path.cwd()),
        grace_s=grace_s,
        lease_s=lease_s,
        detach=detach,
    )


def judged(ended: Mapping[str, Any]) -> tuple[Outcome, str]:
    """Outcome and detail of what a minder has told."""
    detail = str(ended.get("detail") or "")
    code = ended.get("code")
    if ended.get("failed"):
        return "failed", detail
    if code is None:
        return ("interrupted" if ended.get("stopped") else "lost"), detail
    if ended.get("killed"):
        return "lost", detail
    outcome, reason = outcome_of(int(code), stopped=bool(ended.get("stopped")))
    return outcome, f"{reason}, {detail}" if reason and detail else reason or detail
