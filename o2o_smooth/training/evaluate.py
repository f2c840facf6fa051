"""Evaluating a population on environments and seeds of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray
from o2o_smooth.envs import Task, make_vector_env
from o2o_smooth.envs.make import episode_success, final_observations
from o2o_smooth.envs.supervision import DROPPED, Fault, Supervision, faults_of
from o2o_smooth.errors import EnvError
from o2o_smooth.training.seeding import Stream, env_seeds

Watch = Callable[[FloatArray, FloatArray, NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_], FloatArray], None]
"""Told of every vector step: observations, actions, raw rewards, terminated, truncated, true successors."""
LONGEST_EPISODE = 100_000  # steps; beyond this an evaluation would seem to hang


@dataclass(frozen=True)
class Evaluation:
    """Finished episodes of one evaluation; raw returns."""

    returns: NDArray[np.float64]  # (M, episodes)
    lengths: NDArray[np.int64]  # (M, episodes)
    success: NDArray[np.bool_] | None  # (M, episodes); None where the environment reports none

    def of(self, members: Sequence[int]) -> Evaluation:
        """The evaluation of some members, each as often as it is named."""
        own = list(members)
        return Evaluation(self.returns[own], self.lengths[own], None if self.success is None else self.success[own])

    def rows(
        self,
        task: Task,
        *,
        phase: str,
        env_steps: int,
        updates: int,
        seeds: Sequence[int],
        provenance: str | None = None,
    ) -> list[dict[str, object]]:
        """Lines of evaluations.jsonl, one per member; `provenance` is that of the offline data, if there are any."""
        scores = task.score(self.returns)
        return [
            {
                "phase": phase,
                "env_steps": env_steps,
                "updates": updates,
                "seed": seed,
                "return_mean": float(self.returns[m].mean()),
                "return_std": float(self.returns[m].std()),
                "episodes": int(self.returns.shape[1]),
                "score": None if scores is None else float(scores[m].mean()),
                "length_mean": float(self.lengths[m].mean()),
                "success": None if self.success is None else float(self.success[m].mean()),
                "provenance": provenance,
            }
            for m, seed in enumerate(seeds)
        ]


class Evaluator:
    """Runs a deterministic policy for a fixed number of episodes in every environment.

    A fixed quota per environment keeps short episodes from being over-represented. The k-th evaluation of a seed uses
    the same episodes in every run and arm, and no two evaluations share any.

    An environment that fails is made anew and plays all its episodes of this evaluation again, from the same seed, so
    that the numbers are those of an evaluation in which nothing failed.

    Args:
        task: The task.
        seeds: One per member.
        envs: Environments per member.
        supervision: How often environments may fail.
        on_fault: Told of every environment that failed and was made anew.
    """

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        *,
        envs: int,
        supervision: Supervision | None = None,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> None:
        self.task, self.seeds, self.per_member = task, tuple(seeds), envs
        self.on_fault = on_fault
        supervision = replace(supervision or Supervision(), repeat=True)
        self._envs = make_vector_env(task, len(self.seeds) * envs, supervision=supervision)

    def run(
        self,
        policy: Callable[[FloatArray], FloatArray],
        *,
        episodes: int,
        index: int,
        on_episode: Callable[[int], None] | None = None,
        on_step: Watch | None = None,
    ) -> Evaluation:
        """Evaluate.

        Args:
            policy: Observations (M, n, O) to actions (M, n, A).
            episodes: Per member; rounded up to a multiple of the environments per member.
            index: Number of this evaluation in the run; selects the episodes' seeds.
            on_episode: Called with the number of episodes that have just ended.
            on_step: Told of every vector step.

        Raises:
            EnvError: An environment failed and then failed again, gave NaN, or plays an episode without end.
        """
        members, n = len(self.seeds), self.per_member
        quota = -(-episodes // n)
        seeds = [s for seed in self.seeds for s in env_seeds(seed, Stream.EVAL_ENV, n, index)]
        # SyncVectorEnv takes one seed each; its base class knows a single one only.
        raw, _ = self._envs.reset(seed=seeds)  # type: ignore[arg-type]
        obs = np.array(raw, dtype=np.float32)
        total = members * n
        returns: list[list[float]] = [[] for _ in range(total)]
        lengths: list[list[int]] = [[] for _ in range(total)]
        successes: list[list[bool]] = [[] for _ in range(total)]
        running, steps = np.zeros(total), np.zeros(total, dtype=np.int64)
        repeated: set[int] = set()
        self._faults(repeated)
        while min(len(r) for r in returns) < quota:
            action = policy(obs.reshape(members, n, -1)).reshape(total, -1)
            before = obs
            raw, reward, terminated, truncated, infos = self._envs.step(action)
            obs = np.array(raw, dtype=np.float32)
            if on_step is not None:
                on_step(before, action, reward, terminated, truncated, final_observations(raw, infos))
            running += reward
            steps += 1
            if DROPPED in infos:
                self._faults(repeated)
                for i in np.flatnonzero(infos[DROPPED]):
                    running[i], steps[i] = 0.0, 0
                    if len(returns[i]) < quota:
                        returns[i], lengths[i], successes[i] = [], [], []
            if not np.isfinite(running).all():
                raise EnvError(f"{self.task.env_id} returned a reward of NaN or infinity in evaluation")
            if steps.max() > LONGEST_EPISODE:
                raise EnvError(
                    f"{self.task.env_id}: no end of an episode after {LONGEST_EPISODE:,} steps; give the environment a "
                    f"time limit (max_episode_steps where it is registered)"
                )
            ended = terminated | truncated
            if DROPPED in infos:
                ended &= ~infos[DROPPED]
            if not ended.any():
                continue
            success = episode_success(infos, ended)
            for i in np.flatnonzero(ended):
                if len(returns[i]) < quota:
                    returns[i].append(float(running[i]))
                    lengths[i].append(int(steps[i]))
                    if success is not None:
                        successes[i].append(bool(success[i]))
                    if on_episode is not None:
                        on_episode(1)
            running[ended] = 0.0
            steps[ended] = 0
        complete = all(len(s) == quota for s in successes)
        return Evaluation(
            np.array(returns).reshape(members, -1),
            np.array(lengths).reshape(members, -1),
            np.array(successes).reshape(members, -1) if complete else None,
        )

    def _faults(self, repeated: set[int]) -> None:
        """Tell of faults, and bear one an environment; `repeated` are those that have had theirs."""
        for fault in faults_of(self._envs):
            if self.on_fault is not None:
                self.on_fault(fault)
            if fault.env in repeated:
                raise EnvError(
                    f"environment {fault.env} of {self.task.env_id} failed twice in one evaluation: "
                    f"{fault.failure.cause}; the same episodes fail again, so there is no evaluation without them"
                )
            repeated.add(fault.env)

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """One environment's observations and actions."""
        return self._envs.single_observation_space, self._envs.single_action_space

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()
