"""Collecting online experience: vector environments in, exact transitions in the replay buffer out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.buffer import ReplayBuffer, columns
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.store import UNKNOWN_RETURN
from o2o_smooth.envs.make import final_observations
from o2o_smooth.envs.stepping import Result, make_stepper
from o2o_smooth.envs.supervision import DROPPED, Fault, faults_of
from o2o_smooth.errors import EnvError

Policy = Callable[[FloatArray], FloatArray | Callable[[], NDArray[Any]]]
"""Observations (M, n, O) to actions (M, n, A), or to what brings them when they are needed."""


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

    A step has two halves, `start` and `finish`, so that the caller can work in between.

    Where an environment fails and is made anew, its running episode is dropped: the rows that it has written are good,
    and the last of them becomes a truncation, since what came after it was not seen. The step that failed has no row of
    its own, and all environments write one, so the environment's last row is written once more. A dropped episode is
    counted, and not reported as finished.

    Args:
        envs: Vector environment of M x n sub-environments, autoreset SAME_STEP.
        members: M.
        buffer: Where rows go; nobody else writes to it meanwhile.
        reward_map: The learner's reward map.
        discount: For the Monte-Carlo returns that are filled in when an episode ends.
        seeds: One environment seed per sub-environment.
        overlap: Step the environments between `start` and `finish`, in processes or a thread; otherwise in `finish`.
            Either way the numbers are the same.
        on_fault: Told of every environment that failed and was made anew, in the caller's thread.
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
        overlap: bool = False,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> None:
        self.envs, self.members, self.buffer = envs, members, buffer
        self.on_fault = on_fault
        self.reward_map, self.discount = reward_map, discount
        self.per_member = n = envs.num_envs // members
        if n * members != envs.num_envs:
            raise EnvError(f"{envs.num_envs} environments cannot be shared evenly by {members} members")
        # Sync and AsyncVectorEnv take one seed each; their base class knows a single one only.
        obs, _ = envs.reset(seed=list(seeds))  # type: ignore[arg-type]
        self._obs: FloatArray = np.array(obs, dtype=np.float32)
        finite = np.isfinite(self._obs).all(axis=1)
        if not finite.all():
            raise EnvError(f"environment {int(np.argmin(finite))} returned NaN or infinity at its first reset")
        self.overlap = overlap
        self._stepper = make_stepper(envs, overlap=overlap, thread=buffer.device.type == "cuda")
        self._actions: Callable[[], NDArray[Any]] | None = None  # of the step that has begun
        self._result: Result | None = None
        self._returns = np.zeros(envs.num_envs)
        self._rewards = RewardHistory(envs.num_envs)
        self._columns = columns(buffer.obs_dim, buffer.action_dim)
        self._rows: FloatArray = np.empty((envs.num_envs, self._columns.width), dtype=np.float32)
        self._rows[:, -1] = UNKNOWN_RETURN
        self._first_row = np.tile(buffer.written + np.arange(n), members)  # of the running episodes
        self.env_steps = 0  # per member
        self.dropped_episodes = np.zeros(members, dtype=np.int64)
        self._tell_faults()

    def step(self, policy: Policy) -> list[Episode]:
        """One step of every environment: n new rows per member.

        Raises:
            EnvError: The environment returned NaN or infinity.
        """
        self.start(policy)
        return self.finish()

    def start(self, policy: Policy) -> None:
        """Choose the actions and begin a step; nothing is written before `finish`."""
        if self._actions is not None:
            raise RuntimeError("start() again without finish()")
        given = policy(self._obs.reshape(self.members, self.per_member, -1))
        if callable(given):
            fetched = given
            self._actions = lambda: fetched().reshape(self.envs.num_envs, -1)
            self._stepper.start(self._actions)
        else:
            actions = given.reshape(self.envs.num_envs, -1)
            self._actions = lambda: actions
            self._stepper.start(actions)

    @property
    def busy(self) -> bool:
        """Whether a step has begun and is not written yet."""
        return self._actions is not None

    def wait(self) -> None:
        """Let the step that has begun come to its end, so that no environment is at work; still nothing is written."""
        if self._actions is not None and self._result is None:
            try:
                self._result = self._stepper.wait()
            finally:
                self._tell_faults()

    def _tell_faults(self) -> None:
        for fault in faults_of(self.envs):
            if self.on_fault is not None:
                self.on_fault(fault)

    def finish(self) -> list[Episode]:
        """End the step that has begun: write its rows, and give the episodes that it ended.

        Raises:
            EnvError: The environment returned NaN or infinity.
        """
        self.wait()
        if self._result is None or self._actions is None:
            raise RuntimeError("finish() without start()")
        (next_obs, reward, terminated, truncated, infos), action = self._result, self._actions()
        self._result = self._actions = None
        m, n = self.members, self.per_member
        final = final_observations(next_obs, infos)
        ended = terminated | truncated
        # Where no episode has ended, both are the same numbers.
        whole = np.isfinite(final).all() and (not ended.any() or np.isfinite(next_obs).all())
        if not (whole and np.isfinite(reward).all()):
            finite = np.isfinite(final).all(axis=1) & np.isfinite(next_obs).all(axis=1) & np.isfinite(reward)
            broken = int(np.argmin(finite))
            raise EnvError(
                f"environment {broken} returned NaN or infinity at online step {self.env_steps} "
                f"(reward {reward[broken]}, action {action[broken].tolist()})"
            )
        mapped = self.reward_map(reward)
        rows, at = self._rows, self._columns
        rows[:, at.obs], rows[:, at.next_obs], rows[:, at.action] = self._obs, final, action
        rows[:, at.reward], rows[:, at.terminated], rows[:, at.truncated] = mapped, terminated, truncated
        dropped = [int(i) for i in np.flatnonzero(infos[DROPPED])] if DROPPED in infos else []
        for i in dropped:
            self._cut_short(i)
        for i in dropped:
            rows[i] = self._stand_in(i, dropped)
        self.buffer.add(rows.reshape(m, n, -1))
        rows[dropped, at.mc_return] = UNKNOWN_RETURN
        self.env_steps += n
        self._obs = np.array(next_obs, dtype=np.float32) if ended.any() else final
        self._returns += reward
        self._rewards.append(mapped)
        for i in dropped:
            self._rewards.take(i)  # of the step that failed
            self._begin(i)
        return [self._episode(int(i)) for i in np.flatnonzero(ended) if i not in dropped]

    # Keeping

    @property
    def unfinished(self) -> int:
        """The first row, as the buffer counts them, whose Monte-Carlo return is still to come."""
        return int(self._first_row.min())

    def state(self) -> dict[str, Any]:
        """Everything but the environments and the rows: arrays and numbers. A step that has begun is waited for."""
        self.wait()
        step = None
        if self._result is not None and self._actions is not None:
            next_obs, reward, terminated, truncated, infos = self._result
            final = final_observations(next_obs, infos)
            step = {
                "action": self._actions(),
                "next_obs": np.array(next_obs),
                "reward": np.array(reward),
                "terminated": np.array(terminated),
                "truncated": np.array(truncated),
                "final": final,
                "dropped": np.array(infos.get(DROPPED, np.zeros(self.envs.num_envs, bool)), dtype=bool),
            }
        return {
            "env_steps": self.env_steps,
            "obs": self._obs,
            "returns": self._returns,
            "rewards": self._rewards.state(),
            "first_row": self._first_row,
            "dropped_episodes": self.dropped_episodes,
            "step": step,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; environments and buffer are restored apart, and hold what belongs to it."""
        self.env_steps = int(state["env_steps"])
        self._obs = np.array(state["obs"], dtype=np.float32)
        self._returns = np.array(state["returns"], dtype=np.float64)
        self._rewards.load_state(state["rewards"])
        self._first_row = np.array(state["first_row"], dtype=np.int64)
        self.dropped_episodes = np.array(state["dropped_episodes"], dtype=np.int64)
        step = state["step"]
        if step is not None:
            action = np.array(step["action"])
            everywhere = np.ones(self.envs.num_envs, bool)
            infos: dict[str, Any] = {"final_obs": np.array(step["final"]), "_final_obs": everywhere}
            if step["dropped"].any():
                infos[DROPPED] = np.array(step["dropped"])
            self._actions = lambda: action
            arrays = (np.array(step[name]) for name in ("next_obs", "reward", "terminated", "truncated"))
            next_obs, reward, terminated, truncated = arrays
            self._result = (next_obs, reward, terminated, truncated, infos)

    def begin_anew(self, state: Mapping[str, Any]) -> int:
        """Go on after `state` with the episodes that have just begun; returns how many were cut short.

        The last row of an episode that was running ends it as truncated. What it would have earned is not known, so its
        Monte-Carlo returns stay unknown. A step that was not written yet is forgotten.
        """
        self.env_steps = int(state["env_steps"])
        self.dropped_episodes = np.array(state["dropped_episodes"], dtype=np.int64)
        running = np.array(state["first_row"], dtype=np.int64) < self.buffer.written
        for i in np.flatnonzero(running):
            member, lane = divmod(int(i), self.per_member)
            self.buffer.truncate(member, self.buffer.written - self.per_member + lane)
        self._first_row = np.tile(self.buffer.written + np.arange(self.per_member), self.members)
        return int(running.sum())

    def _episode(self, i: int) -> Episode:
        length = self._fill_returns(i)
        episode = Episode(*divmod(i, self.per_member), float(self._returns[i]), length)
        self._begin(i)
        return episode

    def _fill_returns(self, i: int, *, truncated: bool = False) -> int:
        """Write the Monte-Carlo returns of the episode that has ended; returns its length."""
        rewards = self._rewards.take(i)
        returns = np.empty(len(rewards))
        running = 0.0
        for k in range(len(rewards) - 1, -1, -1):
            running = rewards[k] + self.discount * running
            returns[k] = running
        rows = self._first_row[i] + self.per_member * np.arange(len(rewards))
        self.buffer.set_mc_returns(i // self.per_member, rows, returns.astype(np.float32), truncated=truncated)
        return len(rewards)

    def _begin(self, i: int) -> None:
        """An episode's first row is the next one that the environment writes."""
        self._first_row[i] = self.buffer.written + i % self.per_member
        self._returns[i] = 0.0

    def _cut_short(self, i: int) -> None:
        """End the episode of an environment that failed with the last row that it wrote, if it wrote any."""
        self._fill_returns(i, truncated=True)
        self.dropped_episodes[i // self.per_member] += 1

    def _stand_in(self, i: int, dropped: Sequence[int]) -> FloatArray:
        """A row for the step in which an environment failed: its last one once more.

        In the very first step that is the row of another environment of the member.
        """
        member, lane = divmod(i, self.per_member)
        number = self.buffer.written - self.per_member + lane
        if number >= 0:
            return np.asarray(self.buffer.packed_rows(member, np.array([number]))[0])
        others = range(member * self.per_member, (member + 1) * self.per_member)
        fine = next((k for k in others if k not in dropped), None)
        if fine is None:
            raise EnvError(f"environment {i} failed in its very first step, and there is no other row to write instead")
        row, at = np.array(self._rows[fine]), self._columns
        row[at.truncated] = 1.0 - row[at.terminated]
        row[at.mc_return] = row[at.reward]
        return row

    def close(self) -> None:
        """Close the environments, also in the middle of a step; no thread and no process is left."""
        self._stepper.close()


class RewardHistory:
    """Rewards of the running episodes, one column an environment; grows with the longest of them."""

    def __init__(self, envs: int, room: int = 1024) -> None:
        self._rows: FloatArray = np.empty((room, envs), dtype=np.float32)
        self._used = 0
        self._first = np.zeros(envs, dtype=np.int64)  # row of an episode's first reward

    @property
    def room(self) -> int:
        """Steps that fit before it must move or grow."""
        return len(self._rows)

    def append(self, rewards: FloatArray) -> None:
        """Add one reward an environment."""
        if self._used == len(self._rows):
            oldest = int(self._first.min())
            kept = self._rows[oldest:]
            room = len(self._rows) * (2 if 2 * len(kept) > len(self._rows) else 1)
            self._rows = np.empty((room, self._rows.shape[1]), dtype=np.float32)
            self._rows[: len(kept)] = kept
            self._used, self._first = len(kept), self._first - oldest
        self._rows[self._used] = rewards
        self._used += 1

    def state(self) -> dict[str, Any]:
        """The running episodes' rewards."""
        oldest = int(self._first.min())
        return {"rows": self._rows[oldest : self._used], "first": self._first - oldest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        rows = np.array(state["rows"], dtype=np.float32)
        room = max(len(self._rows), 2 * len(rows))
        self._rows = np.empty((room, self._rows.shape[1]), dtype=np.float32)
        self._rows[: len(rows)] = rows
        self._used, self._first = len(rows), np.array(state["first"], dtype=np.int64)

    def take(self, env: int) -> list[float]:
        """Rewards of the episode that an environment has just ended."""
        rewards: list[float] = self._rows[self._first[env] : self._used, env].tolist()
        self._first[env] = self._used
        return rewards


def random_policy(
    low: NDArray[np.float32], high: NDArray[np.float32], rngs: Sequence[np.random.Generator]
) -> Callable[[FloatArray], FloatArray]:
    """Uniformly random actions, one generator per member."""

    def act(obs: FloatArray) -> FloatArray:
        n = obs.shape[1]
        return np.stack([rng.uniform(low, high, (n, len(low))) for rng in rngs]).astype(np.float32)

    return act
