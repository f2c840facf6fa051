"""Reading Minari datasets: T + 1 observations an episode give exact successors."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from numpy.typing import NDArray

from o2o_smooth.data.arrays import finish
from o2o_smooth.data.batch import first_not_finite
from o2o_smooth.data.columns import Progress, to_float32
from o2o_smooth.data.dataset import PROVENANCES, Dataset
from o2o_smooth.data.hdf5 import Broken, open_hdf5
from o2o_smooth.data.installed import GENERATED, is_installed, minari_root
from o2o_smooth.data.store import RowStore, memory_limit
from o2o_smooth.data.suspicion import LARGEST_RATIO, plain
from o2o_smooth.data.write import RECORD
from o2o_smooth.envs.compat import kitchen_goal, kitchen_positions
from o2o_smooth.envs.make import obs_layout
from o2o_smooth.envs.tasks import WIDER, Task
from o2o_smooth.errors import DataError, EnvError
from o2o_smooth.reading import opened

NAMESPACES = ("D4RL/", "mujoco/")
"""Of Minari's server: sets under these names are Minari's."""
_GENERATED = (GENERATED, "generated/")
_ID = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*-v\d+")
_LARGEST_JSON = 64 * 2**20
_LARGE = 2**26  # bytes; less is not held against what is free
KITCHEN_WIDTH = 59  # columns of FrankaKitchen's `observation`


@dataclass(frozen=True)
class Layout:
    """How a stored observation becomes one flat row."""

    keys: tuple[str, ...] | None = None
    """Entries of a dict that are concatenated, in order; None: the observation is an array already."""
    goal: NDArray[np.float64] | None = None
    """Kitchen: positions alone, followed by this goal."""
    width: int | None = None
    """Only so many columns count; None: all."""

    def rows(self, stored: Any) -> NDArray[np.float32]:
        """(T + 1, O)."""
        if self.goal is not None:
            obs = np.asarray(stored["observation"])
            if obs.ndim != 2 or obs.shape[1] != KITCHEN_WIDTH:
                raise DataError(f"Kitchen's observation has shape {obs.shape}, expected (steps + 1, {KITCHEN_WIDTH})")
            positions = kitchen_positions(obs)
            return to_float32(np.concatenate([positions, np.tile(self.goal, (len(positions), 1))], axis=1))
        parts = [stored] if self.keys is None else [stored[key] for key in self.keys]
        flat = [to_float32(np.reshape(part, (len(part), -1))) for part in parts]
        row = np.concatenate(flat, axis=1)
        return row[:, : self.width] if row.shape[1] in WIDER else row

    @property
    def stored_keys(self) -> tuple[str, ...] | None:
        """Entries of a dict that are read; None: the observation is an array already."""
        return self.keys if self.goal is None else ("observation",)


def is_id(text: str) -> bool:
    """Whether a text could be a Minari id: namespace/name-v0, and no path out of the folder."""
    return _ID.fullmatch(text) is not None and ".." not in text


def can_be_written(text: str) -> bool:
    """Whether Minari takes a text for the id of a new dataset."""
    try:
        parse_dataset_id(text)
    except ValueError:
        return False
    return is_id(text)


def from_minari(
    dataset_id: str | Path,
    *,
    task: Task | None = None,
    obs_keys: tuple[str, ...] | None = None,
    provenance: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read an installed Minari dataset.

    Args:
        dataset_id: Minari id, or the folder of a dataset that lies elsewhere.
        task: Gives the layout of observations and the reward that ends an episode; the next argument goes first.
        obs_keys: Dict observations: which entries are concatenated, in order; None takes all in the space's order.
        provenance: One of `PROVENANCES`; None: what its metadata or its id say.
        progress: Called with (transitions done, transitions in all).

    Raises:
        DataError: It is not installed, or broken, or does not have such observations.
    """
    name = str(dataset_id)
    if isinstance(dataset_id, Path):
        folder = dataset_id
    elif not is_id(name):
        raise DataError(f"{name!r} is no Minari id: expected namespace/name-v0, as in D4RL/door/human-v2")
    else:
        folder = minari_root() / name
        if not is_installed(name):
            raise DataError(f"dataset {name} is not installed in {minari_root()}: minari download {name}")
    if task is not None:
        obs_keys = task.obs_keys if obs_keys is None else obs_keys
    cure = "delete that folder and install the dataset again"
    try:
        metadata = read_metadata(folder)
        store = _read(folder, task, obs_keys, metadata, progress)
        if provenance is None:
            provenance = provenance_of(str(metadata.get("dataset_id", name)), metadata)
        return finish(name, store, task, provenance)
    except Broken as error:
        raise DataError(
            f"dataset {name} in {folder} cannot be read, it seems broken or incomplete ({error}): {cure}"
        ) from error
    except (DataError, EnvError) as error:
        raise DataError(f"dataset {name}: {error}") from error
    except MemoryError as error:
        raise DataError(f"dataset {name} in {folder} claims more than fits into memory: {cure}") from error
    except Exception as error:  # whatever a broken file makes h5py, json or minari raise
        text = " ".join(str(error).split())
        raise DataError(
            f"dataset {name} in {folder} cannot be read, it seems broken or incomplete "
            f"({type(error).__name__}: {text}): {cure}"
        ) from error


def read_metadata(folder: Path) -> dict[str, Any]:
    """What a Minari dataset says of itself.

    Raises:
        DataError: The file is absent or broken.
    """
    path = folder / "data" / "metadata.json"
    try:
        with opened(path, _LARGEST_JSON):
            pass  # its size and kind alone: what others wrote may hold NaN
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Broken(f"metadata.json: {' '.join(str(error).split()) or 'nested too deeply'}") from error
    if not isinstance(metadata, dict):
        raise Broken("metadata.json holds no table")
    return metadata


def provenance_of(dataset_id: str, metadata: Mapping[str, Any]) -> str:
    """Where a dataset comes from: its record, or the namespace of its id; a name of the user's is the user's own."""
    record = metadata.get(RECORD)
    if isinstance(record, dict) and record.get("provenance") in PROVENANCES:
        return str(record["provenance"])
    if dataset_id.startswith(_GENERATED):
        return "generated"
    return "minari" if dataset_id.startswith(NAMESPACES) else "own"


def layout_of(space: gym.Space[Any], task: Task | None, obs_keys: tuple[str, ...] | None) -> Layout:
    """The layout that a task wants of a dataset's observations.

    Raises:
        EnvError: The space does not have it.
    """
    is_dict = isinstance(space, gym.spaces.Dict)
    if task is not None and task.compat == "kitchen" and is_dict:
        return Layout(goal=kitchen_goal(task.env_kwargs.get("tasks_to_complete", ())))
    keys, _ = obs_layout(space, obs_keys if is_dict else None)
    return Layout(keys, width=None if task is None else task.obs_width)


def _read(
    folder: Path,
    task: Task | None,
    obs_keys: tuple[str, ...] | None,
    metadata: Mapping[str, Any],
    progress: Progress | None,
) -> RowStore:
    total = _check_metadata(folder, metadata)
    with warnings.catch_warnings(action="ignore"):  # of what gymnasium and minari think of the spaces
        dataset = minari.MinariDataset(folder / "data")
    layout = layout_of(dataset.observation_space, task, obs_keys)
    store: RowStore | None = None
    row = 0
    with _episodes(dataset.storage, layout, total) as found:
        for index, episode in enumerate(found):
            obs, action = _check_episode(index, episode, layout)
            steps = len(action)
            if store is None:
                _check_size(folder, f"{total:,} steps", total * obs.shape[1] / LARGEST_RATIO)
                store = RowStore(total, obs.shape[1], action.shape[1])
            if row + steps > total or obs.shape[1] != store.obs_dim or action.shape[1] != store.action_dim:
                raise Broken(
                    f"episode {index} of {steps} steps, {obs.shape[1]} observations and {action.shape[1]} actions "
                    f"does not fit the {total:,} steps that the metadata names or the episodes before it"
                )
            here = slice(row, row + steps)
            store.obs[here], store.next_obs[here], store.action[here] = obs[:-1], obs[1:], action
            store.reward[here] = to_float32(np.asarray(episode["rewards"]).reshape(steps))
            store.terminated[here] = _flags(index, "terminations", episode)
            store.truncated[here] = _flags(index, "truncations", episode)
            if steps:
                store.truncated[row + steps - 1] |= not store.terminated[row + steps - 1]  # the end is a cut
            row += steps
            if progress is not None:
                progress(row, total)
    if store is None or row != total:
        raise Broken(f"it holds {row:,} steps, and its metadata name {total:,}")
    for name, array in (("obs", store.obs), ("action", store.action), ("reward", store.reward)):
        first, bad = first_not_finite(array)
        if first is not None:
            raise DataError(
                f"{name} holds NaN or infinity in {bad} of {total} rows, first in row {first}; drop or repair them"
            )
    return store


def _check_metadata(folder: Path, metadata: Mapping[str, Any]) -> int:
    """The steps in all, as far as the metadata can be true.

    Without its spaces Minari would make the environment that the metadata name, which is to run whatever they name.
    """
    for key in ("observation_space", "action_space"):
        if not isinstance(metadata.get(key), str):
            raise Broken(f"its metadata name no {key}")
    counts = []
    for key in ("total_episodes", "total_steps"):
        count = metadata.get(key)
        if not isinstance(count, int):
            raise Broken(f"{key} of its metadata is {count!r}, expected a number")
        counts.append(count)
    episodes, steps = counts
    if min(counts) < 1:
        raise DataError("it has no episodes")
    _check_size(folder, f"{episodes:,} episodes", episodes)
    return steps


def _check_size(folder: Path, what: str, least: float) -> None:
    """The files must have the bytes that the metadata's claims need: deflate has a limit, and so has our memory."""
    stored = sum(file.stat().st_size for file in (folder / "data").rglob("*") if file.is_file())
    if least > stored:
        raise Broken(f"its metadata name {what}, which {stored:,} bytes cannot hold")


def _flags(index: int, name: str, episode: Mapping[str, Any]) -> NDArray[np.bool_]:
    flags: NDArray[Any] = np.asarray(episode[name]).reshape(-1)
    if not ((flags == 0) | (flags == 1)).all():
        raise DataError(f"{name} of episode {index} hold values other than 0 and 1")
    return np.asarray(flags != 0)


def _check_episode(index: int, episode: Mapping[str, Any], layout: Layout) -> tuple[Any, Any]:
    """Observations (T + 1, O) and actions (T, A) of an episode whose parts fit each other."""
    steps = len(episode["rewards"])
    obs = layout.rows(episode["observations"])
    lengths = {"observations": len(obs) - 1}
    lengths.update({name: len(episode[name]) for name in ("actions", "terminations", "truncations")})
    for name, found in lengths.items():
        if found != steps:
            raise DataError(f"episode {index} has {steps} rewards, but its {name} are for {found} steps")
    return obs, to_float32(np.asarray(episode["actions"]).reshape(steps, -1))


@contextlib.contextmanager
def _episodes(storage: Any, layout: Layout, total: int) -> Iterator[Iterator[Mapping[str, Any]]]:
    """The stored episodes in order; from HDF5 without the infos, which take most of the time to read."""
    if storage.FORMAT != "hdf5":
        yield iter(storage.get_episodes(range(storage.total_episodes)))
        return
    with open_hdf5(Path(storage.data_path) / "main_data.hdf5") as file:
        yield (_episode(file, index, layout, total) for index in range(storage.total_episodes))


def _episode(file: Any, index: int, layout: Layout, total: int) -> dict[str, Any]:
    group = _group(file, f"episode_{index}")
    found = {name: _array(group, name, total) for name in ("actions", "rewards", "terminations", "truncations")}
    if layout.stored_keys is None:
        return found | {"observations": _array(group, "observations", total)}
    inner = _group(group, "observations")
    return found | {"observations": {key: _array(inner, key, total) for key in layout.stored_keys}}


def _group(parent: Any, name: str) -> Any:
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise Broken(f"{name} is absent")
    if not isinstance(parent[name], h5py.Group):
        raise Broken(f"{name} is no group")
    return parent[name]


def _array(group: Any, name: str, total: int) -> NDArray[Any]:
    """All rows of an episode's dataset, which cannot be more than the dataset has."""
    found = plain(group, name)
    if found is None:
        raise Broken(f"{group.name} has no {name}")
    if found.ndim == 0 or found.shape[0] > total + 1:
        raise Broken(f"{group.name}/{name} has shape {found.shape}, and the metadata name {total:,} steps")
    if found.nbytes > _LARGE and found.nbytes > memory_limit():
        raise DataError(f"{group.name}/{name} of shape {found.shape} does not fit into memory")
    return np.asarray(found[()])
