"""Real Slurm: a controller and two nodes of this machine, whose jobs are cancelled, killed, preempted and lost."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks import opening
from o2o_smooth.benchmarks.launchers import lease
from o2o_smooth.benchmarks.launchers.base import Ended, Job
from o2o_smooth.benchmarks.launchers.slurm import RECORD, SlurmLauncher
from o2o_smooth.cli_bench import bench
from o2o_smooth.errors import LaunchError
from tests.benchmarks import study_cases
from tests.benchmarks.launchers.counting import alive, attempts, counted, counting_job, drive, go
from tests.benchmarks.launchers.slurm_cluster import Cluster, why_not

pytest.importorskip("submitit")
pytestmark = pytest.mark.slow

UNITS = 20
QUICK: dict[str, Any] = {"poll_s": 0.3, "settle_s": 1.0, "grace_s": 5.0, "lease_s": 4.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if (reason := why_not()) is not None:
        pytest.skip(f"no Slurm to be had: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="o2o-slurm-"))
    made = Cluster(folder, {"node1": 2, "node2": 2})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", made.environment["SLURM_CONF"])
            patch.setenv("PATH", made.environment["PATH"])
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
            made.start()
            yield made
    finally:
        made.close()
        left = alive(str(folder))
        shutil.rmtree(folder)
    assert not left


@pytest.fixture(autouse=True)
def nothing_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.call("scancel", "--me")
    for name in set(cluster.nodes) - cluster.up():
        cluster.start_node(name)
    cluster.until_idle()


def number(job: Job) -> str:
    return str(json.loads((job.folder / RECORD).read_text())["number"])


def host(job: Job) -> str:
    attempt = lease.read(job.folder / lease.FOLDER, lease.newest(job.folder / lease.FOLDER))
    assert attempt is not None
    return str(attempt.begun["host"])


def submitted(cluster: Cluster) -> int:
    return len(cluster.call("squeue", "--states=all", "--noheader", "--format", "%i").split())


def kill_command(job: Job) -> None:
    for pid in alive(f"os.chdir({str(job.folder)!r})"):
        os.kill(pid, signal.SIGKILL)


def test_what_a_job_gets_and_what_is_refused(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_PER_TASK": "1"}.items():
        monkeypatch.setenv(name, value)  # as in an allocation of salloc
    script = "import os; print('has', len(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES'])"
    job = counting_job(tmp_path, "job", 1, cpus=min(2, os.cpu_count() or 1), gpus=0.5, memory=2**28)
    job = dataclasses.replace(job, command=(sys.executable, "-c", script))
    ends = drive(SlurmLauncher("low", sbatch={"comment": "a b"}, setup=["true"], **QUICK), [job], lambda: None)
    assert [end.outcome for end in ends] == ["done"]
    assert job.log.read_text().splitlines()[1] == f"has {job.cpus} 0"
    refused: tuple[tuple[SlurmLauncher, dict[str, Any], str], ...] = (
        (SlurmLauncher("none", **QUICK), {}, "invalid partition specified: none"),
        (SlurmLauncher("short", **QUICK), {}, "Requested time limit is invalid"),
        (SlurmLauncher(sbatch={"constraint": "a100"}, **QUICK), {}, "Invalid feature specification"),
        (SlurmLauncher(**QUICK), {"memory": 2**40}, "Memory specification can not be satisfied"),
        (SlurmLauncher(**QUICK), {"cpus": 64}, "More processors requested than permitted"),
        (SlurmLauncher(memory_gb=9000, **QUICK), {"memory": None}, "Memory specification can not be satisfied"),
        (SlurmLauncher(**QUICK), {"gpus": 9.0}, "Requested node configuration is not available"),
    )
    for launcher, needs, why in refused:
        with pytest.raises(LaunchError, match=why):
            launcher.start(dataclasses.replace(job, **needs))


def test_nothing_is_lost_and_nothing_done_twice(cluster: Cluster, tmp_path: Path) -> None:
    before = submitted(cluster)
    jobs = [counting_job(tmp_path, name, UNITS) for name in ("scancelled", "killed", "signalled", "lost")]
    scancelled, killed, signalled, lost = jobs
    first = SlurmLauncher(keep=True, **QUICK)
    for job in jobs:
        first.start(job)
    cluster.until(lambda: all(counted(job) for job in jobs))
    record = json.loads((lost.folder / RECORD).read_text())
    (lost.folder / RECORD).write_text(json.dumps(record | {"number": None}))  # killed before it was written
    first.close()
    second = SlurmLauncher(**QUICK)
    struck = list[str]()

    def strike() -> None:
        cluster.hurry()
        if not struck:
            assert submitted(cluster) == before + 4  # a runner started again has found them
            struck.append("jobs")
            cluster.call("scancel", number(scancelled))
            cluster.call("scancel", "--signal=USR2", number(signalled))  # to all processes, as before a time limit
            kill_command(killed)
            for job in (scancelled, killed, signalled):
                go(job)
        elif struck == ["jobs"] and all(len(counted(job)) == UNITS for job in (scancelled, killed, signalled)):
            struck.append("node")
            cluster.lose_node(host(lost))
            go(lost)

    ends = drive(second, jobs, strike)
    assert sorted((end.job, end.outcome) for end in ends) == [
        ("killed", "done"),
        ("killed", "lost"),
        ("lost", "done"),  # requeued by Slurm, as was the one that got its signal
        ("scancelled", "done"),
        ("scancelled", "lost"),
        ("signalled", "done"),
    ]
    assert submitted(cluster) == before + 6
    for job in jobs:
        assert counted(job) == list(range(UNITS)), job.id
        assert attempts(job) == [1, 2]


def test_preempted_queued_and_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    launcher = SlurmLauncher("low", sbatch={"nodelist": "node1"}, **QUICK)
    preempted, waits = (counting_job(tmp_path, name, UNITS, cpus=2) for name in ("preempted", "waits"))
    launcher.start(preempted)
    cluster.until(lambda: counted(preempted))
    launcher.start(waits)
    ends = list[Ended]()

    def told() -> dict[str, str]:
        ends.extend(launcher.poll())
        return launcher.running()

    cluster.until(lambda: told()["waits"] == "queued (Resources)")
    other = ("sbatch", "--partition=high", "--nodelist=node1", "--cpus-per-task=2", "--output=/dev/null")
    cluster.call(*other, "--wrap=sleep 2")
    cluster.until(lambda: told()["preempted"].startswith("queued"))
    launcher.cancel("waits")
    go(preempted)

    def over() -> bool:
        cluster.hurry()
        told()
        return len(ends) == 2

    cluster.until(over)
    assert sorted((end.job, end.outcome, end.detail) for end in ends) == [
        ("preempted", "done", ""),
        ("waits", "interrupted", "stopped"),
    ]
    assert counted(preempted) == list(range(UNITS))
    assert attempts(preempted) == [1, 2]
    assert not counted(waits)
    stopped = counting_job(tmp_path, "stopped", UNITS)
    launcher.start(stopped)
    cluster.until(lambda: counted(stopped))
    launcher.close(grace_s=15.0)
    last = lease.read(stopped.folder / lease.FOLDER, 1)
    assert last is not None
    assert last.ended is not None
    assert (last.ended["code"], last.ended["detail"]) == (75, "asked to stop")


def test_a_job_goes_elsewhere_where_a_node_cannot_start_it(cluster: Cluster, tmp_path: Path) -> None:
    job = counting_job(tmp_path, "job", 2)
    go(job)
    (cluster.folder / "bad-node1").touch()
    try:
        ends = drive(SlurmLauncher(**QUICK), [job], lambda: None)
    finally:
        (cluster.folder / "bad-node1").unlink()
        cluster.call("scontrol", "update", "nodename=node1", "state=resume")
    held = "its node could not start it (Slurm: launch failed requeued held)"
    assert [(end.outcome, end.detail) for end in ends] == [("lost", held), ("done", "")]
    assert host(job) == "node2"
    # A process of the batch job that dies before the command has begun: told with what it said.
    launcher = SlurmLauncher(setup=["echo no such module >&2", "exit 3"], **QUICK)
    broken = counting_job(tmp_path, "broken", 2)
    launcher.start(broken)
    said = list[Ended]()

    def told() -> bool:
        said.extend(launcher.poll())
        return bool(said)

    cluster.until(told)
    assert said[0].outcome == "lost"
    assert "could not begin (Slurm: FAILED; no such module; " in said[0].detail


def test_a_job_that_needs_more_memory_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    job = counting_job(tmp_path, "job", 1, memory=2**24)
    script = "import time; held = b'1' * 2**29; time.sleep(30)"
    ends = drive(
        SlurmLauncher(**QUICK), [dataclasses.replace(job, command=(sys.executable, "-c", script))], lambda: None
    )
    assert [(end.outcome, end.detail[:13]) for end in ends] == [("failed", "out of memory")]


def test_a_study(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "make_results", lambda folder: [])
    text = study_cases.TEXT.replace("DATA", str(study_cases.dataset(tmp_path)))
    (tmp_path / "tiny.toml").write_text(text.replace("offline_updates = 4", "offline_updates = 0"))
    where = ["--out", str(tmp_path / "a study"), "--cache", str(tmp_path / "cache")]
    options = [f"--launcher-option={name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert (
        bench([str(tmp_path / "tiny.toml"), *where, "--arms", "jump", "--seeds", "0", "--launcher", "slurm", *options])
        == 0
    )
    assert "1 of 1 jobs done" in capsys.readouterr().out
