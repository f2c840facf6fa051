"""The runner's decisions, with a launcher that only says what it is told to say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks import job_lock
from o2o_smooth.benchmarks import runner as runner_module
from o2o_smooth.benchmarks.job_lock import Lock
from o2o_smooth.benchmarks.launchers.base import Ended, Job, Outcome
from o2o_smooth.benchmarks.runner import Ending, Runner, Standing, forget_failures
from o2o_smooth.benchmarks.study import PlannedJob, PlannedRun, Study, StudyError, write_json
from o2o_smooth.errors import LaunchError

Script = Mapping[str, list[Outcome | str]]


class Scripted:
    """Ends every job as its script says: an outcome, `fails` or `done` with the file that belongs to it."""

    name = "scripted"
    keep = False

    def __init__(self, study: Study, script: Script, room: int = 2) -> None:
        self.study, self.script, self.room = study, {k: list(v) for k, v in script.items()}, room
        self.started: list[str] = []
        self.most = 0
        self.closed = False
        self._running: dict[str, Job] = {}

    def room_for(self, job: Job) -> bool:
        return len(self._running) < self.room

    def start(self, job: Job) -> None:
        if self.script.get(job.id) == ["never"]:
            raise LaunchError(f"job {job.id} asks for too much")
        assert job.folder.is_dir() and job.command[-1] == str(job.folder)
        self.started.append(job.id)
        self._running[job.id] = job
        self.most = max(self.most, len(self._running))

    def running(self) -> dict[str, str]:
        return dict.fromkeys(self._running, "here")

    def poll(self) -> list[Ended]:
        ended = []
        for name, job in list(self._running.items()):
            what = (self.script.get(name) or ["done"]).pop(0)
            if what == "stop":
                raise KeyboardInterrupt
            if what == "done":
                write_json(job.folder / "done.json", {"wall_s": 1.0, "pretraining": f"hash of {name}"})
            if what == "fails":
                write_json(job.folder / "failed.json", {"error": "it was no good"})
            outcome: Any = {"fails": "failed", "empty": "done"}.get(what, what)
            ended.append(Ended(name, outcome, "here", "why"))
            del self._running[name]
        return ended

    def cancel(self, job: str) -> None:
        self._running.pop(job)

    def close(self, grace_s: float = 10.0) -> None:
        self.closed = True


class Listener:
    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, standings: Mapping[str, Standing]) -> None: ...

    def event(self, text: str) -> None:
        self.events.append(text)

    def refresh(self, standings: Mapping[str, Standing]) -> None: ...


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_POLL_S", 0.0)
    monkeypatch.setattr(runner_module, "_PAUSE_S", 0.0)


def _study(folder: Path) -> Study:
    """Two pretrainings, the second with two jobs behind it."""
    study = Study(folder)
    jobs = [
        PlannedJob("a", "pretrain", predicted_s=1.0),
        PlannedJob("b", "pretrain", predicted_s=1.0),
        PlannedJob("a1", "arms", ("a",), predicted_s=1.0),
        PlannedJob("b1", "arms", ("b",), predicted_s=1.0),
        PlannedJob("b2", "arms", ("b",), predicted_s=5.0),
    ]
    study.add(jobs, [PlannedRun(f"runs/{n}", "t", "g", n, {}, (0,), n, "key") for n in ("a1", "b1", "b2")])
    study.write()
    return study


def _run(study: Study, script: Script, **options: Any) -> tuple[Ending, Scripted, list[str]]:
    launcher, listener = Scripted(study, script), Listener()
    return Runner(study, launcher, listener, **options).run(), launcher, listener.events


def test_what_leads_to_most_work_begins_first_and_nothing_before_its_needs(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, launcher, _ = _run(study, {})
    assert launcher.started == ["b", "a", "b2", "a1", "b1"] and launcher.most == 2 and launcher.closed
    assert set(ending.done) == set(study.jobs) and not ending.failed and not ending.blocked
    assert [run.pretraining for run in Study.read(tmp_path).runs] == ["hash of a", "hash of b", "hash of b"]


def test_a_failure_blocks_what_hangs_on_it_and_nothing_else(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, launcher, _ = _run(study, {"b": ["fails"]})
    assert launcher.started == ["b", "a", "a1"]
    assert ending.failed == {"b": "it was no good"} and ending.blocked == {"b1": "b", "b2": "b"}
    again, launcher, _ = _run(Study.read(tmp_path), {})  # told again, not tried again
    assert launcher.started == [] and again.failed == ending.failed and again.blocked == ending.blocked
    assert forget_failures(study) == ["b"] and (study.job_folder("b") / "failed-1.json").is_file()
    rerun, launcher, _ = _run(Study.read(tmp_path), {})
    assert launcher.started == ["b", "b2", "b1"] and set(rerun.done) == set(study.jobs)


def test_what_was_lost_starts_again_and_not_for_ever(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, launcher, events = _run(study, {"a": ["lost", "lost"], "b": ["lost"] * 9}, retries=2)
    assert launcher.started.count("a") == 3 and launcher.started.count("b") == 3
    assert set(ending.done) == {"a", "a1"} and "lost 3 times" in ending.failed["b"]
    assert sum("starts again" in event for event in events) == 4


def test_an_interrupted_job_goes_on(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, launcher, _ = _run(study, {"a": ["interrupted"] * 5}, retries=0)
    assert launcher.started.count("a") == 6 and "a" in ending.done


def test_an_end_without_a_result_is_no_end(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, launcher, _ = _run(study, {"a": ["empty", "done"], "b": ["failed"]})
    assert launcher.started.count("a") == 2 and "a" in ending.done
    assert "log" in ending.failed["b"] and (study.job_folder("b") / "failed.json").is_file()


def test_a_job_that_can_never_run_fails_alone(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, _, _ = _run(study, {"a": ["never"]})
    assert "asks for too much" in ending.failed["a"] and ending.blocked == {"a1": "a"} and "b2" in ending.done
    assert study.progress("a").state == "failed"  # for `bench status`
    again, launcher, _ = _run(study, {})  # with another launcher, as it were
    assert launcher.started == ["a", "a1"] and set(again.done) == set(study.jobs)


def test_ctrl_c_stops_and_the_next_go_does_the_rest(tmp_path: Path) -> None:
    study = _study(tmp_path)
    ending, launcher, _ = _run(study, {"b2": ["stop"]})
    assert ending.interrupted and launcher.closed and set(ending.done) == {"a", "b"}
    rest, launcher, _ = _run(Study.read(tmp_path), {})
    assert launcher.started == ["b2", "a1", "b1"] and set(rest.done) == set(study.jobs)


def test_two_runners_do_not_share_a_study(tmp_path: Path) -> None:
    study = _study(tmp_path)
    with Lock(tmp_path / "lock") as lock:
        assert lock.acquire()
        with pytest.raises(StudyError, match="is at work on"):
            _run(study, {})
    assert not _run(study, {})[0].failed


def test_a_runner_of_a_machine_that_is_gone_does_not_keep_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of the machine or in a new container nobody can tell at once whether it still runs."""
    monkeypatch.setattr(job_lock, "STALE_S", 1.5)
    study = _study(tmp_path)
    owner = {"id": "other", "node": "far", "here": "far away", "pid": 1, "begun": "1", "beat": 7}
    write_json(tmp_path / "lock", owner)
    ending, _, events = _run(study, {})
    assert set(ending.done) == set(study.jobs) and any("process 1 on far had this study" in e for e in events)
    write_json(tmp_path / "lock", owner)
    waits = Listener.event

    def beats(self: Listener, text: str) -> None:  # it lives after all
        waits(self, text)
        write_json(tmp_path / "lock", {**owner, "beat": 8})

    monkeypatch.setattr(Listener, "event", beats)
    with pytest.raises(StudyError, match="process 1 on far is at work"):
        _run(study, {})


def test_what_was_planned_meanwhile_is_kept(tmp_path: Path) -> None:
    study, other = _study(tmp_path), Study.read(tmp_path)
    other.add([PlannedJob("b3", "arms", ("b",))], [PlannedRun("runs/b3", "t", "g", "b3", {}, (0,), "b3", "key")])
    other.write()
    _run(study, {})
    assert [run.pretraining for run in Study.read(tmp_path).runs] == ["hash of a", *["hash of b"] * 3]


def test_only_what_has_failed_can_be_forgotten(tmp_path: Path) -> None:
    study = _study(tmp_path)
    with pytest.raises(StudyError, match="no job 'z'"):
        forget_failures(study, ["z"])
    with pytest.raises(StudyError, match="has not failed"):
        forget_failures(study, ["a"])


def test_where_a_job_is_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_WHERE_S", 0.0)
    seen = list[str]()

    class Moving(Scripted):
        def running(self) -> dict[str, str]:
            return dict.fromkeys(self._running, "queued" if not seen else "a node")

        def poll(self) -> list[Ended]:
            return super().poll() if len(seen) > 2 else []

    class Watching(Listener):
        def refresh(self, standings: Mapping[str, Standing]) -> None:
            seen.append(standings["b"].where)

    Runner(_study(tmp_path), Moving(_study(tmp_path), {}), Watching()).run()
    assert seen[:3] == ["queued", "a node", "a node"]
