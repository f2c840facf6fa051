"""Jobs through submitit, against a stand-in for Slurm's commands that really runs the scripts."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from o2o_smooth.benchmarks.launchers import lease
from o2o_smooth.benchmarks.launchers.base import Ended
from o2o_smooth.benchmarks.launchers.slurm import RECORD, SlurmLauncher
from o2o_smooth.benchmarks.launchers.slurm_queue import passes
from o2o_smooth.errors import LaunchError
from tests.benchmarks.launchers.counting import alive, attempts, counted, counting_job, drive, go

pytest.importorskip("submitit")

UNITS = 40
QUICK: dict[str, Any] = {"poll_s": 0.1, "settle_s": 0.3, "grace_s": 3.0, "lease_s": 4.0}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setenv("SLURM_STAND_IN", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    from tests.benchmarks.launchers import slurm_stand_in

    monkeypatch.setattr(slurm_stand_in, "HERE", folder)
    slurm_stand_in.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield slurm_stand_in
    for number in slurm_stand_in.numbers():
        slurm_stand_in.scancel(number)
    deadline = time.monotonic() + 10
    while alive(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(str(tmp_path))


def calls(cluster: ModuleType, command: str) -> int:
    path = Path(cluster.HERE) / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(line.split()[0] == command for line in lines)


def until(what: Callable[[], object], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def collect(launcher: SlurmLauncher, count: int) -> dict[str, Ended]:
    ends: dict[str, Ended] = {}

    def enough() -> bool:
        ends.update({end.job: end for end in launcher.poll()})
        return len(ends) == count

    until(enough)
    return ends


def test_options_reach_the_script_and_endings_are_told(cluster: ModuleType, tmp_path: Path) -> None:
    launcher = SlurmLauncher("gpu", time_min=30, memory_gb=1.5, sbatch={"account": "lab"}, setup=["true"], **QUICK)
    done = counting_job(tmp_path, "done", 3, cpus=3, gpus=0.5)
    failed = dataclasses.replace(counting_job(tmp_path, "failed", 1), command=("false",), memory=2**31)
    go(done)
    for job in (done, failed):
        launcher.start(job)
    ends = collect(launcher, 2)
    assert (ends["done"].outcome, ends["failed"].outcome) == ("done", "failed")
    assert ends["failed"].detail == "exit code 1"
    assert "Slurm job 1" in ends["done"].where
    first, second = cluster.options("1"), cluster.options("2")
    assert {
        name: first[name] for name in ("partition", "time", "account", "cpus-per-task", "gpus-per-node", "mem")
    } == {
        "partition": "gpu",
        "time": "30",
        "account": "lab",
        "cpus-per-task": "3",
        "gpus-per-node": "1",  # Slurm gives whole ones
        "mem": "1536M",
    }
    assert "requeue" in first
    assert second["mem"] == "2368M"
    assert "gpus-per-node" not in second
    assert counted(done) == [0, 1, 2]


def test_refusals(cluster: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = counting_job(tmp_path, "job", 1)
    with pytest.raises(LaunchError, match=r"does not take job job: .*Batch job submission failed"):
        SlurmLauncher("none", **QUICK).start(job)
    (job.folder / RECORD).write_text("{")
    with pytest.raises(LaunchError, match="is broken"):
        SlurmLauncher(**QUICK).start(job)
    with pytest.raises(LaunchError, match=r"time-min=3 leaves no time to work: .* 180 s .* take at least 4"):
        SlurmLauncher(time_min=3, grace_s=90.0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="needs Slurm's sbatch, srun"):
        SlurmLauncher(**QUICK)


def test_a_full_queue_is_tried_again(cluster: ModuleType, tmp_path: Path) -> None:
    full = Path(cluster.HERE) / "full"
    full.touch()
    launcher = SlurmLauncher(**QUICK)
    job, dropped = counting_job(tmp_path, "job", 2), counting_job(tmp_path, "dropped", 2)
    go(job)
    for one in (job, dropped):
        launcher.start(one)
    assert launcher.running() == {"job": "queued", "dropped": "queued"}
    assert not launcher.room_for(job)
    launcher.cancel("dropped")
    assert collect(launcher, 1)["dropped"].outcome == "interrupted"
    assert launcher.running() == {"job": "queued"}
    full.unlink()
    assert collect(launcher, 1)["job"].outcome == "done"
    assert launcher.room_for(job)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        ("AssocMaxSubmitJobLimit", True),
        ("QOSMaxSubmitJobPerUserLimit", True),
        ("QOSMaxWallDurationPerJobLimit", False),
        ("AssocMaxCpuPerJobLimit", False),
        ("", True),
    ],
)
def test_what_passes_by_itself_of_a_policy(error: str, passing: bool) -> None:
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    assert passes(f"sbatch: error: {error}\nsbatch: error: Batch job submission failed: {policy}") == passing


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        ("Unable to contact slurm controller (connect failure)", True),
        ("Socket timed out on send/recv operation", True),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Requested node configuration is not available", False),
    ],
)
def test_what_passes_by_itself(error: str, passing: bool) -> None:
    assert passes(f"sbatch: error: Batch job submission failed: {error}") == passing


def test_who_asks_where_jobs_are_takes_nothing_from_who_polls(cluster: ModuleType, tmp_path: Path) -> None:
    launcher = SlurmLauncher(**QUICK)
    job = dataclasses.replace(counting_job(tmp_path, "job", 1), command=("true",))
    launcher.start(job)
    ends: list[Ended] = []

    def told() -> bool:
        time.sleep(QUICK["poll_s"])
        launcher.running()
        ends.extend(launcher.poll())
        return bool(ends)

    until(told, within_s=20)
    assert [end.outcome for end in ends] == ["done"]


def test_a_job_that_nothing_can_run_is_not_tried_again(cluster: ModuleType, tmp_path: Path) -> None:
    (Path(cluster.HERE) / "held").touch()
    launcher = SlurmLauncher(**QUICK)
    never, again, hungry = (counting_job(tmp_path, name, 1) for name in ("never", "again", "hungry"))
    for job in (never, again, hungry):
        launcher.start(job)
    for number, reason in (("1", "BadConstraints"), ("2", "NonZeroExitCode"), ("3", "NonZeroExitCode")):
        (Path(cluster.HERE) / number / "reason").write_text(reason)
        cluster.set_state(number, "FAILED")
    (again.folder / "slurm" / "2_0_log.out").write_text("much\nsrun: fatal: no  room\n\n")
    killed = "slurmstepd-node1: error: StepId=3.0 exceeded memory limit (2 > 1), being killed\nsrun: task 0: Killed\n"
    (hungry.folder / "slurm" / "3_0_log.out").write_text(killed)
    ends = collect(launcher, 3)
    assert (ends["hungry"].outcome, ends["hungry"].detail[:13]) == ("failed", "out of memory")
    assert (ends["never"].outcome, "(Slurm: BadConstraints)" in ends["never"].detail) == ("failed", True)
    assert ends["again"].outcome == "lost"
    assert "(Slurm: FAILED; srun: fatal: no room; " in ends["again"].detail


@pytest.mark.slow
def test_runner_started_again_submits_nothing_twice(cluster: ModuleType, tmp_path: Path) -> None:
    held = Path(cluster.HERE) / "held"
    jobs = [counting_job(tmp_path, name, UNITS) for name in ("runs", "ends", "waits", "unnumbered")]
    runs, ends, waits, unnumbered = jobs
    go(ends)
    first = SlurmLauncher(keep=True, **QUICK)
    for job in (runs, ends):
        first.start(job)
    until(lambda: counted(runs) and counted(ends) == list(range(UNITS)))
    held.touch()
    for job in (waits, unnumbered):
        first.start(job)
    record = json.loads((unnumbered.folder / RECORD).read_text())
    (unnumbered.folder / RECORD).write_text(json.dumps(record | {"number": None}))  # killed before it was written
    first.close()  # keeps what is there

    second = SlurmLauncher(**QUICK)
    for job in jobs:
        second.start(job)
    assert calls(cluster, "sbatch") == 4
    until(lambda: second.poll() or second.running()["waits"] == "queued (Resources)")
    held.unlink()
    for job in jobs:
        go(job)
    rest = drive(second, [], lambda: None)
    assert {end.outcome for end in rest} <= {"done"}
    assert calls(cluster, "sbatch") == 4
    for job in jobs:
        assert counted(job) == list(range(UNITS))
        assert attempts(job) == [1]
    # What has been told is over: the same job is submitted anew, and ends at once.
    second.start(ends)
    assert calls(cluster, "sbatch") == 5
    assert collect(second, 1)["ends"].outcome == "done"


@pytest.mark.slow
def test_preempted_and_lost_jobs_lose_nothing_and_do_nothing_twice(cluster: ModuleType, tmp_path: Path) -> None:
    launcher = SlurmLauncher(**QUICK)
    jobs = [counting_job(tmp_path, name, UNITS) for name in ("preempted", "lost")]
    struck = list[int]()

    def strike() -> None:
        if not struck and all(len(counted(job)) > 5 for job in jobs):
            struck.append(1)
            cluster.signal_job("1", signal.SIGUSR2)  # to all processes, as Slurm sends it
            cluster.fail_node("2")
            for job in jobs:
                go(job)

    ends = drive(launcher, jobs, strike)
    assert [(end.job, end.outcome) for end in ends if end.outcome != "done"] == [("lost", "lost")]
    assert sorted(end.job for end in ends if end.outcome == "done") == ["lost", "preempted"]
    assert calls(cluster, "scontrol") == 1
    assert calls(cluster, "sbatch") == 3  # the preempted one was requeued, not submitted again
    for job in jobs:
        assert counted(job) == list(range(UNITS)), job.id
        assert attempts(job) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("known", ["to both", "to squeue", "to accounting", "to none"])
def test_cancelling_in_good_order(cluster: ModuleType, tmp_path: Path, known: str) -> None:
    if known in ("to squeue", "to none"):
        (Path(cluster.HERE) / "no-accounting").touch()
    if known in ("to accounting", "to none"):
        (Path(cluster.HERE) / "forgetful").touch()
    launcher = SlurmLauncher(**QUICK)
    runs, by_user, waits = (counting_job(tmp_path, name, UNITS) for name in ("runs", "by-user", "waits"))
    for job in (runs, by_user):
        launcher.start(job)
    until(lambda: counted(runs) and counted(by_user))
    assert launcher.running().keys() == {"runs", "by-user"}
    (Path(cluster.HERE) / "held").touch()
    launcher.start(waits)
    launcher.cancel("runs")
    launcher.cancel("waits")
    cluster.scancel("2")
    ends = collect(launcher, 3)
    assert (ends["runs"].outcome, ends["waits"].outcome) == ("interrupted", "interrupted")
    stopped = lease.read(runs.folder / lease.FOLDER, 1)
    assert stopped is not None
    assert stopped.ended is not None
    assert stopped.ended["code"] == 75
    assert not counted(waits)
    why = "Slurm knows nothing of it any more" if known == "to none" else "cancelled with scancel, not by the runner"
    assert ends["by-user"].outcome == "lost"
    assert ends["by-user"].detail.startswith(why)
    launcher.close(grace_s=5.0)
    assert not [number for number in cluster.numbers() if cluster.state(number) in ("PENDING", "RUNNING")]


def test_a_job_that_asks_for_something_else_replaces_the_old_one(cluster: ModuleType, tmp_path: Path) -> None:
    (Path(cluster.HERE) / "held").touch()
    job = counting_job(tmp_path, "job", UNITS)
    SlurmLauncher(**QUICK).start(job)
    launcher = SlurmLauncher(**QUICK)
    launcher.start(dataclasses.replace(job, cpus=2))
    assert cluster.state("1").startswith("CANCELLED")
    assert cluster.options("2")["cpus-per-task"] == "2"
