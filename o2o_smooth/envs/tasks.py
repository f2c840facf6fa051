"""One row a task: its environment, its data, its one reward map and the meaning of a score.

A task is named after D4RL where environment and reference scores are D4RL's (`hopper-medium-v2`), and after Minari
where they are not: gymnasium-robotics' PointMaze is not D4RL's Maze2D, so its references were measured here, and
Minari's AntMaze sets were recorded with gymnasium's stronger ant (gear 150), D4RL's with gear 30.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike, NDArray

from o2o_smooth.errors import EnvError

DOMAINS = ("mujoco", "pointmaze", "antmaze", "other")


@dataclass(frozen=True)
class Task:
    """What is learned and how it is scored.

    Raises:
        EnvError: A field is out of range; the text names it.
    """

    id: str
    """Canonical name, as it stands in manifests."""
    env_id: str
    """Id of a registered gymnasium environment."""
    domain: str = "other"
    """Selects the agents' presets: "mujoco", "pointmaze", "antmaze" or "other"."""
    dataset_ids: tuple[str, ...] = ()
    """Minari ids that fit, best first."""
    max_episode_steps: int | None = None
    """Time limit of an episode; None keeps the environment's own."""
    ref_random: float | None = None
    """Mean return of the uniform random policy: score 0."""
    ref_expert: float | None = None
    """Mean return of the reference policy: score 100."""
    ref_source: str | None = None
    """Where the two reference scores come from, in words."""
    reward_scale: float = 1.0
    """The reward map is `reward * reward_scale + reward_shift`, for dataset and collector alike."""
    reward_shift: float = 0.0
    """See `reward_scale`. Environments and datasets hold raw rewards; the learner applies the map."""
    obs_keys: tuple[str, ...] | None = None
    """Dict observations: which boxes are concatenated, in order; None takes all in the order of the space."""
    action_scale: float = 1.0
    """Factor on actions before the simulator; agents and datasets hold unscaled actions."""
    goal_reward: float | None = None
    """A reward of at least this ends the task. Datasets that go on at the goal are cut there (AntMaze)."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the environment's constructor."""
    aliases: tuple[str, ...] = ()
    """Other names under which the task is found."""

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise EnvError(f"task {self.id}: domain is {self.domain!r}, expected one of {', '.join(DOMAINS)}")
        if (self.ref_random is None) != (self.ref_expert is None):
            raise EnvError(f"task {self.id}: ref_random and ref_expert come together or not at all")
        if self.ref_random is not None and self.ref_random == self.ref_expert:
            raise EnvError(f"task {self.id}: ref_random and ref_expert are equal, so a score has no meaning")
        for name in ("reward_scale", "action_scale"):
            if not getattr(self, name) > 0:
                raise EnvError(f"task {self.id}: {name} is {getattr(self, name)}, expected a positive number")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise EnvError(f"task {self.id}: max_episode_steps is {self.max_episode_steps}, expected at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the task: id, aliases and dataset ids, without repetition."""
        return tuple(dict.fromkeys((self.id, *self.aliases, *self.dataset_ids)))

    def score(self, returns: ArrayLike) -> NDArray[np.float64] | None:
        """Normalise undiscounted raw returns of any shape: 0 is random, 100 the reference; None without references."""
        if self.ref_random is None or self.ref_expert is None:
            return None
        values = np.asarray(returns, dtype=np.float64)
        return np.asarray(100.0 * (values - self.ref_random) / (self.ref_expert - self.ref_random))


_D4RL_SCORES = "D4RL (d4rl/infos.py): random policy and expert"
_SUCCESS = "by definition: the return is 1 if the goal is reached, else 0"
_MUJOCO_TIERS = ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay")
_MINARI_TIERS = ("medium", "expert")  # Minari has no random, replay or mixed tier

# Environment: id, score 0, score 100.
_MUJOCO = {
    "halfcheetah": ("HalfCheetah-v5", -280.178953, 12135.0),
    "hopper": ("Hopper-v5", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v5", 1.629008, 4592.3),
    "ant": ("Ant-v5", -325.6, 3879.7),
}

# Maze: D4RL id, Minari name, environment, time limit, score 0, score 100. The scores were measured with
# `o2o_smooth.data.measure_references`: D4RL's do not transfer (its ref_max of 161.86 in UMaze stands against 244 here).
# Standard errors: at most 2.4 for score 0 and 2.7 for score 100, in units of return.
_POINTMAZE = (
    ("maze2d-open-v0", "open", "PointMaze_Open-v3", 150, 3.23, 94.55),
    ("maze2d-umaze-v1", "umaze", "PointMaze_UMaze-v3", 300, 13.56, 244.09),
    ("maze2d-medium-v1", "medium", "PointMaze_Medium-v3", 600, 10.55, 493.48),
    ("maze2d-large-v1", "large", "PointMaze_Large-v3", 800, 9.23, 638.63),
    ("maze2d-open-dense-v0", "open-dense", "PointMaze_OpenDense-v3", 150, 27.29, 103.06),
    ("maze2d-umaze-dense-v1", "umaze-dense", "PointMaze_UMazeDense-v3", 300, 63.49, 252.69),
    ("maze2d-medium-dense-v1", "medium-dense", "PointMaze_MediumDense-v3", 600, 57.66, 503.74),
    ("maze2d-large-dense-v1", "large-dense", "PointMaze_LargeDense-v3", 800, 44.85, 647.91),
)
_POINTMAZE_SOURCE = (
    "measured: uniform policy and scripted controller (gain 10, noise 0.2), 1000 episodes each, "
    "gymnasium-robotics 1.4.2, mujoco 3.11.0"
)

# D4RL's evaluation mazes: fixed start cell "r", fixed goal cell "g".
_UMAZE = ("#####", "#r..#", "###.#", "#g..#", "#####")
_UMAZE_MINARI = ("#####", "#g..#", "###.#", "#r..#", "#####")  # Minari's umaze set was recorded the other way round
_MEDIUM = ("########", "#r.##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#.g#", "########")
_LARGE = (
    "############",
    "#r...#.....#",
    "#.##.#.#.#.#",
    "#......#...#",
    "#.####.###.#",
    "#..#.#.....#",
    "##.#.#.#.###",
    "#..#...#.g.#",
    "############",
)

# Maze: name, environment, time limit, map of D4RL's evaluation, map for Minari's set.
_ANTMAZE = (
    ("umaze", "AntMaze_UMaze-v4", 700, _UMAZE, _UMAZE_MINARI),
    ("umaze-diverse", "AntMaze_UMaze-v4", 700, _UMAZE, _UMAZE),
    ("medium-play", "AntMaze_Medium-v4", 1000, _MEDIUM, _MEDIUM),
    ("medium-diverse", "AntMaze_Medium_Diverse_GR-v4", 1000, _MEDIUM, _MEDIUM),
    ("large-play", "AntMaze_Large-v4", 1000, _LARGE, _LARGE),
    ("large-diverse", "AntMaze_Large_Diverse_GR-v4", 1000, _LARGE, _LARGE),
)


def _mujoco_task(name: str, tier: str) -> Task:
    env_id, ref_random, ref_expert = _MUJOCO[name]
    return Task(
        id=f"{name}-{tier}-v2",
        env_id=env_id,
        domain="mujoco",
        dataset_ids=(f"mujoco/{name}/{tier}-v0",) if tier in _MINARI_TIERS else (),
        max_episode_steps=1000,
        ref_random=ref_random,
        ref_expert=ref_expert,
        ref_source=_D4RL_SCORES,
    )


def _pointmaze_task(row: tuple[str, str, str, int, float | None, float | None]) -> Task:
    d4rl_id, name, env_id, steps, ref_random, ref_expert = row
    return Task(
        id=f"D4RL/pointmaze/{name}-v2",
        env_id=env_id,
        domain="pointmaze",
        dataset_ids=(f"D4RL/pointmaze/{name}-v2", f"o2o-smooth/pointmaze/{name}-v0"),
        max_episode_steps=steps,
        ref_random=ref_random,
        ref_expert=ref_expert,
        ref_source=_POINTMAZE_SOURCE,
        obs_keys=("observation", "desired_goal"),
        env_kwargs={"continuing_task": True, "reset_target": False},  # the goal stays, and so does its reward
        aliases=(d4rl_id,),
    )


def _antmaze_task(name: str, env_id: str, steps: int, maze: tuple[str, ...], minari: bool) -> Task:
    cells = {"#": 1, ".": 0}
    dataset_id = f"D4RL/antmaze/{name}-v1"
    return Task(
        id=dataset_id if minari else f"antmaze-{name}-v2",
        env_id=env_id,
        domain="antmaze",
        dataset_ids=(dataset_id,) if minari else (),
        max_episode_steps=steps,
        ref_random=0.0,
        ref_expert=1.0,
        ref_source=_SUCCESS,
        reward_shift=-1.0,
        obs_keys=("achieved_goal", "observation", "desired_goal"),
        action_scale=1.0 if minari else 0.2,  # D4RL's gear is 30, gymnasium's 150, with which Minari's sets were made
        goal_reward=1.0,
        env_kwargs={
            "maze_map": [[cells.get(cell, cell) for cell in row] for row in maze],
            "continuing_task": False,  # ends at the goal
            "reset_target": False,
        },
    )


_TASKS: dict[str, Task] = {}  # by id
_NAMES: dict[str, str] = {}  # from any name to the id


def register_task(task: Task) -> None:
    """Make a task known to `find_task` under its id, aliases and dataset ids.

    Raises:
        EnvError: One of the names belongs to another task.
    """
    taken = [name for name in task.names if _NAMES.get(name, task.id) != task.id]
    if taken:
        raise EnvError(f"cannot register task {task.id}: {taken[0]!r} already names task {_NAMES[taken[0]]}")
    _TASKS[task.id] = task
    _NAMES.update(dict.fromkeys(task.names, task.id))


def known_tasks() -> tuple[Task, ...]:
    """All rows of the table, in order. Any other registered gymnasium environment can be named as well."""
    return tuple(_TASKS.values())


def find_task(name: str) -> Task:
    """Find a task by D4RL id, Minari id or the id of a registered gymnasium environment.

    An environment of several tasks gives a task of its own, with their references and without their datasets.

    Raises:
        EnvError: Nothing has this name; the text names close matches.
    """
    if name in _NAMES:
        return _TASKS[_NAMES[name]]
    rows = [task for task in _TASKS.values() if task.env_id == name]
    if len(rows) == 1:
        return rows[0]
    if rows:
        return _env_task(rows[0])
    spec = find_spec(name)
    if spec is None:
        raise EnvError(_unknown(name))
    return Task(id=name, env_id=name, domain=_domain(spec), max_episode_steps=spec.max_episode_steps)


def find_spec(env_id: str) -> EnvSpec | None:
    """Find the specification of a registered environment, `module:Name-v0` included; None where there is none."""
    module, _, bare = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvError(f"cannot import {module!r} for environment {env_id!r}: {error}") from error
    if bare not in gym.registry:
        with contextlib.suppress(EnvError):  # without the package, the id is simply unknown
            register_robotics()
    return gym.registry.get(bare)


def register_robotics() -> None:
    """Import gymnasium-robotics, which registers its environments; kept until one of them is asked for.

    Raises:
        EnvError: The package is not installed; the text names the extra.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a notice about Adroit, on every first import
            robotics = importlib.import_module("gymnasium_robotics")
    except ImportError as error:
        raise EnvError(
            f"this environment needs gymnasium-robotics ({error}): pip install 'o2o_smooth[robotics]'"
        ) from error
    gym.register_envs(robotics)


def _env_task(row: Task) -> Task:
    """The task of a bare environment that several rows of the table share."""
    return Task(
        id=row.env_id,
        env_id=row.env_id,
        domain=row.domain,
        max_episode_steps=row.max_episode_steps,
        ref_random=row.ref_random,
        ref_expert=row.ref_expert,
        ref_source=row.ref_source,
        reward_shift=row.reward_shift,
        obs_keys=row.obs_keys,
        action_scale=row.action_scale,
        goal_reward=row.goal_reward,
        env_kwargs=row.env_kwargs,
    )


def _domain(spec: EnvSpec) -> str:
    entry = spec.entry_point if isinstance(spec.entry_point, str) else ""
    for domain, mark in (("pointmaze", "maze.point_maze"), ("antmaze", "maze.ant_maze"), ("mujoco", "envs.mujoco")):
        if mark in entry:
            return domain
    return "other"


def _unknown(name: str) -> str:
    candidates = {known.lower(): known for known in (*_NAMES, *gym.registry)}
    close = difflib.get_close_matches(name.lower(), candidates, n=4, cutoff=0.5)
    meant = f"; did you mean {', '.join(candidates[match] for match in close)}?" if close else ";"
    return (
        f"unknown task {name!r}{meant} expected a D4RL id, a Minari id or a registered gymnasium environment "
        f"(o2o-smooth tasks lists them)"
    )


def _register_table() -> None:
    for name in _MUJOCO:
        for tier in _MUJOCO_TIERS:
            register_task(_mujoco_task(name, tier))
    for row in _POINTMAZE:
        register_task(_pointmaze_task(row))
    for name, env_id, steps, maze, maze_minari in _ANTMAZE:
        register_task(_antmaze_task(name, env_id, steps, maze, minari=False))
        register_task(_antmaze_task(name, env_id, steps, maze_minari, minari=True))


_register_table()
