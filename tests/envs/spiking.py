"""An environment that misbehaves once: a reward beyond all bounds, or an observation of NaN."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

SPIKE_ID, NAN_ID = "o2o-smooth-tests/Spike-v0", "o2o-smooth-tests/Nan-v0"
LENGTH, AT = 10, 7
WHEN = 3  # episode


class SpikingEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Ten steps an episode; in step 7 of its fourth episode, if it was first reset with an odd seed, it misbehaves."""

    def __init__(self, what: Literal["reward", "obs"]) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self._what, self._episode, self._step, self._odd = what, -1, 0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._episode, self._odd = -1, seed % 2 == 1
        self._episode, self._step = self._episode + 1, 0
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._step += 1
        obs = self.np_random.normal(size=3).astype(np.float32)
        reward = float(obs[0])
        if self._odd and self._episode == WHEN and self._step == AT:
            if self._what == "reward":
                reward = 1e37
            else:
                obs[1] = np.nan
        return obs, reward, False, self._step == LENGTH, {}


def register_spiking() -> None:
    """Make both known to gymnasium."""
    for name, what in ((SPIKE_ID, "reward"), (NAN_ID, "obs")):
        if name not in gym.registry:
            gym.register(name, entry_point="tests.envs.spiking:SpikingEnv", kwargs={"what": what})
