"""The Corridor's datasets, made on the spot: who acted in each, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping

from o2o_smooth.data.generate import Numbered, Policy, Progress, corridor_policy, generated_id, play, random_policy
from o2o_smooth.data.write import write_minari
from o2o_smooth.envs.corridor import CORRIDOR_BEHAVIOUR, CORRIDOR_NARROW, CorridorSettings
from o2o_smooth.envs.make import make_env
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

ROWS = 20_000
"""Transitions of a set, at least: episodes are whole."""
_LANES = 8  # environments that are rolled out in lockstep
_ACTING: Mapping[str, tuple[CorridorSettings | None, ...]] = {  # None: uniform play
    "corridor-mixed-v0": (CORRIDOR_BEHAVIOUR, None),
    "corridor-medium-v0": (CORRIDOR_BEHAVIOUR,),
    "corridor-narrow-v0": (CORRIDOR_NARROW,),
}


def make_corridor_dataset(
    task: Task,
    dataset_id: str | None = None,
    *,
    transitions: int = ROWS,
    seed: int = 0,
    replace: bool = False,
    progress: Progress | None = None,
) -> str:
    """Roll out the policies of one of the Corridor's sets and write a Minari dataset under the user's Minari folder.

    `mixed`: the slow and noisy controller and uniform play, half of the transitions each. `medium`: that controller
    alone. `narrow`: the slow controller with a third of the noise. The same arguments and versions give the same
    arrays. Nothing is visible before all is written.

    Args:
        task: One of the Corridor tasks.
        dataset_id: Minari id; default: the task's own.
        transitions: At least so many; episodes are whole.
        seed: Of the episodes' starts and of all noise.
        replace: Put the new set in the place of one that is there; otherwise that is left alone.
        progress: Called with (transitions done, transitions asked for) after every episode.

    Returns:
        The id of the dataset.

    Raises:
        DataError: The task is another one, or a number is out of range.
    """
    dataset_id = dataset_id or generated_id(task)
    if dataset_id is None or task.id not in _ACTING:
        raise DataError(f"{task.id} is no Corridor task with a set of its own; there are {', '.join(_ACTING)}")
    if transitions < 1:
        raise DataError(f"transitions is {transitions}, expected at least 1")
    env = make_env(task)
    try:
        policies = [random_policy(env) if s is None else corridor_policy(s) for s in _ACTING[task.id]]
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


def _play(task: Task, policies: list[Policy], transitions: int, seed: int, progress: Progress | None) -> Numbered:
    """Roll out all policies; progress counts on from one to the next."""
    share = -(-transitions // len(policies))
    begun: list[str] = []

    def report(name: str, done: int, _total: int) -> None:
        if name not in begun:
            begun.append(name)
        if progress is not None:
            progress(min((len(begun) - 1) * share + done, transitions), transitions)

    return play(task, policies, transitions=transitions, seed=seed, num_envs=_LANES, progress=report)
