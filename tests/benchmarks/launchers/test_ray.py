"""Real Ray: clusters on loopback whose nodes are killed, or stop answering, in the middle of jobs that count."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks.launchers import lease
from o2o_smooth.benchmarks.launchers.base import Ended, Job
from o2o_smooth.benchmarks.launchers.ray import RayLauncher
from o2o_smooth.errors import LaunchError
from tests.benchmarks.launchers.counting import alive, attempts, counted, counting_job, descendants, drive, go

pytest.importorskip("ray")

STORE = 80_000_000
FAST = {  # a node that does not answer is given up after some seconds
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}
UNITS = 80
LEASE_S, GRACE_S = 4.0, 5.0


class Nodes:
    """A cluster of three nodes; the first one stays, the spares are there to be lost."""

    def __init__(self) -> None:
        arguments = {"object_store_memory": STORE, "include_dashboard": False, "include_log_monitor": False}
        cluster: Any = importlib.import_module("ray.cluster_utils")
        self.cluster: Any = cluster.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "no_monitor": True, **arguments}
        )
        self.spares: list[Any] = [
            self.cluster.add_node(wait=False, num_cpus=cpus, num_gpus=gpus, **arguments)
            for cpus, gpus in ((2, 1), (1, 0))
        ]
        self.cluster.wait_for_nodes()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="o2o-test-")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**FAST, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        made = Nodes()
        try:
            yield made
        finally:
            for node in made.cluster.list_all_nodes():
                for pid in [raylet(node), *descendants(raylet(node))]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
            made.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def launcher(nodes: Nodes) -> Iterator[RayLauncher]:
    made = RayLauncher(nodes.cluster.address, grace_s=GRACE_S, lease_s=LEASE_S)
    yield made
    made.close(grace_s=2.0)


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def first(job: Job) -> dict[str, Any]:
    """What the first attempt of a job said of itself."""
    attempt = lease.read(job.folder / lease.FOLDER, 1)
    assert attempt is not None
    return attempt.begun


def on(node: Any, jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if node.node_id in first(job)["via"]]


def test_addresses_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(LaunchError, match=r"no Ray cluster answers at .*start one with `ray start --head`"):
            RayLauncher(f"127.0.0.1:{nobody.getsockname()[1]}")
    with pytest.raises(LaunchError, match="'ray://here:10001' is no address"):
        RayLauncher("ray://here:10001")
    with pytest.raises(LaunchError, match="leave them out with an address"):
        RayLauncher("auto", cpus=2)


OWN_CLUSTER = """
import json, os, sys, time
from pathlib import Path
from o2o_smooth.benchmarks.launchers import Job, make_launcher
folder = Path(sys.argv[1])
launcher = make_launcher("ray", {"cpus": "2", "lease-s": "4"})
assert os.environ["RAY_AUTH_MODE"] == "token"
launcher.start(Job("job", (sys.executable, "-c", "print('at work')"), folder, folder / "log"))
ends = []
while launcher.running():
    ends += launcher.poll()
    time.sleep(0.05)
launcher.close()
print(json.dumps([[end.job, end.outcome, end.detail] for end in ends]))
"""


@pytest.mark.slow
def test_a_cluster_of_ones_own_comes_and_goes(tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="o2o-own-")  # short, for the names of sockets
    job = tmp_path / "job"
    job.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OWN_CLUSTER, str(job)],
        capture_output=True,
        text=True,
        env=environment | {"TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["job", "done", ""]]
    assert (job / "log").read_text().splitlines()[-1] == "at work"
    until_gone = time.monotonic() + 10
    while alive(folder) and time.monotonic() < until_gone:
        time.sleep(0.1)
    assert not alive(folder)
    assert not list(Path(folder).iterdir())
    Path(folder).rmdir()


@pytest.mark.slow
def test_gpu_shares_refusals_and_cancelling(nodes: Nodes, launcher: RayLauncher, tmp_path: Path) -> None:
    sees = (sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])")
    shared = [counting_job(tmp_path, f"shared-{number}", UNITS, gpus=0.5) for number in range(3)]
    plain = dataclasses.replace(counting_job(tmp_path, "plain", 1), command=sees)
    with pytest.raises(LaunchError, match=r"big asks for 3 cores, which no node .* has: .*2 cores, 1 GPUs"):
        launcher.start(dataclasses.replace(plain, id="big", cpus=3))
    with pytest.raises(LaunchError, match="shares one GPU, or gives whole ones"):
        launcher.start(dataclasses.replace(plain, id="odd", gpus=1.5))
    for job in (*shared, plain):
        launcher.start(job)
    with pytest.raises(LaunchError, match="already"):
        launcher.start(plain)
    ends: dict[str, Ended] = {}

    def until(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert time.monotonic() < deadline, (ends, launcher.running())
            ends.update({end.job: end for end in launcher.poll()})
            time.sleep(0.05)

    until(lambda: "plain" in ends and sum(bool(counted(job)) for job in shared) == 2)
    assert ends["plain"].outcome == "done"
    assert plain.log.read_text().splitlines()[-1] == " 1"  # no GPU, one thread
    (queued,) = (job for job in shared if not counted(job))
    running = [job for job in shared if job is not queued]
    assert launcher.running()[queued.id] == "queued"
    for job in running:
        until(lambda job=job: launcher.running()[job.id].partition(", process ")[2].isdecimal())  # type: ignore[misc]
        assert first(job)["gpus"] == "0"
        assert on(nodes.spares[0], [job])
    for job in (queued, *running):
        launcher.cancel(job.id)
    until(lambda: not launcher.running())
    assert {job: end.outcome for job, end in ends.items()} == {"plain": "done"} | {j.id: "interrupted" for j in shared}
    assert ends[queued.id].detail == "stopped before it began"
    assert not queued.log.exists()
    assert not alive(str(tmp_path))


@pytest.mark.slow
def test_lost_nodes_lose_nothing_and_do_nothing_twice(nodes: Nodes, launcher: RayLauncher, tmp_path: Path) -> None:
    """One node is killed, another one cut off, in the middle of jobs; the first stays."""
    jobs = [counting_job(tmp_path, f"job-{number}", UNITS) for number in range(5)]
    killed, cut = list[Job](), list[Job]()

    def strike() -> None:
        if killed:
            for job in jobs:
                if job not in killed + cut or lease.newest(job.folder / lease.FOLDER) > 1:
                    go(job)
            return
        if not all(len(counted(job)) > 10 for job in jobs):
            return
        dead, slow = nodes.spares
        killed.extend(on(dead, jobs))
        cut.extend(on(slow, jobs))
        # One of the killed node's jobs loses its minder and command as well, as when the machine itself is gone. The
        # other one's minder must see for itself that its worker is.
        minder = int(first(killed[0])["pid"])
        for pid in [raylet(dead), *descendants(raylet(dead)), minder, *descendants(minder)]:
            os.kill(pid, signal.SIGKILL)
        for pid in [raylet(slow), *descendants(raylet(slow))]:
            os.kill(pid, signal.SIGSTOP)  # Ray hears nothing of it any more; the commands go on

    ends = drive(launcher, jobs, strike)
    assert (len(killed), len(cut)) == (2, 1)
    lost = [end for end in ends if end.outcome == "lost"]
    assert sorted(end.job for end in lost) == sorted(job.id for job in killed + cut)
    assert all("process" in end.where and "its node is gone" in end.detail for end in lost), lost
    assert sorted(end.job for end in ends if end.outcome == "done") == [job.id for job in jobs]
    for job in jobs:
        assert counted(job) == list(range(UNITS)), job.id
        assert attempts(job) == ([1, 2] if job in killed + cut else [1])
    how = [lease.read(job.folder / lease.FOLDER, 1).ended for job in (*killed, *cut)]  # type: ignore[union-attr]
    assert how[0] is None
    told = [(ended["code"], ended["detail"]) for ended in how[1:] if ended is not None]
    assert told[0] in {(75, "whoever started it is gone"), (75, "asked to stop")}
    assert told[1:] == [(75, "asked to stop")]
    assert not alive(str(tmp_path))
