"""Attempts of a job on a machine: who may run it, how it is stopped, what is left when somebody dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks.launchers import lease, minder
from o2o_smooth.benchmarks.launchers.base import INTERRUPTED, Job, outcome_of
from o2o_smooth.benchmarks.launchers.worker import Worker, judged, order_for
from tests.benchmarks.launchers.counting import alive, attempts, counted, counting_job, go

UNITS = 20
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('up', 'w'); time.sleep(60)"


@pytest.mark.parametrize(
    ("code", "stopped", "outcome"),
    [
        (0, False, "done"),
        (0, True, "done"),
        (INTERRUPTED, False, "interrupted"),
        (1, False, "failed"),
        (1, True, "failed"),
        (143, True, "interrupted"),
        (143, False, "failed"),
        (-signal.SIGTERM, True, "interrupted"),
        (-signal.SIGTERM, False, "lost"),
        (-signal.SIGKILL, False, "lost"),
        (-signal.SIGSEGV, False, "failed"),
        (-signal.SIGSEGV, True, "failed"),
    ],
)
def test_outcome_of_a_code(code: int, stopped: bool, outcome: str) -> None:
    assert outcome_of(code, stopped=stopped)[0] == outcome


def start(job: Job, **settings: Any) -> Worker:
    order = order_for(job, via="test", grace_s=5.0, lease_s=2.0, environment={}, detach=True)
    return Worker(dataclasses.replace(order, **settings))


def script(folder: Path, code: str, **needs: Any) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(
        "job", (sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {code}"), folder, folder / "log", **needs
    )


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def only(job: Job, number: int = 1) -> lease.Attempt:
    attempt = lease.read(job.folder / lease.FOLDER, number)
    assert attempt is not None
    return attempt


def test_what_a_command_gets_and_leaves(tmp_path: Path) -> None:
    code = "print(*(os.environ[n] for n in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'MORE', 'O2O_SMOOTH_ATTEMPT')))"
    job = script(tmp_path, f"{code}; raise SystemExit(3)", cpus=2, environment={"MORE": "so"})
    ended = start(job).outcome()
    assert judged(ended) == ("failed", "exit code 3")
    assert job.log.read_text().splitlines()[1:] == ["2  so 1"]
    attempt = only(job)
    assert attempt.begun["via"] == "test"
    assert attempt.ended is not None
    assert attempt.ended["code"] == 3


def test_a_command_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    job = Job("job", ("/no/such/program",), tmp_path, tmp_path / "log")
    assert judged(start(job).outcome()) == ("failed", "cannot start it: /no/such/program: No such file or directory")
    gone = dataclasses.replace(job, folder=tmp_path / "gone")
    outcome, detail = judged(start(gone).outcome())
    assert (outcome, "cannot use the job's folder" in detail) == ("lost", True)


def test_a_newer_attempt_stops_the_older_one_and_goes_on(tmp_path: Path) -> None:
    job = counting_job(tmp_path, "job", UNITS, pause=0.02)
    first = start(job)
    until(lambda: len(counted(job)) > 2)
    second = start(job)
    assert judged(first.outcome()) == ("interrupted", "stopped in good order, asked to stop")
    go(job)
    assert judged(second.outcome())[0] == "done"
    assert counted(job) == list(range(UNITS))
    assert attempts(job) == [1, 2]


def test_command_ends_with_its_worker_and_with_its_minder(tmp_path: Path) -> None:
    held = script(
        tmp_path, "import subprocess, time; subprocess.Popen(['sleep', '61.5']); open('up', 'w'); time.sleep(60)"
    )
    order = order_for(held, via="test", grace_s=5.0, lease_s=2.0, environment={}, detach=True)
    root = Path(__file__).parents[3]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from o2o_smooth.benchmarks.launchers.minder import Order\n"
        "from o2o_smooth.benchmarks.launchers.worker import Worker\n"
        f"Worker(Order(**{dataclasses.asdict(order)!r})).outcome()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code])
    until((tmp_path / "up").exists)
    holder.kill()
    holder.wait()
    until(lambda: not alive(str(tmp_path)) and not alive("61.5"))  # also what the command had started
    until(lambda: only(held).ended)
    ended = only(held).ended or {}
    assert (ended["code"], ended["detail"]) == (-signal.SIGTERM, "whoever started it is gone")

    (tmp_path / "up").unlink()
    worker = start(held)
    until((tmp_path / "up").exists)
    os.kill(only(held, 2).begun["pid"], signal.SIGKILL)
    assert judged(worker.outcome()) == ("lost", "its minder was killed")
    until(lambda: not alive(f"os.chdir({str(tmp_path)!r})"))
    for pid in alive("61.5"):  # its own children nobody could end
        os.kill(pid, signal.SIGKILL)
    assert only(held, 2).ended is None


def test_a_command_that_does_not_stop_is_killed_after_the_grace(tmp_path: Path) -> None:
    job = script(tmp_path, STUBBORN)
    worker = start(job)
    until((tmp_path / "up").exists)
    worker.stop(0.2)
    outcome, detail = judged(worker.outcome())
    assert outcome == "lost"
    assert detail == "killed: asked to stop; had not stopped 0.2 s after SIGTERM"


def test_an_attempt_whose_folder_is_gone_kills_its_command(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    job = script(folder, STUBBORN)
    worker = start(job, lease_s=1.0)
    until((folder / "up").exists)
    folder.rename(tmp_path / "elsewhere")  # as when a file system does not answer
    outcome, detail = judged(worker.outcome())
    assert (outcome, "its folder could not be written for 0.5 s" in detail) == ("lost", True)


def test_an_attempt_that_was_taken_for_dead_kills_its_command(tmp_path: Path) -> None:
    job = script(tmp_path, STUBBORN)
    worker = start(job)
    until((tmp_path / "up").exists)
    (tmp_path / lease.FOLDER / "0002").write_text('{"token": "other"}\n')
    assert judged(worker.outcome()) == ("lost", "killed: another attempt has taken the job over")


@pytest.mark.parametrize("frozen", [True, False])
def test_only_time_in_which_its_minder_ran_counts_against_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    lease_s = 40.0
    job = counting_job(tmp_path, "job", 1)
    running = minder.Minder(order_for(job, via="", grace_s=5.0, lease_s=lease_s, environment={}, detach=False))
    clock = [0.0, *((0.5, 90.0, 90.5) if frozen else (5.0, 10.0, 15.0, 20.5))]  # and no beat arrives

    class Command:
        def poll(self) -> int | None:
            return None if clock else 0

    killed = list[str]()
    monkeypatch.setattr("o2o_smooth.benchmarks.launchers.minder.time.monotonic", lambda: clock.pop(0))
    monkeypatch.setattr(running, "_hear", lambda wait_s: None)
    monkeypatch.setattr(running, "_kill", lambda command, why: killed.append(why))
    running._beaten = 0.0
    running._mind(Command())  # type: ignore[arg-type]
    assert bool(killed) != frozen


def test_a_requeued_attempt_can_tell_the_last_one_from_itself(tmp_path: Path) -> None:
    first, second = lease.part("name", "0"), lease.part("name", "1")
    lost = lease.claim(tmp_path, first, {}, lease_s=0.4)
    assert lost is not None
    found = lease.last_of(tmp_path, "name")
    assert found is not None
    assert found.number == 1
    mine = lease.claim(tmp_path, second, {}, lease_s=0.4)
    assert mine is not None  # it has asked the first one to stop, not itself
    assert lease.asked_to_stop(tmp_path / lease.FOLDER, first)
    found = lease.last_of(tmp_path, "name")
    assert found is not None
    assert found.number == 2
    assert lease.last_of(tmp_path, "nam") is None
    assert mine.beat() == "go on"
    lease.ask_to_stop(tmp_path / lease.FOLDER, "name")
    assert mine.beat() == "stop"


def test_claims_of_the_dead_and_of_other_machines(tmp_path: Path) -> None:
    first = lease.claim(tmp_path, "first", {}, lease_s=0.4)
    assert first is not None
    assert first.beat() == "go on"
    begun = time.monotonic()
    second = lease.claim(tmp_path, "second", {}, lease_s=0.4)  # this process lives, but gives no sign
    assert second is not None
    assert time.monotonic() - begun >= 0.4
    assert first.beat() == "lost"
    assert second.number == 2
    # Another process of this machine that is no more need not be waited for; one of another machine must be.
    path = tmp_path / lease.FOLDER / "0003"
    gone = lease.here() | {"token": "third", "pid": 2**22 + 1}
    for about, waits in ((gone, False), (gone | {"boot": "another"}, True)):
        path.write_text(f"{about}\n".replace("'", '"'))
        begun = time.monotonic()
        mine = lease.claim(tmp_path, "new", {}, lease_s=0.6)
        assert mine is not None
        assert mine.number == 4
        assert (time.monotonic() - begun >= 0.6) == waits
        mine.path.unlink()


def test_a_living_attempt_is_waited_for_and_only_one_claims(tmp_path: Path) -> None:
    first = lease.claim(tmp_path, "first", {}, lease_s=0.5)
    assert first is not None
    claims: list[lease.Claim | None] = []
    over = threading.Event()
    seekers = [
        threading.Thread(
            target=lambda n=n: claims.append(lease.claim(tmp_path, f"n{n}", {}, lease_s=0.5, given_up=over.is_set))
        )
        for n in range(3)
    ]
    for seeker in seekers:
        seeker.start()
    for _ in range(12):
        time.sleep(0.1)
        assert first.beat() in ("go on", "stop")  # nobody has taken it
    assert first.beat() == "stop"
    first.end({"code": INTERRUPTED})
    until(lambda: lease.newest(tmp_path / lease.FOLDER) == 2)
    over.set()
    for seeker in seekers:
        seeker.join()
    assert [claim.number for claim in claims if claim is not None] == [2]
    assert lease.claim(tmp_path, "first", {}) is None  # it was asked to stop
