"""Every stepper takes the same steps, tells the same errors, and leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.envs import Task, make_vector_env
from o2o_smooth.envs.stepping import Elsewhere, InTurn, Stepper, Threaded, make_stepper
from o2o_smooth.envs.supervision import Supervision
from o2o_smooth.envs.workers import WorkerVectorEnv
from o2o_smooth.errors import EnvError
from tests.envs.counting import counting_task

WAYS = [("sync", False), ("sync", True), ("async", False), ("async", True)]
N_ENVS = 2
STRICT = Supervision(max_restarts=0)


class FragileEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Breaks in the step whose action is above 0.5, and counts its steps in the observation."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.t = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if action[0] > 0.5:
            raise ValueError("the joint broke")
        self.t += 1
        return np.full(1, self.t, np.float32), 0.0, False, False, {}


def fragile() -> Task:
    if "o2o-smooth-tests/Fragile-v0" not in gym.registry:
        gym.register("o2o-smooth-tests/Fragile-v0", entry_point="tests.envs.test_stepping:FragileEnv")
    return Task(id="fragile", env_id="o2o-smooth-tests/Fragile-v0")


def stepper(task: Task, vectorizer: str, overlap: bool) -> Stepper:
    envs = make_vector_env(task, N_ENVS, vectorizer=vectorizer, supervision=STRICT)
    envs.reset(seed=3)
    return make_stepper(envs, overlap=overlap)


def actions(value: float = 0.0, width: int = 1) -> NDArray[np.float32]:
    return np.full((N_ENVS, width), value, np.float32)


def left() -> tuple[set[str], int]:
    """Threads by name, and processes, of ours."""
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("o2o-smooth")}
    return threads, len(multiprocessing.active_children())


def test_ways_to_step() -> None:
    envs = make_vector_env(counting_task(), N_ENVS)
    spread = make_vector_env(counting_task(), N_ENVS, vectorizer="async")
    made = [
        make_stepper(envs, overlap=False),
        make_stepper(envs, overlap=True),
        make_stepper(spread, overlap=False),
        make_stepper(spread, overlap=True),
        make_stepper(spread, overlap=True, thread=True),
    ]
    assert [type(one) for one in made] == [InTurn, Threaded, Elsewhere, Elsewhere, Threaded]
    for one in made[1:]:
        one.close()
    assert left() == (set(), 0)


def test_all_ways_take_the_same_steps() -> None:
    runs = []
    for vectorizer, overlap in WAYS:
        made = stepper(counting_task(), vectorizer, overlap)
        steps = []
        for k in range(20):
            given = actions(width=2)
            made.start(given if k % 2 else lambda given=given: given)  # type: ignore[misc]
            obs, reward, terminated, truncated, infos = made.wait()
            steps.append((obs.tolist(), reward.tolist(), terminated.tolist(), truncated.tolist(), sorted(infos)))
        made.close()
        runs.append(steps)
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert any("final_obs" in step[-1] for step in runs[0])


@pytest.mark.parametrize(("vectorizer", "overlap"), WAYS)
def test_errors_are_raised_by_wait_and_nothing_is_left(vectorizer: str, overlap: bool) -> None:
    made = stepper(fragile(), vectorizer, overlap)
    made.start(actions(0.0))
    made.wait()
    made.start(actions(1.0))
    with pytest.raises(EnvError, match="the joint broke"):
        made.wait()
    made.close()
    assert left() == (set(), 0)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(("vectorizer", "overlap"), WAYS)
def test_closing_in_the_middle_of_a_step_leaves_nothing(vectorizer: str, overlap: bool, broken: bool) -> None:
    made = stepper(fragile(), vectorizer, overlap)
    made.start(actions(1.0 if broken else 0.0))
    made.close()
    assert left() == (set(), 0)


def test_a_thread_steps_while_the_caller_goes_on() -> None:
    envs = make_vector_env(fragile(), N_ENVS)
    envs.reset(seed=0)
    made = make_stepper(envs, overlap=True)
    begun, release = threading.Event(), threading.Event()

    def late() -> NDArray[np.float32]:
        begun.set()
        assert release.wait(10)
        return actions()

    made.start(late)
    assert begun.wait(10)  # the step has begun, and this line is reached all the same
    release.set()
    assert made.wait()[0].tolist() == [[1.0], [1.0]]
    made.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_an_interrupt_between_two_results_does_not_hang(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stepper(fragile(), "async", overlap)
    assert isinstance(made, Elsewhere)
    assert isinstance(made.envs, WorkerVectorEnv)
    receive = made.envs._receive

    def interrupted(i: int) -> Any:
        if i == 1:
            raise KeyboardInterrupt
        return receive(i)

    made.start(actions())
    monkeypatch.setattr(made.envs, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.wait()
    made.close()
    assert left() == (set(), 0)


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
def test_wait_without_start_is_refused(vectorizer: str) -> None:
    made = stepper(fragile(), vectorizer, overlap=False)
    with pytest.raises(RuntimeError, match="without start"):
        made.wait()
    made.close()
