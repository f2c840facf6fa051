"""Datasets from arrays in memory and from .npz files of plain arrays."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.columns import ROUNDING, Progress, Table, counter, room_for
from o2o_smooth.data.dataset import FIELDS, Dataset, make_dataset
from o2o_smooth.data.store import RowStore, free_memory
from o2o_smooth.data.suspicion import LARGEST_RATIO
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError
from o2o_smooth.reading import opened

_LARGEST_FILE = 2**46


def from_arrays(
    arrays: Mapping[str, NDArray[Any]],
    *,
    id: str = "arrays",
    task: Task | None = None,
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
      it reaches the time limit of `task`.

    Raises:
        DataError: A key is unknown or missing, an array does not fit, or holds NaN; field and row are named.
    """
    given = {key: np.asarray(array) for key, array in arrays.items()}
    table = Table(given, horizon=None if task is None else task.max_episode_steps)
    store = room_for([table])
    table.fill(store, 0, counter([table], progress))
    return finish(id, store, task, provenance, table.guessed)


def finish(dataset_id: str, store: RowStore, task: Task | None, provenance: str, remark: str = "") -> Dataset:
    """From filled rows to a dataset that was checked, with episodes and rewards as the task's environment has them."""
    if task is not None and task.compat == "kitchen":
        remark += _pay_once(store, len(task.env_kwargs.get("tasks_to_complete", ())))
    if task is not None and task.goal_reward is not None:
        _end_store_at_goal(store, task.goal_reward)
    return make_dataset(dataset_id, store.transitions(), provenance, remark)


def from_npz(
    path: Path,
    *,
    task: Task | None = None,
    provenance: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read arrays from an .npz file; the keys are those of `from_arrays`, and `provenance`, a text.

    Raises:
        DataError: The file is absent or broken, or its arrays are refused.
    """
    try:
        arrays = read_arrays(path)
    except FileNotFoundError as error:
        raise DataError(f"no dataset file {path}") from error
    except MemoryError as error:
        raise DataError(
            f"dataset file {path} does not fit into memory; convert it to .hdf5, which is streamed"
        ) from error
    except DataError:
        raise
    except Exception as error:  # whatever numpy, zipfile, zlib or the header's parser make of a broken file
        if _is_bare(path):
            raise DataError(f"dataset file {path} holds one bare array, expected an .npz of several") from error
        raise DataError(f"dataset file {path} is broken or no .npz of plain arrays{_reason(error)}") from error
    told = str(arrays.pop("provenance", "own"))
    try:
        return from_arrays(arrays, id=str(path), task=task, provenance=provenance or told, progress=progress)
    except DataError as error:
        raise DataError(f"dataset file {path}: {error}") from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; nothing is unpickled, and nothing unpacked that claims more than can be.

    Raises:
        DataError: It claims more than its bytes can hold.
        MemoryError: It claims more than memory can hold.
        Exception: Whatever numpy, zipfile and zlib make of a broken file.
    """
    with (
        opened(path, _LARGEST_FILE) as file,
        warnings.catch_warnings(action="ignore"),  # of headers that are odd
        zipfile.ZipFile(file) as archive,
    ):
        _check_sizes(path, archive)
        return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that claims more than deflate or our memory can hold: nothing of it is unpacked yet."""
    claimed, stored = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if claimed > LARGEST_RATIO * stored:
        raise DataError(f"dataset file {path} claims {claimed:,} bytes of arrays, which {stored:,} bytes cannot hold")
    free = free_memory()
    if free is not None and claimed > free:
        raise MemoryError


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, read to its end: only then does zipfile hold it against its checksum."""
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{info.filename} goes on after its array")
    return np.asarray(array)


def _is_bare(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"
    return False


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
    ends = transitions.episode_ends[:-1]
    # D4RL's AntMaze flags every step at the goal as terminal and goes on: they are one end, not episodes of a step.
    runs = at_goal[ends] & at_goal[ends + 1] & ~transitions.truncated[ends]
    runs[runs] &= _continues(transitions, ends[runs])
    begins_at_goal[ends[~runs] + 1] = False
    return at_goal, ~begins_at_goal


def _continues(transitions: Transitions, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the row after each of `rows` goes on where it led; also where its successor is a placeholder."""
    successor, here, after = (
        array[index]
        for array, index in ((transitions.next_obs, rows), (transitions.obs, rows), (transitions.obs, rows + 1))
    )
    joined = (np.abs(successor - after) <= ROUNDING * (1.0 + np.abs(after))).all(axis=1)
    return np.asarray(joined | (successor == here).all(axis=1))


def _end_store_at_goal(store: RowStore, goal_reward: float) -> None:
    """`end_at_goal` in place."""
    at_goal, keep = _at_goal(store.transitions(), goal_reward)
    store.terminated |= at_goal
    store.truncated &= ~at_goal
    store.keep(keep)


def _pay_once(store: RowStore, subtasks: int) -> str:
    """D4RL's Kitchen data count the finished subtasks in every step; its environment pays each once, as ours does.

    Told by episodes that earn more than there is to earn; where none does, rewards stay as they are.
    """
    transitions = store.transitions()
    if float(transitions.episode_returns.max()) <= subtasks:
        return ""
    start = 0
    for end in transitions.episode_ends:
        counts = np.maximum.accumulate(store.reward[start : end + 1])
        store.reward[start : end + 1] = np.diff(counts, prepend=np.float32(0.0))
        start = int(end) + 1
    return "; rewards counted finished subtasks at every step: each is paid once here, as in the environment"
