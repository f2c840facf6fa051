"""Collecting online experience: vector environments in, exact transitions in the replay buffer out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs.make import final_observations
from o2o_smooth.errors import EnvError

Policy = Callable[[FloatArray], FloatArray]  # (M, n, O) -> (M, n, A)


@dataclass(frozen=True)
class Episode:
    """An episode that the collector has just finished."""

    member: int
    lane: int  # which of the member's parallel environments
    episode_return: float  # undiscounted, raw rewards
    length: int


class Collector:
    """Steps M x n environments in lockstep and writes what happened.

    Sub-environment `m * n + j` belongs to member m. Both end flags are kept, and the successor of an episode's last
    step is its true final observation, never the next episode's first.

    Args:
        envs: Vector environment of M x n sub-environments, autoreset SAME_STEP.
        members: M.
        buffer: Where rows go.
        reward_map: The learner's reward map.
        discount: For the Monte-Carlo returns that are filled in when an episode ends.
        seeds: One environment seed per sub-environment.
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv[Any, Any, Any],
        members: int,
        buffer: ReplayBuffer,
        *,
        reward_map: RewardMap,
        discount: float,
        seeds: Sequence[int],
    ) -> None:
        self.envs, self.members, self.buffer = envs, members, buffer
        self.reward_map, self.discount = reward_map, discount
        self.per_member = envs.num_envs // members
        if self.per_member * members != envs.num_envs:
            raise EnvError(f"{envs.num_envs} environments cannot be shared evenly by {members} members")
        # Sync and AsyncVectorEnv take one seed each; their base class knows a single one only.
        obs, _ = envs.reset(seed=list(seeds))  # type: ignore[arg-type]
        self._obs: FloatArray = np.array(obs, dtype=np.float32)
        finite = np.isfinite(self._obs).all(axis=1)
        if not finite.all():
            raise EnvError(f"environment {int(np.argmin(finite))} returned NaN or infinity at its first reset")
        self._returns = np.zeros(envs.num_envs)
        self._rewards: list[list[float]] = [[] for _ in range(envs.num_envs)]  # mapped, of the running episodes
        self._first_row = np.zeros(envs.num_envs, dtype=np.int64)
        self.env_steps = 0  # per member

    def step(self, policy: Policy) -> list[Episode]:
        """One step of every environment: n new rows per member.

        Raises:
            EnvError: The environment returned NaN or infinity.
        """
        m, n = self.members, self.per_member
        obs = self._obs
        action = policy(obs.reshape(m, n, -1)).reshape(m * n, -1)
        next_obs, reward, terminated, truncated, infos = self.envs.step(action)
        final = final_observations(next_obs, infos)
        if not (np.isfinite(final).all() and np.isfinite(next_obs).all() and np.isfinite(reward).all()):
            finite = np.isfinite(final).all(axis=1) & np.isfinite(next_obs).all(axis=1) & np.isfinite(reward)
            broken = int(np.argmin(finite))
            raise EnvError(
                f"environment {broken} returned NaN or infinity at online step {self.env_steps} "
                f"(reward {reward[broken]}, action {action[broken].tolist()})"
            )
        mapped = self.reward_map(reward)
        rows = pack(obs, action, mapped, final, terminated, truncated)
        row_number = self.buffer.written
        self.buffer.add(rows.reshape(m, n, -1))
        self.env_steps += n
        self._obs = np.array(next_obs, dtype=np.float32)
        self._returns += reward
        ended = terminated | truncated
        for i in range(m * n):
            if not self._rewards[i]:
                self._first_row[i] = row_number + i % n
            self._rewards[i].append(float(mapped[i]))
        return [self._finish(int(i)) for i in np.flatnonzero(ended)]

    def _finish(self, i: int) -> Episode:
        rewards = self._rewards[i]
        returns = np.empty(len(rewards))
        running = 0.0
        for k in range(len(rewards) - 1, -1, -1):
            running = rewards[k] + self.discount * running
            returns[k] = running
        rows = self._first_row[i] + self.per_member * np.arange(len(rewards))
        member = i // self.per_member
        self.buffer.set_mc_returns(member, rows, returns.astype(np.float32))
        episode = Episode(member, i % self.per_member, float(self._returns[i]), len(rewards))
        self._rewards[i] = []
        self._returns[i] = 0.0
        return episode

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def random_policy(low: NDArray[np.float32], high: NDArray[np.float32], rngs: Sequence[np.random.Generator]) -> Policy:
    """Uniformly random actions, one generator per member."""

    def act(obs: FloatArray) -> FloatArray:
        n = obs.shape[1]
        return np.stack([rng.uniform(low, high, (n, len(low))) for rng in rngs]).astype(np.float32)

    return act
