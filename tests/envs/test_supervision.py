"""An environment that raises, hangs or is killed costs its episode and nothing else; a broken one ends the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.envs import make_vector_env
from o2o_smooth.envs.inline import InlineVectorEnv
from o2o_smooth.envs.make import Vector, final_observations
from o2o_smooth.envs.supervision import DROPPED, Failure, Gone, Supervision, Supervisor, faults_of
from o2o_smooth.envs.workers import WorkerVectorEnv
from o2o_smooth.errors import EnvError
from tests.envs.misbehaving import LENGTH, misbehaving

SEEDS = [11, 22]
SHORT = Supervision(timeout_s=3.0)
"""For tests in which one hangs; long enough for the others on a busy machine."""
FOUND: dict[str, str] = {
    "raise": "ValueError: the joint broke",
    "sleep": "no answer for 3 s",
    "kill": "its process was killed by signal 9, perhaps by the system for want of memory",
    "exit": "its process ended with exit code 3",
}
WAYS = [("sync", "raise"), *(("async", how) for how in FOUND)]


@contextlib.contextmanager
def made(vectorizer: str, how: str, supervision: Supervision | None = None, **kwargs: Any) -> Iterator[Vector]:
    if supervision is None and how in ("sleep", "obey"):
        supervision = SHORT
    envs = make_vector_env(misbehaving(how, **kwargs), len(SEEDS), vectorizer=vectorizer, supervision=supervision)
    try:
        yield envs
    finally:
        envs.close()
        assert not multiprocessing.active_children()


def actions(value: float = 0.0) -> NDArray[np.float32]:
    return np.full((len(SEEDS), 1), value, np.float32)


@pytest.mark.parametrize(("vectorizer", "how"), WAYS)
def test_a_failing_environment_is_made_anew_and_the_others_go_on(vectorizer: str, how: str, tmp_path: Path) -> None:
    """Environment 1 fails in its third step, once."""
    with made(vectorizer, how, marks=str(tmp_path), times=1, tag=SEEDS[1]) as envs:
        first, _ = envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        before = [envs.step(actions()) for _ in range(2)]
        assert all(DROPPED not in step[-1] for step in before)
        assert faults_of(envs) == []
        obs, reward, terminated, truncated, infos = envs.step(actions())
        assert infos[DROPPED].tolist() == [False, True]
        assert reward.tolist() == [3.0, 0.0]
        assert terminated.tolist() == [False, False]
        assert truncated.tolist() == [False, True]
        assert obs[0].tolist() == [first[0, 0], 3.0]
        # What follows the last observation that was seen is not known; a new episode has begun.
        np.testing.assert_array_equal(final_observations(obs, infos)[1], [first[1, 0], 2.0])
        assert obs[1, 1] == 0.0
        assert obs[1, 0] != first[1, 0]
        (fault,) = faults_of(envs)
        assert (fault.env, fault.failure.cause, fault.restarts) == (1, FOUND[how], 1)
        assert ("misbehaving.py" in fault.failure.trace) == (how == "raise")
        steps = [envs.step(actions()) for _ in range(LENGTH)]
        assert [step[0][1, 1] for step in steps] == [*range(1, LENGTH), 0.0]
        assert [step[3][0] for step in steps] == [k == LENGTH - 4 for k in range(LENGTH)]
        assert all(DROPPED not in step[-1] for step in steps)


def test_what_follows_a_restart_depends_on_the_seed_and_the_count_alone(tmp_path: Path) -> None:
    """In this process or another, as the first of two environments or the second."""
    found = []
    for k, (vectorizer, seeds) in enumerate([("sync", [7, 1]), ("sync", [1, 7]), ("async", [1, 7])]):
        folder = tmp_path / str(k)
        folder.mkdir()
        with made(vectorizer, "raise", marks=str(folder), times=1, tag=7) as envs:
            envs.reset(seed=seeds)  # type: ignore[arg-type]
            lane = seeds.index(7)
            found.append([envs.step(actions())[0][lane].tolist() for _ in range(12)])
    assert found[0] == found[1] == found[2]
    one, two = Supervisor(1, Supervision()), Supervisor(1, Supervision())
    one.seeds[0] = two.seeds[0] = 7
    one.restarts[0], two.restarts[0] = 1, 2
    assert one.seed(0) not in (None, 7, two.seed(0))


def test_where_episodes_are_repeated_the_seed_is_the_same(tmp_path: Path) -> None:
    with made("sync", "raise", Supervision(repeat=True), marks=str(tmp_path), times=1, tag=SEEDS[1]) as envs:
        first, _ = envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        for _ in range(3):
            obs = envs.step(actions())[0]
        np.testing.assert_array_equal(obs[1], first[1])


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
def test_an_environment_that_keeps_failing_ends_it(vectorizer: str) -> None:
    """Its first step fails, again and again."""
    with made(vectorizer, "raise", at=1, tag=None) as envs:
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        envs.step(actions())
        envs.step(actions())
        with pytest.raises(EnvError, match=r"environment 0 failed: ValueError: the joint broke; 3 times .*line"):
            envs.step(actions())


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
def test_restarts_are_limited(vectorizer: str) -> None:
    """A third step fails in every episode; in between steps are finished, so it is never three in a row."""
    with made(vectorizer, "raise", Supervision(max_restarts=3), tag=None) as envs:
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        for _ in range(5):
            envs.step(actions())
        with pytest.raises(EnvError, match=r"the joint broke; after 3 restarts, .*--env-restarts"):
            envs.step(actions())


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
def test_a_reset_that_fails_is_tried_again(vectorizer: str, tmp_path: Path) -> None:
    with made("sync", "nothing") as envs:
        expected, _ = envs.reset(seed=SEEDS)  # type: ignore[arg-type]
    with made(vectorizer, "raise", at=0, marks=str(tmp_path), times=2) as envs:
        obs, _ = envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        np.testing.assert_array_equal(obs, expected)
        assert len(faults_of(envs)) == 2


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
def test_a_reset_that_always_fails_is_an_error(vectorizer: str) -> None:
    with made(vectorizer, "raise", at=0) as envs, pytest.raises(EnvError, match="the joint broke; 3 times in a row"):
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]


def test_a_process_that_dies_between_steps_is_noticed_in_the_next() -> None:
    with made("async", "nothing") as envs:
        assert isinstance(envs, WorkerVectorEnv)
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        os.kill(envs.processes[0].pid, signal.SIGKILL)
        envs.processes[0].join()
        infos = envs.step(actions())[-1]
        assert infos[DROPPED].tolist() == [True, False]
        assert "signal 9" in faults_of(envs)[0].failure.cause


def test_the_pause_of_the_whole_program_is_no_ones_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-Z: one wait of a second may have taken an hour, in which nobody could answer."""
    with made("async", "nothing") as envs:
        assert isinstance(envs, WorkerVectorEnv)
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        waits, ready = [0], envs._ready

        def asleep(i: int, seconds: float) -> bool:
            waits[0] += 1
            return False if waits[0] == 1 else ready(i, 10.0)

        envs.supervisor.settings = Supervision(timeout_s=2.0)
        monkeypatch.setattr(envs, "_ready", asleep)
        assert DROPPED not in envs.step(actions())[-1]
        monkeypatch.undo()


def test_closing_does_not_wait_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o2o_smooth.envs.workers.ENDING_S", 0.2)
    with made("async", "obey", Supervision(timeout_s=1e6)) as envs:
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        assert isinstance(envs, WorkerVectorEnv)
        envs.step_async(actions(1.0))


def test_what_an_environment_started_ends_with_it() -> None:
    """A simulator that a hanging environment has started is killed too."""
    with made("async", "obey") as envs:
        assert isinstance(envs, WorkerVectorEnv)
        child, _ = envs.ask(start_a_child)
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        envs.step(actions(1.0))
        assert wait_until_gone(child)


def start_a_child(env: Any) -> int:
    env.unwrapped.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return int(env.unwrapped.child.pid)


def wait_until_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("hanging", [False, True])
def test_no_process_is_left_when_the_parent_is_killed(hanging: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from o2o_smooth.envs import make_vector_env\n"
        "from tests.envs.test_supervision import SEEDS, actions, misbehaving\n"
        "if __name__ == '__main__':\n"
        "    envs = make_vector_env(misbehaving('obey'), 2, vectorizer='async')\n"
        "    envs.reset(seed=SEEDS)\n"
        f"    envs.step_async(actions({1.0 if hanging else 0.0}))\n"
        "    print(*(process.pid for process in envs.processes), flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=importing())
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    assert all(wait_until_gone(pid) for pid in workers)


def importing() -> dict[str, str]:
    """The environment of a script that imports from here."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"max_restarts": -1}):
        with pytest.raises(EnvError, match=next(iter(wrong))):
            Supervision(**wrong)


def test_a_supervisor_goes_on_counting_from_its_state() -> None:
    old, new = Supervisor(2, Supervision(max_restarts=2)), Supervisor(2, Supervision(max_restarts=2))
    old.seeds[:] = SEEDS
    old.failed(1, Failure("x"))
    old.failed(1, Failure("x"))
    for i in range(2):
        new.set_state(i, old.state(i))
    assert [new.seed(i) for i in range(2)] == [old.seed(i) for i in range(2)]
    with pytest.raises(EnvError, match="after 2 restarts"):
        new.failed(0, Failure("x"))


def sleep(env: Any) -> str:
    """For longer than anybody waits."""
    time.sleep(1.0)
    return "late"


def test_a_late_answer_is_not_taken_for_a_step() -> None:
    with made("async", "nothing", Supervision(timeout_s=0.3)) as envs:
        assert isinstance(envs, WorkerVectorEnv)
        envs.reset(seed=SEEDS)  # type: ignore[arg-type]
        with pytest.raises(Gone, match=r"environment 0 failed: no answer for 0\.3 s"):
            envs.ask(sleep)
        envs.supervisor.settings = Supervision(timeout_s=30.0)
        infos = envs.step(actions())[-1]
        assert infos[DROPPED].all()
        obs, _, terminated, truncated, infos = envs.step(actions())
        assert obs[:, 1].tolist() == [1.0, 1.0] and not (terminated | truncated).any() and not infos


def test_what_raises_when_it_is_asked_works_on() -> None:
    for vectorizer in ("sync", "async"):
        with made(vectorizer, "nothing") as envs:
            envs.reset(seed=SEEDS)  # type: ignore[arg-type]
            assert isinstance(envs, WorkerVectorEnv | InlineVectorEnv)
            with pytest.raises(EnvError, match=r"environment 0 failed: AttributeError: .*no_such_thing") as raised:
                envs.ask(operator.attrgetter("no_such_thing"))
            assert not isinstance(raised.value, Gone)
            assert DROPPED not in envs.step(actions())[-1]
