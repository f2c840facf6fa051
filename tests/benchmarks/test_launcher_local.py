"""Jobs as processes of this machine: how they end, where they run, and that none is left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from o2o_smooth.benchmarks.job_lock import begun
from o2o_smooth.benchmarks.launchers import keeper
from o2o_smooth.benchmarks.launchers.base import Ended, Job
from o2o_smooth.benchmarks.launchers.local import LocalLauncher
from o2o_smooth.errors import LaunchError

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
PATIENCE_S = 60.0
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a keeper forks")


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalLauncher]:
    monkeypatch.setenv("O2O_SMOOTH_KEEPER", "light")
    found = LocalLauncher(cores=CORES[:2], gpus=("7", "8"))
    yield found
    found.close(0.1)


def _job(folder: Path, code: str, name: str = "job", *, cpus: int = 1, gpus: float = 0.0) -> Job:
    (folder / name).mkdir(exist_ok=True)
    command = (sys.executable, "-c", f"import os, signal, sys, time\n{code}")
    return Job(name, command, folder / name, folder / f"{name}.txt", cpus=cpus, gpus=gpus, environment={"OWN": "x y"})


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _ended(launcher: LocalLauncher, count: int = 1) -> list[Ended]:
    found: list[Ended] = []

    def enough() -> bool:
        found.extend(launcher.poll())
        return len(found) >= count

    _until(enough)
    return found


def test_how_jobs_end(launcher: LocalLauncher, tmp_path: Path) -> None:
    cases = {"0": ("done", ""), "75": ("interrupted", "stopped in good order"), "3": ("failed", "exit code 3")}
    for code, (outcome, detail) in cases.items():
        launcher.start(_job(tmp_path, f"sys.exit({code})"))
        (ended,) = _ended(launcher)
        assert (ended.outcome, ended.detail) == (outcome, detail) and ended.where
    for name, outcome in (("SIGKILL", "lost"), ("SIGSEGV", "failed")):  # a crash would only be repeated
        launcher.start(_job(tmp_path, f"os.kill(os.getpid(), signal.{name})"))
        (ended,) = _ended(launcher)
        assert ended.outcome == outcome and name in ended.detail
    assert launcher.running() == {} and launcher.poll() == []


def test_a_job_has_its_cores_its_environment_and_its_log(launcher: LocalLauncher, tmp_path: Path) -> None:
    code = (
        "print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], os.environ['OWN'], "
        "'GPU', repr(os.environ['CUDA_VISIBLE_DEVICES']), flush=True)"
    )
    launcher.start(_job(tmp_path, code, "a"))
    _ended(launcher)
    launcher.start(_job(tmp_path, code + "; print('wrong', file=sys.stderr)", "a"))
    _ended(launcher)
    line = f"[{CORES[0]}] 1 x y GPU ''"
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").split("\n") == [line, line, "wrong", ""]


def test_no_more_jobs_than_cores_and_gpus_have_room(launcher: LocalLauncher, tmp_path: Path) -> None:
    wait = "time.sleep(100)"
    half = [_job(tmp_path, wait, f"gpu{i}", cpus=0, gpus=0.5) for i in range(5)]
    for job in half[:4]:
        assert launcher.room_for(job)
        launcher.start(job)
    assert not launcher.room_for(half[4]) and launcher.room_for(_job(tmp_path, wait))
    assert sorted(where[-1] for where in launcher.running().values()) == ["7", "7", "8", "8"]
    launcher.start(_job(tmp_path, wait, "a"))
    assert launcher.room_for(_job(tmp_path, wait, "b")) == (len(CORES) > 1)
    launcher.cancel("gpu0")
    (ended,) = _ended(launcher)
    assert ended == Ended("gpu0", "interrupted", ended.where, "stopped by SIGTERM") and launcher.room_for(half[4])
    with pytest.raises(LaunchError, match="cores"):
        launcher.start(_job(tmp_path, wait, "c", cpus=99))
    with pytest.raises(LaunchError, match="GPU"):
        launcher.start(_job(tmp_path, wait, "c", gpus=2.0))


def test_what_a_job_leaves_behind_is_killed_with_it(launcher: LocalLauncher, tmp_path: Path) -> None:
    code = "pid = os.fork()\nif pid == 0: time.sleep(100)\nprint(pid, flush=True)\nos._exit(0)"
    launcher.start(_job(tmp_path, code))
    _ended(launcher)
    child = int((tmp_path / "job.txt").read_text(encoding="utf-8"))
    _until(lambda: begun(child) is None)


def test_closing_asks_and_then_kills(launcher: LocalLauncher, tmp_path: Path) -> None:
    launcher.start(_job(tmp_path, "print(os.getpid(), flush=True)\ntime.sleep(100)", "mild"))
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\ntime.sleep(100)"
    launcher.start(_job(tmp_path, stubborn, "stubborn", cpus=0))
    logs = [tmp_path / "mild.txt", tmp_path / "stubborn.txt"]
    _until(lambda: all(log.is_file() and log.read_text(encoding="utf-8").endswith("\n") for log in logs))
    launcher.close(0.5)
    for log in logs:
        pid = int(log.read_text(encoding="utf-8"))
        _until(lambda pid=pid: begun(pid) is None)  # type: ignore[misc]
    assert {ended.job: ended.outcome for ended in launcher.poll()} == {"mild": "interrupted", "stubborn": "lost"}


def test_jobs_die_with_a_killed_runner(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from o2o_smooth.benchmarks.launchers.base import Job
from o2o_smooth.benchmarks.launchers.local import LocalLauncher
folder = Path({str(tmp_path)!r})
launcher = LocalLauncher()
command = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(100)")
launcher.start(Job("a", command, folder, folder / "a.txt"))
time.sleep(100)
"""
    environment = {**os.environ, "O2O_SMOOTH_KEEPER": "light"}
    log = tmp_path / "a.txt"
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        _until(lambda: log.is_file() and log.read_text(encoding="utf-8").endswith("\n"))
        process.kill()
    pid = int(log.read_text(encoding="utf-8"))
    _until(lambda: begun(pid) is None)


def test_jobs_of_a_killed_keeper_are_lost_and_can_be_started_again(launcher: LocalLauncher, tmp_path: Path) -> None:
    launcher.start(_job(tmp_path, "time.sleep(100)"))
    assert launcher._keeper is not None
    os.kill(launcher._keeper.pid, signal.SIGKILL)
    (ended,) = _ended(launcher)
    assert ended.outcome == "lost"
    launcher.start(_job(tmp_path, "sys.exit(0)"))
    assert _ended(launcher)[0].outcome == "done"


def test_the_keeper_knows_the_worker() -> None:
    found = importlib.util.find_spec(keeper.WORKER)
    assert found is not None and str(found.origin).endswith("worker.py")
