"""Data made here: PointMaze rolled out by a scripted controller, written as a real Minari dataset.

What is made says so: its id begins with `o2o-smooth/`, its description names the controller, and it is never passed off
as D4RL's or Minari's file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from o2o_smooth.data.installed import GENERATED
from o2o_smooth.data.write import write_minari
from o2o_smooth.envs.make import make_env
from o2o_smooth.envs.scripted import BEHAVIOUR, REFERENCE, ControllerSettings, WaypointController
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

Progress = Callable[[int, int], None]
Act = Callable[[NDArray[Any]], NDArray[np.float32]]  # observations (n, O) to actions (n, A)


@dataclass(frozen=True)
class References:
    """The two measured reference returns of a task, with the standard errors of the means."""

    random: float
    random_error: float
    expert: float
    expert_error: float
    episodes: int


def generated_id(task: Task) -> str | None:
    """Id of the dataset that can be made here for a task; None where there is none."""
    if task.domain != "pointmaze":
        return None
    return next((name for name in task.dataset_ids if name.startswith(GENERATED)), None)


def make_pointmaze_dataset(
    task: Task,
    *,
    transitions: int = 60_000,
    seed: int = 0,
    settings: ControllerSettings = BEHAVIOUR,
    progress: Progress | None = None,
) -> str:
    """Roll out the waypoint controller and write a Minari dataset under the user's Minari folder.

    Episodes are whole, so there may be a few more transitions than asked for. The same arguments and versions give the
    same arrays. Nothing is visible before all is written; a dataset that is there already is left alone.

    Args:
        task: One of the PointMaze tasks.
        transitions: At least so many.
        seed: Of the episodes' starts and goals and of the controller's noise.
        settings: Of the controller.
        progress: Called with (transitions done, transitions asked for) after every episode.

    Returns:
        The id of the dataset.

    Raises:
        DataError: No dataset is made for this task, or a number is out of range.
        EnvError: gymnasium-robotics is not installed.
    """
    dataset_id = generated_id(task)
    if dataset_id is None:
        raise DataError(f"no dataset can be made for task {task.id}: the scripted controller is for PointMaze")
    if transitions < 1:
        raise DataError(f"transitions is {transitions}, expected at least 1")
    rng = np.random.default_rng(seed)
    env = make_env(task)
    try:
        controller = WaypointController(env.get_wrapper_attr("maze"), settings)
        episodes: list[EpisodeBuffer] = []
        done = 0
        while done < transitions:
            episodes.append(_rollout(env, task, lambda obs: controller(obs, rng), int(rng.integers(2**31))))
            done += len(episodes[-1].rewards)
            if progress is not None:
                progress(min(done, transitions), transitions)
        write_minari(
            dataset_id,
            episodes,
            task=task,
            env=env,
            algorithm="scripted waypoint controller of o2o_smooth",
            how=f"Breadth-first waypoints, PD control and noise: {settings}, seed {seed}.",
            record={"controller": dataclasses.asdict(settings), "seed": seed},
        )
    finally:
        env.close()
    return dataset_id


def measure_references(task: Task, *, episodes: int = 1000, seed: int = 0) -> References:
    """Measure a PointMaze task's reference returns: the uniform random policy and the `REFERENCE` controller.

    The numbers in the task table come from here, with the default arguments.
    """
    rng = np.random.default_rng(seed)
    env = make_env(task)
    try:
        controller = WaypointController(env.get_wrapper_attr("maze"), REFERENCE)
        policies: list[Act] = [
            lambda obs: rng.uniform(-1.0, 1.0, (len(obs), 2)).astype(np.float32),
            lambda obs: controller(obs, rng),
        ]
        means = []
        for act in policies:
            returns = [
                sum(_rollout(env, task, act, int(rng.integers(2**31))).rewards, start=0.0) for _ in range(episodes)
            ]
            means.append((float(np.mean(returns)), float(np.std(returns, ddof=1) / np.sqrt(episodes))))
    finally:
        env.close()
    return References(*means[0], *means[1], episodes)


def _rollout(env: Any, task: Task, act: Act, seed: int) -> EpisodeBuffer:
    """Play one episode in the environment below our wrapper, whose dict observations Minari stores."""
    raw = env.env
    keys = task.obs_keys or ()
    obs, _ = raw.reset(seed=seed)
    observations, actions, rewards, ends = [obs], [], [], [(False, False)]
    while not any(ends[-1]):
        flat = np.concatenate([obs[key] for key in keys])[None]
        action = act(flat)[0]
        obs, reward, terminated, truncated, _ = raw.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(float(reward))
        ends.append((bool(terminated), bool(truncated) and not terminated))
    return EpisodeBuffer(
        seed=seed,
        observations={key: np.stack([obs[key] for obs in observations]) for key in observations[0]},
        actions=np.stack(actions),
        rewards=rewards,
        terminations=[terminated for terminated, _ in ends[1:]],
        truncations=[truncated for _, truncated in ends[1:]],
    )
