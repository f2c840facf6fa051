"""An environment that fails where it is told to: raises, sleeps, kills itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.envs import Task

MISBEHAVING_ID = "o2o-smooth-tests/Misbehaving-v0"
LENGTH = 8
"""Steps of an episode, which is then truncated."""
SLOW = 0.9
"""An action above this sleeps for ever, where it is obeyed; for tests that choose the moment."""


class MisbehavingEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Observation (a number drawn for the episode, step in it); reward: the step's number.

    Args:
        how: raise, sleep, kill, exit, or nothing; obey: see `SLOW`.
        at: In which step of an episode, 1, 2, ...; 0: in the reset.
        marks: A folder. With `times`, it fails only so often, all environments of all processes together.
        times: See `marks`; None: always.
        tag: Only environments whose latest seed is this one fail; None: all.
        whole_life: `at` counts the steps since it was made, not those of an episode.
    """

    def __init__(
        self,
        how: str = "nothing",
        at: int = 3,
        marks: str = "",
        times: int | None = None,
        tag: int | None = None,
        whole_life: bool = False,
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.how, self.at, self.marks, self.times, self.tag = how, at, marks, times, tag
        self._seed: int | None = None
        self._drawn, self._step = 0.0, 0
        self.whole_life, self._lived = whole_life, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = self._seed if seed is None else seed
        self._drawn, self._step = float(self.np_random.uniform()), 0
        if self.at == 0:
            self._fail()
        return self._obs(), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._step += 1
        self._lived += 1
        if self.how == "obey" and action[0] > SLOW:
            fail("sleep")
        if (self._lived if self.whole_life else self._step) == self.at:
            self._fail()
        return self._obs(), float(self._step), False, self._step >= LENGTH, {}

    def _obs(self) -> NDArray[np.float32]:
        return np.array([self._drawn, self._step], dtype=np.float32)

    def _fail(self) -> None:
        if self.how in ("nothing", "obey") or (self.tag is not None and self._seed != self.tag):
            return
        if self.times is not None:
            if len(list(Path(self.marks).iterdir())) >= self.times:
                return
            (Path(self.marks) / str(time.monotonic_ns())).touch()
        fail(self.how)


def fail(how: str) -> None:
    """Fail."""
    if how == "raise":
        raise ValueError("the joint broke")
    if how == "sleep":
        time.sleep(600)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)


def misbehaving(how: str = "nothing", **kwargs: Any) -> Task:
    """The environment as a task; registers it."""
    if MISBEHAVING_ID not in gym.registry:
        gym.register(MISBEHAVING_ID, entry_point="tests.envs.misbehaving:MisbehavingEnv")
    return Task(id="misbehaving", env_id=MISBEHAVING_ID, env_kwargs={"how": how, **kwargs})
