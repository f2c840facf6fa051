"""Vector environments of the envpool package: gymnasium's MuJoCo tasks in C++ threads.

The dynamics, rewards and ends of episodes are gymnasium's; the starts are drawn by envpool's own generators, so a seed
begins other episodes than with gymnasium's environments.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import EnvError

Obs = NDArray[np.float32]
StepResult = tuple[Obs, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]

POOL_IDS = (
    *(f"{name}-{v}" for name in ("Ant", "HalfCheetah", "Hopper", "Swimmer", "Walker2d") for v in ("v4", "v5")),
    "Humanoid-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
)
"""Environments whose steps in envpool were compared with gymnasium's from equal starts, and agree. Humanoid-v4 does
not: it leaves the contact forces out of the observation."""


def require_pool(task: Task) -> Any:
    """The envpool package, if it can step a task.

    Raises:
        EnvError: It is not installed, or does not know the task as it is meant.
    """
    instead = "use --vectorizer sync or async"
    if task.env_id not in POOL_IDS or task.compat is not None or task.obs_keys is not None:
        raise EnvError(f"envpool does not step task {task.id} ({task.env_id}), only {', '.join(POOL_IDS)}; {instead}")
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise EnvError(
            f"the vectorizer envpool needs the package envpool: pip install 'o2o_smooth[envpool]', or {instead} "
            f"({' '.join(str(error).split())})"
        ) from error
    try:
        envpool.make_spec(task.env_id, **dict(task.env_kwargs))
    except TypeError as error:
        raise EnvError(f"envpool does not take the env_kwargs of task {task.id} ({error}); {instead}") from error
    return envpool


class PoolVectorEnv(VectorEnv[Obs, NDArray[Any], NDArray[Any]]):
    """A task's environments in one pool, reset in the step that ends an episode (SAME_STEP).

    envpool resets in the step after. Here the ended environments are reset at once, apart from the others, so that
    every step is a real transition; what ended the episode is in `infos["final_obs"]`. The time limit is kept here
    too: envpool calls an episode truncated that terminates in its very last step.

    Args:
        task: The task.
        num_envs: How many.
        observation_space: One environment's, as `make_env` has it.
        action_space: Likewise.

    Raises:
        EnvError: As `require_pool`.
    """

    def __init__(
        self, task: Task, num_envs: int, observation_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> None:
        self._envpool = require_pool(task)
        self._task, self.num_envs = task, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        limit = task.max_episode_steps or gym.spec(task.env_id).max_episode_steps
        if limit is None:
            raise EnvError(f"task {task.id} has no time limit, which envpool needs; give it max_episode_steps")
        self._limit = limit
        self._pool: Any = None
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode everywhere.

        Args:
            seed: One per environment; a number stands for itself and those that follow it, None goes on with the
                pool's own generators (at the first reset: with fresh entropy).
            options: Not used.
        """
        if seed is None and self._pool is None:
            fresh = np.random.SeedSequence()
            seed = [int(x) >> 1 for x in fresh.generate_state(self.num_envs)]
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        if seed is not None:
            self._make(seed)
        obs, _ = self._pool.reset()
        self._steps[:] = 0
        return np.asarray(obs, dtype=np.float32), {}

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Step all."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step in the pool's threads."""
        self._pool.send(np.asarray(actions * np.float32(self._task.action_scale), dtype=self._pool.action_space.dtype))

    def step_wait(self) -> StepResult:
        """Finish it."""
        raw, reward, ended, _, _ = self._pool.recv()
        obs = np.array(raw, dtype=np.float32)
        self._steps += 1
        terminated = np.array(ended, dtype=np.bool_)
        truncated = self._steps >= self._limit
        over = terminated | truncated
        infos: dict[str, Any] = {}
        if over.any():
            ids = np.flatnonzero(over)
            final = np.full(self.num_envs, None, dtype=object)
            for i in ids:
                final[i] = obs[i].copy()
            infos = {"final_obs": final, "_final_obs": over}
            begun, info = self._pool.reset(ids.astype(np.int32))
            obs[info["env_id"]] = begun
            self._steps[over] = 0
        return obs, np.asarray(reward, dtype=np.float64), terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """End the pool's threads."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _make(self, seeds: Sequence[int]) -> None:
        self.close_extras()
        self._pool = self._envpool.make_gymnasium(
            self._task.env_id,
            num_envs=self.num_envs,
            env_seed=[int(s) for s in seeds],
            max_episode_steps=self._limit + 1,
            **dict(self._task.env_kwargs),
        )
