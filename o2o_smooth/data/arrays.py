"""Datasets from arrays in memory and from .npz files of plain arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.columns import Progress, Table, fill_all
from o2o_smooth.data.dataset import FIELDS, Dataset, make_dataset
from o2o_smooth.data.store import RowStore
from o2o_smooth.data.suspicion import LARGEST_RATIO
from o2o_smooth.errors import DataError


def from_arrays(
    arrays: Mapping[str, NDArray[Any]],
    *,
    id: str = "arrays",
    horizon: int | None = None,
    goal_reward: float | None = None,
    provenance: str = "own",
    progress: Progress | None = None,
) -> Dataset:
    """Make a dataset of arrays with one row a step, in time order.

    Keys: `observations`, `actions`, `rewards`, `terminals`, `timeouts`, `next_observations` (D4RL), or the fields of
    `Transitions`. The last two may be absent:

    * without `next_observations`, the successor is the next row of the same episode. The last step of an episode that
      was cut off has none and is dropped; that of a terminated one is kept, with its own observation as a placeholder
      that `terminated` keeps out of every target;
    * without `timeouts`, an episode ends where a row's successor is not the next row's observation; without both, where
      it reaches the time limit `horizon`.

    Raises:
        DataError: A key is unknown or missing, an array does not fit, or holds NaN; field and row are named.
    """
    given = {key: np.asarray(array) for key, array in arrays.items()}
    table = Table(given, horizon=horizon)
    store = fill_all([table], progress=progress)
    return finish(id, store, goal_reward, provenance, table.guessed)


def finish(dataset_id: str, store: RowStore, goal_reward: float | None, provenance: str, remark: str = "") -> Dataset:
    """From filled rows to a dataset that was checked."""
    if goal_reward is not None:
        _end_store_at_goal(store, goal_reward)
    return make_dataset(dataset_id, store.transitions(), provenance, remark)


def from_npz(
    path: Path,
    *,
    horizon: int | None = None,
    goal_reward: float | None = None,
    provenance: str = "own",
    progress: Progress | None = None,
) -> Dataset:
    """Read arrays from an .npz file; the keys are those of `from_arrays`.

    Raises:
        DataError: The file is absent or broken, or its arrays are refused.
    """
    try:
        with path.open("rb") as file:  # opened here: numpy leaves a broken file open
            _check_sizes(path, file)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one bare array")
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"no dataset file {path}") from error
    except MemoryError as error:
        raise DataError(
            f"dataset file {path} does not fit into memory; convert it to .hdf5, which is streamed"
        ) from error
    except DataError:
        raise
    except Exception as error:  # whatever numpy, zipfile, zlib or the header's parser make of a broken file
        raise DataError(f"dataset file {path} is broken or no .npz of plain arrays{_reason(error)}") from error
    try:
        return from_arrays(
            arrays, id=str(path), horizon=horizon, goal_reward=goal_reward, provenance=provenance, progress=progress
        )
    except DataError as error:
        raise DataError(f"dataset file {path}: {error}") from error


def _check_sizes(path: Path, file: Any) -> None:
    """Refuse an archive that would unpack to more than deflate can hold: nothing of it is unpacked yet."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, zlib.error, ValueError):
        entries = []  # numpy says what is wrong
    for entry in entries:
        if entry.file_size > LARGEST_RATIO * max(1, entry.compress_size) + 10_000:
            raise DataError(
                f"dataset file {path}: {entry.filename} claims {entry.file_size:,} bytes from {entry.compress_size:,}"
            )
    file.seek(0)


def _reason(error: Exception) -> str:
    """What the library says, unless it advises to unpickle."""
    text = " ".join(str(error).split())
    return "" if "pickle" in text or not text else f": {text}"


def end_at_goal(transitions: Transitions, goal_reward: float) -> Transitions:
    """Make a recording that goes on at the goal that of a task which ends there.

    A step that earns at least `goal_reward` terminates. Steps that begin at the goal do not occur in such a task and
    are dropped; what follows when the goal is left again is an episode of its own.
    """
    at_goal, keep = _at_goal(transitions, goal_reward)
    changed = {name: getattr(transitions, name) for name in FIELDS}
    changed["terminated"] = transitions.terminated | at_goal
    changed["truncated"] = transitions.truncated & ~at_goal
    return Transitions(**{name: array[keep] for name, array in changed.items()})


def _at_goal(transitions: Transitions, goal_reward: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the goal is reached, and what is left when the steps that begin there are dropped."""
    at_goal = transitions.reward >= goal_reward
    begins_at_goal = np.zeros_like(at_goal)
    begins_at_goal[1:] = at_goal[:-1]
    begins_at_goal[transitions.episode_ends[:-1] + 1] = False
    return at_goal, ~begins_at_goal


def _end_store_at_goal(store: RowStore, goal_reward: float) -> None:
    """`end_at_goal` in place."""
    at_goal, keep = _at_goal(store.transitions(), goal_reward)
    store.terminated |= at_goal
    store.truncated &= ~at_goal
    store.keep(keep)
