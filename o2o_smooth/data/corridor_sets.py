"""The Corridor's datasets, made on the spot: who acted in each, and how it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from o2o_smooth.data.generate import Numbered, Policy, Progress, generated_id, play, random_policy
from o2o_smooth.data.write import write_minari
from o2o_smooth.envs.corridor import CORRIDOR_BEHAVIOUR, CORRIDOR_NARROW, CorridorController, CorridorSettings
from o2o_smooth.envs.make import Env, make_env
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

ROWS = 20_000
"""Transitions of a set, at least: episodes are whole."""
_LANES = 8  # environments that are rolled out in lockstep
_UNIFORM = None
_ACTING: Mapping[str, tuple[CorridorSettings | None, ...]] = {
    "corridor-mixed-v0": (CORRIDOR_BEHAVIOUR, _UNIFORM),
    "corridor-medium-v0": (CORRIDOR_BEHAVIOUR,),
    "corridor-narrow-v0": (CORRIDOR_NARROW,),
}


def make_corridor_dataset(
    task: Task, *, transitions: int = ROWS, seed: int = 0, replace: bool = False, progress: Progress | None = None
) -> str:
    """Roll out the policies of one of the Corridor's sets and write a Minari dataset under the user's Minari folder.

    `mixed`: the slow and noisy controller and uniform play, half of the transitions each. `medium`: that controller
    alone. `narrow`: the slow controller with a third of the noise. The same arguments and versions give the same
    arrays. Nothing is visible before all is written.

    Args:
        task: One of the Corridor tasks.
        transitions: At least so many; episodes are whole.
        seed: Of the episodes' starts and of all noise.
        replace: Put the new set in the place of one that is there; otherwise that is left alone.
        progress: Called with (transitions done, transitions asked for) after every episode.

    Returns:
        The id of the dataset.

    Raises:
        DataError: The task is another one, or a number is out of range.
    """
    dataset_id = generated_id(task)
    if dataset_id is None or task.id not in _ACTING:
        raise DataError(f"{task.id} is no Corridor task with a set of its own; there are {', '.join(_ACTING)}")
    if transitions < 1:
        raise DataError(f"transitions is {transitions}, expected at least 1")
    env = make_env(task)
    try:
        policies = [corridor_policy(settings, env) for settings in _ACTING[task.id]]
        played = _play(task, policies, transitions, seed, progress)
        words = " and ".join(policy.name for policy in policies)
        write_minari(
            dataset_id,
            [episode for _, episode in played],
            task=task,
            env=env,
            algorithm=words,
            how=f"Equal shares of the transitions by {words}, seed {seed}.",
            record={
                "policies": [policy.record for policy in policies],
                "seed": seed,
                "episode_sources": [number for number, _ in played],
            },
            replace=replace,
        )
    finally:
        env.close()
    return dataset_id


def corridor_policy(settings: CorridorSettings | None, env: Env) -> Policy:
    """The scripted controller with these settings, or without any uniform play."""
    if settings is None:
        return random_policy(env)
    name = f"scripted Corridor controller (speed {settings.speed:g}, noise {settings.noise:g})"
    record: dict[str, Any] = {"kind": "scripted", "controller": dataclasses.asdict(settings)}
    return Policy(name, CorridorController(settings), record)


def _play(task: Task, policies: list[Policy], transitions: int, seed: int, progress: Progress | None) -> Numbered:
    """Roll out all policies; progress counts on from one to the next."""
    share = -(-transitions // len(policies))
    parts = 0

    def report(_name: str, done: int, total: int) -> None:
        nonlocal parts
        if progress is not None:
            progress(min(parts * share + done, transitions), transitions)
        parts += done == total

    return play(task, policies, transitions=transitions, seed=seed, num_envs=_LANES, progress=report)
