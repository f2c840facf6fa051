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
import math
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike, NDArray

from o2o_smooth.errors import EnvError
from o2o_smooth.reading import read_toml

DOMAINS = ("mujoco", "antmaze", "adroit", "kitchen", "pointmaze", "corridor", "other")
ROBOTICS = ("antmaze", "adroit", "kitchen", "pointmaze")
"""Domains whose environments are gymnasium-robotics'."""
WIDER = (105, 111)
"""Widths of Ant's observations in Minari's and D4RL's sets, of which `Task.obs_width` counts."""
TASKS_VARIABLE = "O2O_SMOOTH_TASKS"
"""Environment variable with TOML files of a user's own tasks, separated as PATH is."""


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
    """Selects the agents' presets: one of `DOMAINS`."""
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
    obs_width: int | None = None
    """Flat observations of a dataset may be wider than the environment's: only so many columns count (Ant: 27)."""
    action_scale: float = 1.0
    """Factor on actions before the simulator; agents and datasets hold unscaled actions."""
    compat: str | None = None
    """Wrapper that makes the environment what D4RL had: "adroit" or "kitchen" (`envs.compat`)."""
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
        for name in ("reward_shift", "ref_random", "ref_expert"):
            if getattr(self, name) is not None and not math.isfinite(getattr(self, name)):
                raise EnvError(f"task {self.id}: {name} is {getattr(self, name)}, expected a finite number")
        for name in ("reward_scale", "action_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise EnvError(f"task {self.id}: {name} is {getattr(self, name)}, expected a positive number")
        if self.compat not in (None, "adroit", "kitchen"):
            raise EnvError(f"task {self.id}: compat is {self.compat!r}, expected adroit or kitchen")
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


_TASKS: dict[str, Task] = {}  # by id
_NAMES: dict[str, str] = {}  # from id and aliases to the id
_DATASETS: dict[str, str] = {}  # from a dataset to the task it is the data of
_FILES: set[str] = set()  # task files that were read


def register_task(task: Task) -> None:
    """Make a task known to `find_task` under its id, aliases and dataset ids.

    Several tasks may share a dataset; its id then means the first of them that is not called by that very name.

    Raises:
        EnvError: Its id or one of its aliases belongs to another task.
    """
    taken = [name for name in (task.id, *task.aliases) if _NAMES.get(name, task.id) != task.id]
    if taken:
        raise EnvError(f"cannot register task {task.id}: {taken[0]!r} already names task {_NAMES[taken[0]]}")
    _TASKS[task.id] = task
    _NAMES.update(dict.fromkeys((task.id, *task.aliases), task.id))
    for dataset_id in task.dataset_ids:
        _DATASETS.setdefault(dataset_id, task.id)


def tasks_from_toml(path: Path) -> tuple[Task, ...]:
    """Read a user's own tasks: one row a task, `[[task]]` tables or a single row at the top level.

    Keys are the fields of `Task`; `id` and `env_id` are needed. The tasks are not registered.

    Raises:
        EnvError: The file is absent or broken, or a row has an unknown key or a bad value; the text names it.
    """
    try:
        content = read_toml(path)
    except FileNotFoundError:
        raise EnvError(f"task file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise EnvError(f"task file {path} cannot be read: {error}") from None
    rows = content.get("task", [content])
    rows = rows if isinstance(rows, list) else [rows]
    if not rows:
        raise EnvError(f"task file {path} holds no [[task]]")
    return tuple(_row(path, row) for row in rows)


def _row(path: Path, row: Any) -> Task:
    """One row of a task file, with the types of its values checked."""
    if not isinstance(row, dict):
        raise EnvError(f"task file {path}: task must be a table, [[task]]")
    known = {f.name: str(f.type) for f in fields(Task)}
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise EnvError(f"task file {path}: there is no key {key!r}; {hint}")
        values[key] = _value(path, key, value, known[key])
    for key in ("id", "env_id"):
        if key not in values:
            raise EnvError(f"task file {path}: a task lacks {key!r}")
    try:
        return Task(**values)
    except EnvError as error:
        raise EnvError(f"task file {path}: {error}") from None


def _value(path: Path, key: str, value: Any, hint: str) -> Any:
    """A TOML value as the field wants it."""
    if hint.startswith("tuple[str"):
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise EnvError(f"task file {path}: {key} must be a list of strings, got {value!r}")
    kinds: dict[str, tuple[str, type | tuple[type, ...]]] = {
        "str": ("a string", str),
        "int": ("an integer", int),
        "float": ("a number", (int, float)),
        "Mapping": ("a table", dict),
    }
    word, kind = kinds[hint.split("[", maxsplit=1)[0].split(" ", maxsplit=1)[0]]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise EnvError(f"task file {path}: {key} must be {word}, got {value!r}")
    return float(value) if isinstance(value, int) and word == "a number" else value


def _register_users() -> None:
    """Register the tasks of the files that the environment variable names, once."""
    listed = os.environ.get(TASKS_VARIABLE, "")
    for name in listed.split(os.pathsep):
        if name and name not in _FILES:
            rows = tasks_from_toml(Path(name))
            taken = [task.id for task in rows if task.id in _TASKS]
            if taken:
                raise EnvError(f"task file {name}: there is a task {taken[0]!r} already; choose another id")
            for task in rows:
                register_task(task)
            _FILES.add(name)


def known_tasks() -> tuple[Task, ...]:
    """All rows of the table, in order. Any other registered gymnasium environment can be named as well."""
    _register_users()
    return tuple(_TASKS.values())


def find_task(name: str, *, imports: bool = True) -> Task:
    """Find a task by D4RL id, Minari id, the id of a registered gymnasium environment, or a TOML file of one's own.

    An environment of several tasks gives a task of its own, with their references and without their datasets. Of a file
    with several tasks, `FILE.toml#ID` names one.

    Args:
        name: The name.
        imports: Import the module that `module:Id` names, which runs its code. False: where a file gives the name and
            not the user, one that no module has registered yet is an error.

    Raises:
        EnvError: Nothing has this name; the text names close matches.
    """
    _register_users()
    file, _, wanted = name.partition("#")
    if file.endswith(".toml"):
        task = _of_file(Path(file), wanted)
        if not imports:
            check_imported(task.env_id, name)
        return task
    if not imports:
        check_imported(name, name)
    if name in _NAMES:
        return _TASKS[_NAMES[name]]
    if name in _DATASETS:
        return _TASKS[_DATASETS[name]]
    rows = [task for task in _TASKS.values() if task.env_id == name]
    if len(rows) == 1:
        return rows[0]
    if rows:
        return _env_task(rows[0])
    spec = find_spec(name)
    if spec is None:
        raise EnvError(_unknown(name))
    return Task(id=name, env_id=name, domain=_domain(spec), max_episode_steps=spec.max_episode_steps)


def _of_file(path: Path, wanted: str) -> Task:
    """One task of a file."""
    found = {task.id: task for task in tasks_from_toml(path)}
    if not wanted and len(found) > 1:
        raise EnvError(f"{path} holds several tasks; name one: {', '.join(f'{path}#{name}' for name in found)}")
    if wanted and wanted not in found:
        raise EnvError(f"{path} holds no task {wanted!r}; it holds {', '.join(found)}")
    return found[wanted or next(iter(found))]


def check_imported(env_id: str, name: str) -> None:
    """Refuse `module:Id` where the module is not among the imported ones: importing it would run its code.

    Args:
        env_id: An environment's id.
        name: The task that the user would have to name.

    Raises:
        EnvError: It is not.
    """
    module = env_id.rpartition(":")[0]
    if module and module not in sys.modules:
        raise EnvError(
            f"a file names the environment {env_id!r}, and importing {module!r} would run its code: if you trust it, "
            f"say so with --task {shlex.quote(name)}"
        )


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
    return replace(row, id=row.env_id, dataset_ids=(), aliases=())


def _domain(spec: EnvSpec) -> str:
    entry = spec.entry_point if isinstance(spec.entry_point, str) else ""
    marks = {
        "pointmaze": "maze.point_maze",
        "antmaze": "maze.ant_maze",
        "adroit": "envs.adroit_hand",
        "kitchen": "envs.franka_kitchen",
        "mujoco": "envs.mujoco",
        "corridor": "envs.corridor",
    }
    for domain, mark in marks.items():
        if mark in entry:
            return domain
    return "other"


def _unknown(name: str) -> str:
    candidates = {known.lower(): known for known in (*_NAMES, *_DATASETS, *gym.registry)}
    close = difflib.get_close_matches(name.lower(), candidates, n=4, cutoff=0.5)
    meant = f"; did you mean {', '.join(candidates[match] for match in close)}?" if close else ";"
    return (
        f"unknown task {name!r}{meant} expected a D4RL id, a Minari id or a registered gymnasium environment "
        f"(o2o-smooth tasks lists them)"
    )
