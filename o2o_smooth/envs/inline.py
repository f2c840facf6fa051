"""Environments of this process, stepped in turn; one that raises is made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from o2o_smooth.envs.supervision import DROPPED, Failure, Supervision, Supervisor, lane_seeds
from o2o_smooth.errors import EnvError

Env = gym.Env[NDArray[np.float32], NDArray[Any]]
StepResult = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class InlineVectorEnv(SyncVectorEnv[NDArray[np.float32], NDArray[Any]]):
    """`SyncVectorEnv` with resets in the step that ends an episode (SAME_STEP), and with supervision.

    In the step in which an environment fails, `infos["dropped"]` marks it. It then has the reward 0, is truncated with
    its last known observation as the final one, and its next observation begins a new episode.

    Args:
        maker: Makes an environment with flat float32 observations.
        num_envs: How many.
        supervision: What failing is borne.
    """

    def __init__(self, maker: Callable[[], Env], num_envs: int, supervision: Supervision) -> None:
        super().__init__([maker] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.supervisor = Supervisor(num_envs, supervision)
        self._maker = maker
        self._seen = np.zeros((num_envs, *self.envs[0].observation_space.shape), dtype=np.float32)  # type: ignore[misc]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode everywhere.

        Raises:
            EnvError: An environment failed, and failed again when it was made anew.
        """
        seeds = lane_seeds(seed, self.num_envs)
        infos: dict[str, Any] = {}
        for i, own in enumerate(seeds):
            if own is not None:
                self.supervisor.seeds[i] = own
            try:
                self._seen[i], info = self.envs[i].reset(seed=own, options=options)
            except Exception as error:
                info = self._revive(i, Failure.of(error), own)
            infos = self._add_info(infos, info, i)
        return self._seen.copy(), infos

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Step all.

        Raises:
            EnvError: An environment failed once too often.
        """
        n = self.num_envs
        rewards = np.zeros(n)
        terminated, truncated = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        infos: dict[str, Any] = {}
        failed: list[int] = []
        for i, env in enumerate(self.envs):
            try:
                obs, rewards[i], terminated[i], truncated[i], info = env.step(actions[i])
                if terminated[i] or truncated[i]:
                    infos = self._add_info(infos, {"final_obs": obs, "final_info": info}, i)
                    obs, info = env.reset()
                self._seen[i] = obs
            except Exception as error:
                failed.append(i)
                infos = self._add_info(infos, {"final_obs": self._seen[i].copy()}, i)
                rewards[i], terminated[i], truncated[i] = 0.0, False, True
                info = self._revive(i, Failure.of(error), None)
            if info:
                infos = self._add_info(infos, info, i)
        if failed:
            infos[DROPPED] = np.isin(np.arange(n), failed)
        self.supervisor.stepped(failed)
        return self._seen.copy(), rewards, terminated, truncated, infos

    def ask(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Call a function with every environment, and further arguments of its own.

        Raises:
            EnvError: The function raised somewhere.
        """
        given = [()] * self.num_envs if arguments is None else arguments
        answers = []
        for i, (env, own) in enumerate(zip(self.envs, given, strict=True)):
            try:
                answers.append(function(env, *own))
            except EnvError:
                raise
            except Exception as error:
                raise EnvError(f"environment {i} failed: {Failure.of(error).cause}") from error
        return answers

    def _revive(self, i: int, failure: Failure, seed: int | None) -> dict[str, Any]:
        """Make an environment anew and begin an episode; the info of its reset."""
        while True:
            self.supervisor.failed(i, failure)
            with contextlib.suppress(Exception):
                self.envs[i].close()
            try:
                self.envs[i] = self._maker()
                own = self.supervisor.seed(i) if seed is None else seed
                self._seen[i], info = self.envs[i].reset(seed=own)
                return dict(info)
            except Exception as error:
                failure = Failure.of(error)
