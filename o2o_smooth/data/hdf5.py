"""D4RL's HDF5 files: read with suspicion, written with checksums.

Of a file only plain datasets of numbers are read: no links, no external or virtual storage, no objects, no filter that
is not built in. Sizes are held against what is stored before anything is allocated, so a file that lies is refused and
not believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data import antmaze
from o2o_smooth.data.arrays import finish
from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.columns import KEYS, Progress, Table, counter, room_for, to_float32
from o2o_smooth.data.dataset import FIELDS, PROVENANCES, Dataset, array_hash, hash_columns
from o2o_smooth.data.patient import PatientFile
from o2o_smooth.data.store import RowStore
from o2o_smooth.data.suspicion import CACHE_BYTES, SLICE_ROWS, Suspect, plain, survives
from o2o_smooth.data.write import RECORD
from o2o_smooth.envs.tasks import WIDER, Task
from o2o_smooth.errors import DataError
from o2o_smooth.files import why

ANTMAZE_WIDTH = 29  # columns of D4RL's AntMaze observations, which lack the goal
MAZE2D_WIDTH = 4
_SIGNS = ("observations", "actions", "rewards", "terminals")

# File names under which D4RL published its sets, as far as they follow from the task's id.
_ANTMAZE_FILES = {
    "umaze": "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
    "umaze-diverse": "Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
    "medium-play": "Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
    "medium-diverse": "Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
    "large-play": "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
    "large-diverse": "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
}
_KITCHEN_FILES = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
    "partial": "kitchen_microwave_kettle_light_slider-v0.hdf5",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
}


class Broken(DataError):
    """A file that cannot be read, or files that contradict each other."""


def published_name(task: Task) -> str | None:
    """The name of D4RL's own file of a task; None where it has none."""
    kind, _, version = task.id.rpartition("-")
    if task.domain == "mujoco":
        name, _, tier = kind.partition("-")
        return None if not tier else f"{name}_{tier.replace('-', '_')}-{version}.hdf5"
    if task.domain == "adroit":
        return f"{task.id}.hdf5"
    if task.domain == "antmaze":
        return _ANTMAZE_FILES.get(kind.removeprefix("antmaze-"))
    if task.domain == "kitchen":
        return _KITCHEN_FILES.get(kind.removeprefix("kitchen-"))
    return None


def from_hdf5(
    paths: Sequence[Path],
    *,
    task: Task | None = None,
    id: str | None = None,
    provenance: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read files of D4RL's layout, one after the other, as one dataset.

    Datasets: `observations, actions, rewards, terminals`, and optionally `timeouts, next_observations, infos/goal`;
    what else is there is not read. See `from_arrays` for what is done where one of the optional ones is absent. The 29
    columns of D4RL's AntMaze are brought into the frame of the task's environment, with the goal from `infos/goal`.

    Args:
        paths: At least one.
        task: Gives the time limit, the reward that ends an episode and the layout of observations.
        id: Name of the dataset; None: the path.
        provenance: One of `PROVENANCES`; None: what the file says (if we wrote it), "d4rl" where it has the name of
            D4RL's file for the task, else "own".
        progress: Called with (entries done, entries in all).

    Raises:
        DataError: A file is absent, broken, lies about its sizes, or holds what is refused; field and row are named.
    """
    tables, told, first = [], None, 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_hdf5(path)) for path in paths]
        for path, file in zip(paths, files, strict=True):
            with _named(path):
                told = told or read_record(file).get("provenance")
                columns = _columns(file)
                if task is not None:
                    columns = _as_the_task_has_it(task, file, columns)
                limit = None if task is None else task.max_episode_steps
                tables.append(Table(columns, horizon=limit, ignore_unknown=True))
        with _named(paths[0]):
            store = room_for(tables)
        advance = counter(tables, progress)
        for path, file, table in zip(paths, files, tables, strict=True):
            with _named(path):
                table.fill(store, first, advance)
                _check_sum(file, store, slice(first, first + table.rows))
            first += table.rows
        remark = "".join(dict.fromkeys(table.guessed for table in tables))
        del tables, table  # their flags are in the store now
    if provenance is None:
        ours = task is not None and paths[0].name == published_name(task)
        provenance = told if told in PROVENANCES else "d4rl" if ours else "own"
    with _named(paths[0]):
        return finish(id or str(paths[0]), store, task, provenance, remark)


def _check_sum(file: Any, store: RowStore, rows: slice) -> None:
    """Hold what was read against the checksum of a file that we wrote."""
    told = read_record(file).get("sha256")
    if told is None or hash_columns({name: getattr(store, name)[rows] for name in FIELDS}) == told:
        return
    # Columns that the task wants otherwise, or an end without a flag: what counts is what the file holds.
    columns = {name: plain(file, KEYS[name][0]) for name in FIELDS}
    if any(column is None for column in columns.values()) or hash_columns(columns) != told:
        raise DataError("its contents do not match the checksum it was written with: copy it again")


def write_hdf5(path: Path, transitions: Transitions, record: Mapping[str, Any]) -> None:
    """Write D4RL's layout with `next_observations`, checksums for every chunk and one over all arrays.

    The file appears when it is complete. Reading it gives the same arrays, bit for bit.

    Raises:
        DataError: The file cannot be written.
    """
    contents = {
        "observations": transitions.obs,
        "actions": transitions.action,
        "rewards": transitions.reward,
        "next_observations": transitions.next_obs,
        "terminals": transitions.terminated,
        "timeouts": transitions.truncated,
    }
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".o2o-smooth-", dir=path.parent)
        patient = PatientFile(os.fdopen(handle, "wb+", buffering=0))
        with patient, h5py.File(patient, "w") as file:
            for name, array in contents.items():
                if patient.error is not None:
                    break
                chunks = (max(1, min(len(array), 2**18 // max(1, array[:1].nbytes))), *array.shape[1:])
                target = file.create_dataset(
                    name,
                    array.shape,
                    array.dtype,
                    chunks=chunks,
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                    fletcher32=True,
                )
                for i in range(0, len(array), SLICE_ROWS):
                    target[i : i + SLICE_ROWS] = array[i : i + SLICE_ROWS]
            text = json.dumps({**record, "sha256": array_hash(transitions)})
            file.attrs[RECORD] = np.bytes_(text)  # of fixed length: a damaged one of another kind can crash the library
        if patient.error is not None:
            raise patient.error
        with Path(temporary).open("rb") as written:
            os.fsync(written.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise DataError(f"cannot write {path}: {why(error, path)}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, for reading.

    Raises:
        DataError: It is absent or no sound HDF5 file; also for what goes wrong while it is open.
    """
    if not os.path.lexists(path):  # which answers where Path.exists raises: names that are too long
        raise DataError(f"no dataset file {path}")
    if not path.is_file():
        raise DataError(f"{path} is no file")
    with _explained(path):
        if (death := survives(path)) is not None:
            raise Broken(f"dataset file {path} is broken ({death}): copy or download it again")
        with h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES, locking=False) as file:
            yield file


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What h5py raises inside is said of this file."""
    try:
        yield
    except DataError:
        raise
    except Suspect as error:
        raise DataError(f"dataset file {path}: {error}") from error
    except MemoryError as error:
        raise DataError(f"dataset file {path} claims more than fits into memory") from error
    except Exception as error:  # whatever a broken file makes h5py raise
        raise Broken(
            f"dataset file {path} cannot be read, it seems broken or incomplete ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): copy or download it again"
        ) from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is refused inside is said of this file."""
    try:
        with _explained(path):
            yield
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"dataset file {path}: {error}") from error


def _columns(file: Any) -> dict[str, Any]:
    """The datasets of the file that make transitions."""
    if not any(name in file for name in _SIGNS):
        hint = ""
        if "episode_0" in file:
            hint = "; it is a part of a Minari dataset: give the id or the dataset's folder instead"
        raise DataError(f"it holds none of {', '.join(_SIGNS)}: not a file of D4RL's layout{hint}")
    names = [key for keys in KEYS.values() for key in keys]
    return {name: found for name in names if (found := plain(file, name)) is not None}


def read_record(file: Any) -> dict[str, Any]:
    """What we wrote about a file; nothing where somebody else wrote it."""
    if RECORD not in file.attrs:
        return {}
    held = file.attrs.get_id(RECORD)
    if held.dtype.kind != "S" or held.shape != ():
        return {}
    try:
        record = json.loads(file.attrs[RECORD])
    except (ValueError, RecursionError):
        raise DataError(f"its record ({RECORD}) is broken") from None
    return record if isinstance(record, dict) else {}


class _Mapped:
    """A column that is computed from others, slice by slice."""

    def __init__(self, n: int, width: int, rows: Callable[[slice], NDArray[np.float32]], chunks: Any) -> None:
        self.shape, self.dtype, self.chunks = (n, width), np.dtype(np.float32), chunks
        self._rows = rows

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        return self._rows(key)


def _as_the_task_has_it(task: Task, file: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns with observations as the task's environment gives them."""
    obs = columns.get("observations")
    if obs is None or len(obs.shape) != 2:
        return dict(columns)
    n, width = obs.shape
    if task.domain == "antmaze" and width == ANTMAZE_WIDTH:
        return _in_our_frame(task, file, columns)
    if task.domain == "pointmaze" and width == MAZE2D_WIDTH:
        raise DataError(
            "these are observations of D4RL's maze2d, which was another simulator than gymnasium-robotics' PointMaze: "
            "use Minari's D4RL/pointmaze sets, or let o2o-smooth make one"
        )
    changed = dict(columns)
    if task.obs_width is not None and width in WIDER:
        for name in ("observations", "next_observations"):
            if name in columns and columns[name].shape == obs.shape:
                changed[name] = _Mapped(n, task.obs_width, _first_columns(columns[name], task.obs_width), obs.chunks)
    return changed


def _first_columns(column: Any, width: int) -> Callable[[slice], NDArray[np.float32]]:
    return lambda key: to_float32(np.asarray(column[key]))[:, :width]


def _in_our_frame(task: Task, file: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """D4RL's AntMaze columns as our environment gives observations and takes actions."""
    link = file.get("infos", getlink=True)
    infos = file["infos"] if isinstance(link, h5py.HardLink) else None
    goal = plain(infos, "goal") if isinstance(infos, h5py.Group) else None
    n = columns["observations"].shape[0]
    if goal is None or goal.shape != (n, 2):
        raise DataError(
            f"AntMaze observations of {ANTMAZE_WIDTH} columns need infos/goal of shape ({n}, 2), since the "
            f"environment places the goal anew in every episode"
        )
    changed = dict(columns)

    def observations(name: str) -> Callable[[slice], NDArray[np.float32]]:
        # The goal of a successor is that of its step: a new one comes with the next episode.
        return lambda key: antmaze.from_d4rl(task, to_float32(columns[name][key]), to_float32(goal[key]))

    for name in ("observations", "next_observations"):
        if name in columns:
            changed[name] = _Mapped(n, ANTMAZE_WIDTH + 2, observations(name), columns[name].chunks)
    actions = columns.get("actions")
    if actions is not None and actions.shape == (n, 8):
        changed["actions"] = _Mapped(n, 8, lambda key: antmaze.mirror_actions(to_float32(actions[key])), actions.chunks)
    return changed
