"""One policy's steps through the evaluation path and through the collection path, as each of them sees them.

Nothing of the run is used up: environments, buffer and seeds are the walk's own, and the policy is asked for its
deterministic action, which draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.agents import Agent
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.buffer import ReplayBuffer, columns
from o2o_smooth.data.collect import BrokenStep, Collector
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import Task
from o2o_smooth.envs.supervision import Fault
from o2o_smooth.errors import EnvError, ParityError
from o2o_smooth.training.evaluate import Evaluator
from o2o_smooth.training.seeding import Stream, env_seeds

PARITY_INDEX = 2_000_000_001  # evaluation index whose seeds no evaluation of a run uses
LOOK_EVERY = 10  # vector steps
INSTEAD = "; put it right, or go on all the same with --no-parity-check"
Policy = Callable[[FloatArray], FloatArray]  # (M, n, O) -> (M, n, A)


@dataclass(frozen=True)
class Paths:
    """Both ways from an agent to its task, made by the functions that the run makes its own with."""

    agent: Agent
    task: Task
    reward_map: RewardMap
    """Of the collector."""
    lanes: int
    """Environments per member in a walk."""
    evaluator: Callable[[Task, int], Evaluator]
    """For so many environments per member."""
    collector: Callable[[Task, int, ReplayBuffer, Sequence[int]], Collector]
    """For so many environments per member, writing to a buffer, on given seeds."""
    look: Callable[[], None] = lambda: None
    """Called every few steps; whatever it raises ends the check, as where somebody wants to stop."""


@dataclass(frozen=True)
class Walk:
    """S vector steps of N = M x lanes environments."""

    obs: FloatArray  # (S, N, O)
    action: FloatArray  # (S, N, A)
    reward: NDArray[np.floating[Any]]  # (S, N): raw in the evaluation path, as stored in the collection path
    successor: FloatArray  # (S, N, O)
    terminated: NDArray[np.bool_]  # (S, N)
    truncated: NDArray[np.bool_]  # (S, N)
    returns: dict[int, tuple[float, int]]  # environment -> return and length of its first episode, where it has ended

    def __len__(self) -> int:
        return len(self.obs)


class _Enough(Exception):
    """The walk is long enough."""


class Disturbed(Exception):
    """An environment failed on the way and was made anew, so the walk is not the one that the other path takes."""


def walk_evaluation(paths: Paths, policy: Policy, *, steps: int) -> Walk:
    """Walk the evaluation path until every environment has ended an episode, or for so many vector steps."""
    seen: list[tuple[NDArray[Any], ...]] = []

    def disturbed(fault: Fault) -> None:
        raise Disturbed(fault.failure.cause)

    def watch(*step: NDArray[Any]) -> None:
        if len(seen) % LOOK_EVERY == 0:
            paths.look()
        seen.append(tuple(np.array(x) for x in step))
        if len(seen) == steps:
            raise _Enough

    evaluator = paths.evaluator(paths.task, paths.lanes)
    evaluator.on_fault = disturbed
    returns: dict[int, tuple[float, int]] = {}
    try:
        _require_box("evaluation", evaluator.spaces, paths.agent)
        found = evaluator.run(policy, episodes=paths.lanes, index=PARITY_INDEX, on_step=watch)
        ended = zip(found.returns.ravel().tolist(), found.lengths.ravel().tolist(), strict=True)
        returns = dict(enumerate(ended))
    except _Enough:
        pass
    finally:
        evaluator.close()
    obs, action, reward, terminated, truncated, successor = (np.stack(parts) for parts in zip(*seen, strict=True))
    return Walk(obs, action, reward, successor, terminated, truncated, returns)


def walk_collection(paths: Paths, policy: Policy, *, steps: int) -> Walk:
    """Walk the collection path for so many vector steps, on the seeds of `walk_evaluation`."""
    agent, lanes, members = paths.agent, paths.lanes, paths.agent.members
    buffer = ReplayBuffer(members, steps * lanes, agent.obs_dim, agent.action_dim, device=agent.device)
    first_row = buffer.written
    seeds = [s for seed in agent.seeds for s in env_seeds(seed, Stream.EVAL_ENV, lanes, PARITY_INDEX)]
    collector = paths.collector(paths.task, lanes, buffer, seeds)
    returns: dict[int, tuple[float, int]] = {}
    try:
        spaces = collector.envs.single_observation_space, collector.envs.single_action_space
        _require_box("collection", spaces, agent)
        for step in range(steps):
            if step % LOOK_EVERY == 0:
                paths.look()
            ended = collector.step(policy)
            if collector.dropped_episodes.any():
                raise Disturbed("its episode was dropped")
            for episode in ended:
                first = (episode.episode_return, episode.length)
                returns.setdefault(episode.member * lanes + episode.lane, first)
    except BrokenStep as error:  # its numbers of environments and steps are the walk's, not the run's
        raise EnvError(f"in the check of both paths: {error}") from error
    finally:
        collector.close()
    numbers = first_row + np.arange(steps * lanes)
    packed = np.stack([buffer.packed_rows(m, numbers).reshape(steps, lanes, -1) for m in range(members)], 1)
    rows = packed.reshape(steps, members * lanes, -1)
    at = columns(agent.obs_dim, agent.action_dim)
    return Walk(
        rows[..., at.obs],
        rows[..., at.action],
        rows[..., at.reward],
        rows[..., at.next_obs],
        rows[..., at.terminated] > 0.5,
        rows[..., at.truncated] > 0.5,
        returns,
    )


def _require_box(path: str, spaces: tuple[gym.Space[Any], gym.Space[Any]], agent: Agent) -> None:
    """Check that a path has the observations and the action box that the agent was built for."""
    obs, action = spaces
    if obs.shape != (agent.obs_dim,):
        raise ParityError(
            "observation shape",
            f"the {path} path has observations of shape {obs.shape}, the agent was built for ({agent.obs_dim},)",
        )
    if not isinstance(action, gym.spaces.Box) or action.shape != (agent.action_dim,):
        raise ParityError("action box", f"the {path} path has the actions {action}, not a box of {agent.action_dim}")
    for name, own, expected in (("low", action.low, agent.action_low), ("high", action.high, agent.action_high)):
        if not np.array_equal(own, expected):
            i = int(np.argmax(own != expected))
            raise ParityError(
                "action box",
                f"the {path} path's action {i} has the {name} bound {own[i]:g}, the agent was built for "
                f"{expected[i]:g}: a wrapper there rescales actions{INSTEAD}",
            )
