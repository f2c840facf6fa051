"""Jobs on a Ray cluster, an existing one or one of this machine.

Each job is an actor that holds its cores, memory and share of a GPU, and a minder (minder.py) that runs the command on
the actor's node. Ray tells when an actor, its worker or its node is gone. It does not tell whether the command has
ended there; that is what the lease (lease.py) is for: the next attempt of the job waits until it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o2o_smooth.benchmarks.launchers.base import Ended, Job
from o2o_smooth.benchmarks.launchers.lease import LEASE_S
from o2o_smooth.benchmarks.launchers.worker import ROOT, judged, order_for
from o2o_smooth.errors import LaunchError

CARRIED = ("PYTHONPATH", "MUJOCO_GL")
CARRIED_PREFIXES = ("O2O_SMOOTH_", "WANDB_", "MINARI_", "D4RL_", "HF_")
"""Variables of the runner's environment that a command gets on any node; never written to a file."""
CONNECT_S = 5.0
ASK_S = 0.5  # between questions to a job that has no process yet
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WAIT_S = 60.0  # for the first node of a cluster to tell what it has
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
LEAN = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}  # of a cluster of one's own
STORE_BYTES = 80_000_000  # of a cluster of one's own: jobs pass nothing through it


@dataclass
class _Started:
    job: Job
    actor: Any
    outcome: Any
    """Reference to how it ended."""
    place: Any
    """Reference to where it is; answered when Ray has found it a node. None: not asked."""
    where: str = "queued"
    asked: float = 0.0
    cancelled: bool = False


class RayLauncher:
    """Starts jobs as actors of a Ray cluster.

    Args:
        address: `host:port` of a cluster that this machine belongs to; `auto`: the one that runs here; None: a cluster
            of this machine alone, started now and gone with `close`.
        cpus: Cores of a cluster of one's own; default: all.
        gpus: GPUs of a cluster of one's own; default: all.
        max_queued: Jobs that may wait for a node at a time; an autoscaling cluster grows by what waits.
        autoscaling: Nodes may come that are larger than those here: a job that fits none is queued, not refused.
        grace_s: From SIGTERM to SIGKILL, when a job is cancelled or its worker dies.
        lease_s: Time without a sign after which an attempt on a lost node counts as dead.

    Raises:
        LaunchError: Ray is not installed, or the cluster cannot be reached.
    """

    name = "ray"
    keep = False

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int | None = None,
        gpus: int | None = None,
        max_queued: int = 8,
        autoscaling: bool = False,
        grace_s: float = 30.0,
        lease_s: float = LEASE_S,
    ) -> None:
        if address is not None and (cpus is not None or gpus is not None):
            raise LaunchError("cpus and gpus are those of a Ray cluster started here; leave them out with an address")
        for name, value in {**QUIET, **(LEAN if address is None else {})}.items():
            os.environ.setdefault(name, value)
        if importlib.util.find_spec("ray") is None:
            raise LaunchError("the launcher ray needs Ray: pip install 'o2o_smooth[ray]'")
        if address is None and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
            _lock()
        self._ray: Any = importlib.import_module("ray")
        self.max_queued, self.autoscaling, self.grace_s, self.lease_s = max_queued, autoscaling, grace_s, lease_s
        self._started: dict[str, _Started] = {}
        self._shapes: dict[str, dict[str, float]] = {}
        self._folder: Path | None = None
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(address, cpus, gpus)
        self._actor = self._ray.remote(_holder())

    def room_for(self, job: Job) -> bool:
        """See `Launcher`: fewer than `max_queued` jobs wait for a node."""
        self._place()
        return sum(started.where == "queued" for started in self._started.values()) < self.max_queued

    def start(self, job: Job) -> None:
        """See `Launcher`."""
        if job.id in self._started:
            raise LaunchError(f"job {job.id} is already started")
        self._check_size(job)
        environment = {
            name: value for name, value in os.environ.items() if name in CARRIED or name.startswith(CARRIED_PREFIXES)
        }
        order = order_for(
            job, via="Ray", grace_s=self.grace_s, lease_s=self.lease_s, environment=environment, detach=True
        )
        needs = {"num_cpus": job.cpus, "num_gpus": job.gpus, "memory": job.memory}
        actor = self._actor.options(
            **{name: value for name, value in needs.items() if value is not None},
            name=None,
            max_restarts=0,  # the runner starts a job again, and knows of it
            max_task_retries=0,
            max_concurrency=8,  # to be asked while it waits for the command
        ).remote(dataclasses.asdict(order), str(ROOT))
        self._started[job.id] = _Started(job, actor, actor.outcome.remote(), actor.place.remote())

    def running(self) -> dict[str, str]:
        """See `Launcher`."""
        self._place()
        return {name: started.where for name, started in self._started.items()}

    def poll(self) -> list[Ended]:
        """See `Launcher`."""
        self._place()
        by_reference = {started.outcome: started for started in self._started.values()}
        if not by_reference:
            return []
        ready, _ = self._ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        ended = [self._ended(by_reference[reference]) for reference in ready]
        return [end for end in ended if end is not None]

    def cancel(self, job: str) -> None:
        """See `Launcher`."""
        self._cancel(job, self.grace_s)

    def close(self, grace_s: float = 10.0) -> None:
        """See `Launcher`; ends also the cluster that was started here."""
        if not self._ray.is_initialized():
            return
        for job in self._started:
            self._cancel(job, grace_s)
        until = time.monotonic() + grace_s + 2.0  # the minders kill at the end of the grace
        while self._started and time.monotonic() < until:
            if not self.poll():
                time.sleep(0.05)
        for started in self._started.values():
            self._ray.kill(started.actor)
        self._started.clear()
        if self._ours:
            self._ray.shutdown()
        self._tidy()

    def _tidy(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _cancel(self, job: str, grace_s: float) -> None:
        started = self._started.get(job)
        if started is None:
            return
        self._place()
        started.cancelled = True
        if started.where == "queued":
            self._ray.kill(started.actor)
        else:
            started.actor.stop.remote(grace_s)

    def _ended(self, started: _Started) -> Ended | None:
        errors = self._ray.exceptions
        job, where = started.job.id, started.where
        try:
            outcome, detail = judged(self._ray.get(started.outcome))
        except errors.ActorUnavailableError:  # a broken connection; the actor may be alive: ask again
            started.outcome = started.actor.outcome.remote()
            return None
        except errors.RayActorError as error:
            if started.cancelled:
                outcome, detail = "interrupted", "stopped" if where != "queued" else "stopped before it began"
            else:
                outcome, detail = "lost", self._why_lost(error, where)
        except errors.RayError as error:  # the holder itself failed: no such package on the node, no memory, ...
            outcome, detail = "failed", f"Ray could not run it: {_line(error)}"
        del self._started[job]
        self._ray.kill(started.actor)
        return Ended(job, outcome, where, detail)

    def _why_lost(self, error: Exception, where: str) -> str:
        if "node" in str(error).lower() and "died" in str(error).lower():
            return f"its node is gone: {_line(error)}"
        return f"its worker is gone: {_line(error)}" if where != "queued" else f"never ran: {_line(error)}"

    def _place(self) -> None:
        """See where jobs are that have no process yet."""
        now = time.monotonic()
        asked = {one.place: one for one in self._started.values() if one.place is not None}
        ready = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for reference in ready:
            started = asked[reference]
            started.place, started.asked = None, now
            with contextlib.suppress(self._ray.exceptions.RayError):  # `poll` tells of it
                started.where = str(self._ray.get(reference))
        for started in self._started.values():
            if started.place is None and ", process " not in started.where and now - started.asked > ASK_S:
                started.place = started.actor.place.remote()

    def _check_size(self, job: Job) -> None:
        if job.gpus > 1 and job.gpus != int(job.gpus):
            raise LaunchError(f"job {job.id} asks for {job.gpus:g} GPUs; Ray shares one GPU, or gives whole ones")
        asked = {"CPU": float(job.cpus), "GPU": job.gpus, "memory": float(job.memory or 0)}
        until = time.monotonic() + WAIT_S
        while not self._see_nodes() and time.monotonic() < until:
            time.sleep(0.1)
        if self.autoscaling or any(
            all(shape.get(name, 0.0) >= need for name, need in asked.items()) for shape in self._shapes.values()
        ):
            return
        nodes = "; ".join(sorted({_shape(shape) for shape in self._shapes.values()})) or "none"
        raise LaunchError(f"job {job.id} asks for {_shape(asked)}, which no node of the Ray cluster has: {nodes}")

    def _see_nodes(self) -> bool:
        """Remember what each node has; also of those that have gone, for they may come back."""
        for node in self._ray.nodes():
            if node["Alive"]:
                self._shapes[node["NodeID"]] = dict(node["Resources"])
        return bool(self._shapes)

    def _connect(self, address: str | None, cpus: int | None, gpus: int | None) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            self._folder = Path(tempfile.mkdtemp(prefix="o2o-ray-"))
            settings |= {"address": "local", "num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
            settings |= {"_temp_dir": str(self._folder), "object_store_memory": STORE_BYTES}
            settings |= {"_node_ip_address": "127.0.0.1"}
        else:
            self._check_address(address)
            settings["address"] = address
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._ray.init(**settings)
        except Exception as error:  # Ray raises many kinds
            what = "start Ray here" if address is None else f"join the Ray cluster at {address}"
            cure = "" if address is None else "; is it up, and is this machine a node of it (ray start --address=...)?"
            self._ray.shutdown()
            self._tidy()
            raise LaunchError(f"cannot {what}: {_line(error)}{cure}") from error
        finally:
            for number, handler in handlers.items():  # Ray puts its own, which end the process at once
                with contextlib.suppress(ValueError):  # not the main thread
                    signal.signal(number, handler)

    def _check_address(self, address: str) -> None:
        """See that something answers: Ray itself waits for minutes before it says that nobody does."""
        if address == "auto":
            return
        host, separator, port = address.rpartition(":")
        if not separator or not port.isdecimal() or "//" in host:
            raise LaunchError(
                f"'{address}' is no address of a Ray cluster: host:port, or auto for the one running here"
            )
        host = host.strip("[]")
        _answers(address, host, int(port))
        if host in LOOPBACK:  # Ray takes this machine's own address instead
            _answers(address, str(self._ray.util.get_node_ip_address()), int(port))


def _answers(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        raise LaunchError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start one with `ray start --head`, and "
            "give the address that it prints"
        ) from error


def _lock() -> None:
    """Let only this process and its jobs speak to a cluster of its own, for Ray listens on all interfaces.

    Ray reads this when it is imported, and once: the key stays for the life of the process.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        raise LaunchError(
            "Ray was imported before it could be locked against others on the network: call ray.init() yourself, "
            "or set RAY_AUTH_MODE, or make the launcher before Ray is imported"
        )
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})


def _holder() -> type:
    """The actor's class; made in a function, so that it travels to the nodes by value."""

    class Holder:
        """Holds a job's resources on a node, and the minder's near end."""

        def __init__(self, order: dict[str, Any], root: str) -> None:
            import importlib
            import sys

            if root not in sys.path:
                sys.path.insert(0, root)
            ray: Any = importlib.import_module("ray")
            from o2o_smooth.benchmarks.launchers.minder import Order
            from o2o_smooth.benchmarks.launchers.worker import Worker

            order["via"] = f"Ray node {ray.get_runtime_context().get_node_id()}"
            self.worker = Worker(Order(**order))

        def place(self) -> str:
            return self.worker.where()

        def outcome(self) -> dict[str, Any]:
            return self.worker.outcome()

        def stop(self, grace_s: float) -> None:
            self.worker.stop(grace_s)

    return Holder


def _shape(resources: dict[str, float]) -> str:
    parts = [f"{resources.get('CPU', 0.0):g} cores"]
    if resources.get("GPU"):
        parts.append(f"{resources['GPU']:g} GPUs")
    if resources.get("memory"):
        parts.append(f"{resources['memory'] / 2**30:.3g} GiB")
    return ", ".join(parts)


def _line(error: BaseException) -> str:
    """The first telling line of Ray's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "died" in line.lower() or "error" in line.lower()] or lines
    return (telling[-1] if telling else type(error).__name__)[:300]
