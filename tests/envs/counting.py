"""An environment whose every number is known: for tests of vector environments, collectors and buffers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.envs import Task

COUNTING_ID = "o2o-smooth-tests/Counting-v0"


class CountingEnv(gym.Env[NDArray[np.float64], NDArray[Any]]):
    """Observation (episode, step in the episode, tag); reward = number of the step, 1, 2, ...; the action is ignored.

    The tag is the seed of the first reset (0 without one). Episode e of tag s lasts `counting_length(s, e)` steps and
    ends as `counting_terminates(s, e)` says: terminated, else truncated.
    The observation is one array that the environment overwrites, as careless environments do.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._obs = np.array([-1.0, 0.0, 0.0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._obs[:] = (-1.0, 0.0, seed)
        self._obs[0] += 1
        self._obs[1] = 0
        return self._obs, {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self._obs[1] += 1
        episode, step, tag = (int(value) for value in self._obs)
        over = step >= counting_length(tag, episode)
        ends = counting_terminates(tag, episode)
        # success is true in the middle of every third episode, never in its last step
        info = {"success": episode % 3 == 0 and step == 1}
        return self._obs, float(step), over and ends, over and not ends, info


def counting_length(tag: int, episode: int) -> int:
    """Steps of an episode, 2 to 6."""
    return 2 + (3 * tag + 2 * episode) % 5


def counting_terminates(tag: int, episode: int) -> bool:
    """Whether an episode is terminated; the others are truncated."""
    return (tag + episode) % 2 == 0


def counting_task() -> Task:
    """The counting environment as a task; registers it."""
    if COUNTING_ID not in gym.registry:
        gym.register(COUNTING_ID, entry_point="tests.envs.counting:CountingEnv")
    return Task(id="counting", env_id=COUNTING_ID)
