"""Data made here: policies rolled out, datasets mixed, and PointMaze's own sets by a scripted controller.

What is made says so: its id begins with `o2o-smooth/`, its description names what acted, and it is never passed off as
D4RL's or Minari's file.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from o2o_smooth.data.installed import GENERATED
from o2o_smooth.data.minari_sets import from_minari
from o2o_smooth.data.policies import ArrayPolicy
from o2o_smooth.data.rollout import Act, Flatten, interleave, roll_out, uniform_policy
from o2o_smooth.data.write import write_minari
from o2o_smooth.envs.corridor import CORRIDOR_BEHAVIOUR, CORRIDOR_REFERENCE, CorridorController, CorridorSettings
from o2o_smooth.envs.make import Env, make_env
from o2o_smooth.envs.scripted import BEHAVIOUR, REFERENCE, ControllerSettings, WaypointController
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

Progress = Callable[[int, int], None]
MADE_HERE = ("pointmaze", "corridor")
"""Domains whose own sets a script makes: PointMaze's here, the Corridor's in `corridor_sets`."""


@dataclass(frozen=True)
class Policy:
    """Something that acts, and what a dataset's record says of it."""

    name: str
    act: Act
    record: dict[str, Any]
    flatten: Flatten | None = None
    """What it sees; None: the task's float32 observations."""


Numbered = list[tuple[int, EpisodeBuffer]]
"""Episodes, each with the number of the policy or dataset that it comes from."""


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
    if task.domain not in MADE_HERE:
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
    if dataset_id is None or task.domain != "pointmaze":
        raise DataError(f"no dataset can be made for task {task.id}: the scripted controller is for PointMaze")
    if transitions < 1:
        raise DataError(f"transitions is {transitions}, expected at least 1")
    rng = np.random.default_rng(seed)
    env = make_env(task)
    try:
        controller = WaypointController(env.get_wrapper_attr("maze"), settings)
        flatten = exact_observations(task)
        episodes = roll_out([env], controller, rng, transitions=transitions, flatten=flatten, progress=progress)
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
    """Measure reference returns: the uniform random policy and the reference controller of PointMaze or the Corridor.

    The numbers in the task table come from here, with the default arguments.
    """
    rng = np.random.default_rng(seed)
    env = make_env(task)
    try:
        corridor = task.domain == "corridor"
        flatten = None if corridor else exact_observations(task)
        controller: Act = CorridorController(CORRIDOR_REFERENCE)
        if not corridor:
            controller = WaypointController(env.get_wrapper_attr("maze"), REFERENCE)

        policies: list[Act] = [uniform_policy(*_box(env)), controller]
        means = []
        for act in policies:
            # A budget of one transition is one whole episode.
            played = (roll_out([env], act, rng, transitions=1, flatten=flatten) for _ in range(episodes))
            returns = [sum(episode.rewards, start=0.0) for (episode,) in played]
            means.append((float(np.mean(returns)), float(np.std(returns, ddof=1) / np.sqrt(episodes))))
    finally:
        env.close()
    return References(*means[0], *means[1], episodes)


def exact_observations(task: Task) -> Flatten:
    """The flat observations of a task with dict observations in the environment's own precision."""
    keys = task.obs_keys or ()

    def flatten(obs: Any) -> NDArray[Any]:
        return np.concatenate([obs[key] for key in keys])

    return flatten


# ----------------------------------------------------------------------------------------------------------- roll-outs


def scripted_policy(task: Task, env: Env, settings: ControllerSettings = BEHAVIOUR) -> Policy:
    """The waypoint controller of the PointMaze tasks, or the Corridor's own.

    Raises:
        DataError: The task is another one.
    """
    if task.domain == "corridor":
        return corridor_policy()
    if task.domain != "pointmaze":
        raise DataError(
            f"the scripted controller is for PointMaze tasks and the Corridor, not for {task.id}; give another --policy"
        )
    controller = WaypointController(env.get_wrapper_attr("maze"), settings)
    record = {"kind": "scripted", "controller": dataclasses.asdict(settings)}
    return Policy("scripted waypoint controller", controller, record, exact_observations(task))


def corridor_policy(settings: CorridorSettings = CORRIDOR_BEHAVIOUR) -> Policy:
    """The scripted controller of the Corridor."""
    name = f"scripted Corridor controller (speed {settings.speed:g}, noise {settings.noise:g})"
    record = {"kind": "scripted", "controller": dataclasses.asdict(settings)}
    return Policy(name, CorridorController(settings), record)


def random_policy(env: Env) -> Policy:
    """Uniformly random actions."""
    return Policy("uniform random policy", uniform_policy(*_box(env)), {"kind": "random"})


def array_policy(path: Path, env: Env, *, deterministic: bool = False) -> Policy:
    """A policy in an .npz of plain arrays; its actions in [-1, 1] span the environment's box.

    Raises:
        DataError: The file is absent or broken, or does not fit the environment.
    """
    policy = ArrayPolicy(path)
    check_policy_fits(str(path), policy.obs_dim, policy.action_dim, env)
    low, high = _box(env)

    def act(obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        unit = policy(obs, None if deterministic else rng)
        return np.asarray((low + high) / 2 + (high - low) / 2 * unit, dtype=np.float32)

    record = {"kind": "arrays", "file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return Policy(f"policy {path.name}", act, {**record, "deterministic": deterministic})


def check_policy_fits(name: str, obs_dim: int, action_dim: int, env: Env) -> None:
    """Check a policy's sizes.

    Raises:
        DataError: They are not the environment's; the text names both.
    """
    want = (env.observation_space.shape or (0,))[0], (env.action_space.shape or (0,))[0]
    if (obs_dim, action_dim) != want:
        raise DataError(
            f"policy {name} does not fit the environment: it takes {obs_dim} observations and gives {action_dim} "
            f"actions, the environment has {want[0]} and {want[1]}"
        )


def with_noise(policy: Policy, env: Env, *, noise: float = 0.0, epsilon: float = 0.0) -> Policy:
    """A policy whose actions are disturbed.

    Args:
        policy: The policy.
        env: Gives the box.
        noise: Standard deviation of Gaussian noise, in units of half the box.
        epsilon: Probability, in every step, of a uniformly random action instead.
    """
    low, high = _box(env)

    def act(obs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        action = policy.act(obs, rng)
        if noise > 0:
            action = action + noise * (high - low) / 2 * rng.standard_normal(action.shape)
        if epsilon > 0:
            uniform = rng.uniform(low, high, action.shape)
            action = np.where(rng.random((len(action), 1)) < epsilon, uniform, action)
        return action

    return dataclasses.replace(policy, act=act, record={**policy.record, "noise": noise, "epsilon": epsilon})


def play(
    task: Task,
    policies: Sequence[Policy],
    *,
    transitions: int,
    seed: int,
    num_envs: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Numbered:
    """Roll policies out for equal shares of the transitions, interleaved by episodes.

    With one environment and the scripted policy these are `make_pointmaze_dataset`'s episodes.

    Args:
        task: The task.
        policies: What acts.
        transitions: At least so many in all; episodes are whole.
        seed: Of everything.
        num_envs: Environments in lockstep.
        progress: Called with (what, transitions done, transitions asked for).

    Raises:
        DataError: A policy gave NaN.
        EnvError: The environment returned NaN or infinity.
    """
    share = -(-transitions // len(policies))
    played: list[list[EpisodeBuffer]] = []
    envs: list[Env] = []
    try:
        envs += [make_env(task) for _ in range(num_envs)]
        for i, policy in enumerate(policies):
            sequence = np.random.SeedSequence(seed, spawn_key=(i,) if i else ())
            name = f"rolling out {policy.name}" + (f" ({i + 1} of {len(policies)})" if len(policies) > 1 else "")
            report = None if progress is None else lambda done, total, name=name: progress(name, done, total)
            rng = np.random.default_rng(sequence)
            played.append(roll_out(envs, policy.act, rng, transitions=share, flatten=policy.flatten, progress=report))
    finally:
        for env in envs:
            env.close()
    return interleave(played, [1.0] * len(played))


def _box(env: Env) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    space: Any = env.action_space
    return space.low, space.high


# ------------------------------------------------------------------------------------------------------------ mixtures


@dataclass(frozen=True)
class Mixture:
    """Whole episodes of several datasets."""

    episodes: Numbered
    sources: list[dict[str, Any]]
    """Of each dataset: id, sha256, provenance, share, and how many transitions and episodes were taken."""


def mix_minari(
    task: Task,
    env: Env,
    shares: Mapping[str, float],
    *,
    transitions: int | None = None,
    progress: Progress | None = None,
) -> Mixture:
    """Take whole episodes of installed Minari datasets, each from its beginning, and interleave them.

    Args:
        task: Gives the layout of observations.
        env: Of `make_env(task)`; observations and actions must be laid out as its are.
        shares: Minari id to its share of the transitions, in any unit.
        transitions: In all, at least; None: as many as the shares allow.
        progress: Called with (datasets read, datasets).

    Raises:
        DataError: A dataset is not installed, broken, too small or laid out otherwise.
    """
    whole = sum(shares.values())
    loaded = []
    for i, dataset_id in enumerate(shares):
        known = from_minari(dataset_id, task=task)  # checks it all, and gives its hash and provenance
        dataset = minari.load_dataset(dataset_id)
        _check_layout(dataset_id, dataset, env)
        loaded.append((known.sha256, known.provenance, dataset))
        if progress is not None:
            progress(i + 1, len(shares))
    most = min(int(d.total_steps * whole / share) for (*_, d), share in zip(loaded, shares.values(), strict=True))
    total = most if transitions is None else transitions
    taken: list[list[EpisodeBuffer]] = []
    sources: list[dict[str, Any]] = []
    for (dataset_id, share), (sha256, provenance, dataset) in zip(shares.items(), loaded, strict=True):
        wanted = total * share / whole
        if total > most and wanted > dataset.total_steps:
            raise DataError(
                f"dataset {dataset_id} has {dataset.total_steps:,} transitions, and its share of {total:,} is "
                f"{int(wanted):,}: ask for --transitions {most} at most, or give it a smaller share"
            )
        episodes = _take(dataset, wanted)
        steps = sum(len(episode.rewards) for episode in episodes)
        source = {"id": dataset_id, "sha256": sha256, "provenance": provenance, "share": share / whole}
        sources.append({**source, "transitions": steps, "episodes": len(episodes)})
        taken.append(episodes)
    return Mixture(interleave(taken, list(shares.values())), sources)


def _take(dataset: Any, transitions: float) -> list[EpisodeBuffer]:
    """The first episodes of a dataset that together have so many transitions."""
    seeds: list[int | None] = []
    steps = 0
    for metadata in dataset.storage.get_episode_metadata(range(dataset.total_episodes)):
        if steps < transitions:
            seeds.append(metadata.get("seed"))
            steps += int(metadata["total_steps"])
    episodes = dataset.iterate_episodes(range(len(seeds)))
    parts = ("observations", "actions", "rewards", "terminations", "truncations")
    return [
        EpisodeBuffer(seed=seed, **{part: getattr(episode, part) for part in parts})
        for seed, episode in zip(seeds, episodes, strict=True)
    ]


def _check_layout(dataset_id: str, dataset: Any, env: Env) -> None:
    raw: Any = env
    for what in ("observation", "action"):
        got, want = (_layout(getattr(owner, f"{what}_space")) for owner in (dataset, raw.env))
        if got != want:
            raise DataError(
                f"dataset {dataset_id} does not fit the environment: its {what}s are {got}, the environment's {want}"
            )


def _layout(space: gym.Space[Any]) -> str:
    """Shapes of a space, in words."""
    if isinstance(space, gym.spaces.Dict):
        return ", ".join(f"{key} {inner.shape}" for key, inner in space.spaces.items())
    return str(space.shape)
