"""From one form of a dataset to another: Minari, D4RL's HDF5, .npz."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.columns import ROUNDING, Progress
from o2o_smooth.data.dataset import FIELDS, KINDS, Dataset
from o2o_smooth.data.hdf5 import Broken, open_hdf5, published_name, read_record, write_hdf5
from o2o_smooth.data.installed import is_installed, minari_root, staged
from o2o_smooth.data.minari_sets import can_be_written, from_minari, is_id, read_metadata
from o2o_smooth.data.sources import HDF5, is_path, read_path
from o2o_smooth.data.write import RECORD, require_room
from o2o_smooth.envs.make import make_env
from o2o_smooth.envs.tasks import Task, find_task, known_tasks
from o2o_smooth.errors import DataError, EnvError
from o2o_smooth.files import why, written_whole
from o2o_smooth.reading import read_json


def read_any(name: str, task: Task | None, *, progress: Progress | None = None) -> Dataset:
    """Read a dataset by id or path, as recorded: not cut at a goal that ends the task.

    Raises:
        DataError: It is absent or broken.
    """
    whole = None if task is None else replace(task, goal_reward=None)
    if is_path(name):
        return read_path(Path(name), whole, progress=progress)
    return from_minari(name, task=whole, progress=progress)


def task_of(name: str) -> Task | None:
    """The task that a dataset is for, as far as its id, its record, its file name or its environment tell.

    Raises:
        DataError: It is broken.
    """
    if not is_path(name) and is_id(name):
        with contextlib.suppress(EnvError):
            return find_task(name)
    told: list[str] = []
    path = Path(name).expanduser()
    if is_path(name) and path.suffix in HDF5:
        with open_hdf5(path) as file:
            told.append(str(read_record(file).get("task", "")))
        told += [task.id for task in known_tasks() if path.name == published_name(task)]
    told += _told_by_run(path)
    folder = path if is_path(name) else minari_root() / name
    if is_id(name) or (folder / "data").is_dir():
        with contextlib.suppress(Broken):  # reading it says what is wrong
            told += _told_by_metadata(read_metadata(folder))
    for candidate in filter(None, told):
        with contextlib.suppress(EnvError):
            return find_task(candidate, imports=False)  # a file says it
    return None


def _told_by_run(path: Path) -> list[str]:
    """The task of a finished run, which its online data are of."""
    try:
        return [str(read_json(path / "manifest.json", root=path)["task"]["id"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _told_by_metadata(metadata: dict[str, Any]) -> Iterator[str]:
    record, spec = metadata.get(RECORD), metadata.get("env_spec")
    if isinstance(record, dict):
        yield str(record.get("task", ""))
    yield str(metadata.get("dataset_id", ""))
    if isinstance(spec, str) and '"id": "' in spec:
        yield spec.split('"id": "', 1)[1].split('"', 1)[0]


def convert(dataset: Dataset, to: str, *, task: Task | None = None, overwrite: bool = False) -> str:
    """Write a dataset in another form; gives where it lies.

    Args:
        dataset: What is written; observations as they were read, flat.
        to: A file .hdf5 (D4RL's layout, with checksums) or .npz, or a Minari id.
        task: Named in what is written; its environment becomes the Minari dataset's where observations fit.
        overwrite: Replace a file that is there. An installed Minari dataset is never replaced.

    Raises:
        O2OError: The target exists, or is none of these, or cannot be written.
    """
    record = {"provenance": dataset.provenance, "made_by": f"converted from {dataset.id}"}
    if task is not None:
        record["task"] = task.id
    target = Path(to).expanduser()
    if target.suffix in (*HDF5, ".npz"):
        if target.exists() and not overwrite:
            raise DataError(f"{target} exists; choose another name, or --overwrite")
        if target.suffix == ".npz":
            _write_npz(target, dataset)
        else:
            write_hdf5(target, dataset.transitions, record)
        return str(target)
    if not can_be_written(to):
        raise DataError(
            f"cannot convert to {to!r}: expected a file .hdf5 or .npz, or a Minari id such as mine/door/human-v0"
        )
    if is_installed(to):
        raise DataError(f"dataset {to} is installed already in {minari_root()}; choose another id")
    _write_minari(to, dataset, task, record)
    return str(minari_root() / to)


def _write_npz(path: Path, dataset: Dataset) -> None:
    arrays = {name: getattr(dataset.transitions, name) for name in FIELDS}
    arrays["provenance"] = np.array(dataset.provenance)
    with written_whole(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _write_minari(dataset_id: str, dataset: Dataset, task: Task | None, record: dict[str, Any]) -> None:
    t = dataset.transitions
    inside = np.ones(len(t), dtype=np.bool_)
    inside[t.episode_ends] = False
    rows = np.flatnonzero(inside)
    broken = (np.abs(t.next_obs[rows] - t.obs[rows + 1]) > ROUNDING * (1.0 + np.abs(t.obs[rows + 1]))).any(axis=1)
    if broken.any():
        raise DataError(
            f"the successor of row {rows[broken.argmax()]} of {dataset.id} is not the next row, which a Minari dataset "
            f"cannot hold; convert to .hdf5 or .npz, or mark the row as truncated"
        )
    episodes, start = [], 0
    for end in t.episode_ends:
        here = slice(start, end + 1)
        truncated = t.truncated[here].copy()
        truncated[-1] |= not t.terminated[end]
        episodes.append(
            EpisodeBuffer(
                observations=np.concatenate([t.obs[here], t.next_obs[end : end + 1]]),
                actions=np.array(t.action[here]),
                rewards=np.array(t.reward[here]),
                terminations=np.array(t.terminated[here]),
                truncations=truncated,
            )
        )
        start = int(end) + 1
    described: dict[str, Any] = {
        "algorithm_name": f"converted from {dataset.id}",
        "author": "o2o_smooth",
        "description": f"Converted by o2o_smooth from {dataset.id}: {KINDS[dataset.provenance]}.",
    }
    if task is not None:
        described |= {"ref_min_score": task.ref_random, "ref_max_score": task.ref_expert}
    try:
        with staged(dataset_id) as staging, warnings.catch_warnings(), _environment(task, t) as (env, spaces):
            require_room(staging, episodes)
            warnings.filterwarnings(
                "ignore", message="`(code_permalink|author_email|eval_env)` is set to None|env_spec is None"
            )
            made = minari.create_dataset_from_buffers(
                dataset_id, episodes, env=env, eval_env=env, **spaces, **described
            )
            made.storage.update_metadata({RECORD: record})
    except OSError as error:
        raise DataError(f"cannot write dataset {dataset_id}: {why(error, minari_root() / dataset_id)}") from error


@contextlib.contextmanager
def _environment(task: Task | None, transitions: Transitions) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The task's environment where the flat observations are its own, and the spaces where they are not."""
    env = None
    if task is not None:
        with contextlib.suppress(EnvError):
            env = make_env(task)
    raw = None if env is None else env.env  # type: ignore[attr-defined]  # TaskEnv is a wrapper
    obs, action = transitions.obs.shape[1], transitions.action.shape[1]
    try:
        if raw is not None and raw.observation_space.shape == (obs,) and raw.action_space.shape == (action,):
            yield raw, {}
            return
        bound = float(max(1.0, np.abs(transitions.action).max()))
        yield (
            None,
            {
                "observation_space": gym.spaces.Box(-np.inf, np.inf, (obs,), np.float32),
                "action_space": gym.spaces.Box(-bound, bound, (action,), np.float32),
            },
        )
    finally:
        if env is not None:
            env.close()
