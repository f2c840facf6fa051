"""Where transitions come from: Minari datasets, D4RL's HDF5 files, arrays, finished runs, and data made on the spot.

All become the same `Transitions`. Episode boundaries are exact whatever the source: the successor of an episode's last
step is the recorded one, and where none was recorded the step is dropped (cut off) or its successor is never used
(terminated).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.arrays import from_npz
from o2o_smooth.data.columns import Progress
from o2o_smooth.data.corridor_sets import make_corridor_dataset
from o2o_smooth.data.d4rl_files import d4rl_file, d4rl_folder, download_with_d4rl, import_d4rl
from o2o_smooth.data.dataset import PROVENANCES, Dataset, clip_actions
from o2o_smooth.data.download import download
from o2o_smooth.data.generate import generated_id, make_pointmaze_dataset
from o2o_smooth.data.hdf5 import from_hdf5, published_name
from o2o_smooth.data.installed import GENERATED, is_installed
from o2o_smooth.data.minari_sets import from_minari, is_id
from o2o_smooth.envs.tasks import Task, find_task
from o2o_smooth.errors import DataError
from o2o_smooth.reading import check_inside

HDF5 = (".hdf5", ".h5")
ONLINE_FOLDER = "online"
"""Folder of a run with what each seed collected, seed-N.hdf5."""
LARGE = 256 * 2**20  # bytes; below, reading twice is a moment
NamedProgress = Callable[[str, int, int], None]


def load_dataset(
    task: Task,
    *,
    dataset: str | None = None,
    provenance: str | None = None,
    action_box: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    progress: NamedProgress | None = None,
    log: Callable[[str], None] | None = None,
) -> Dataset:
    """Load the data of a task.

    In order: the set that is asked for; D4RL's own file in D4RL's folder; the first of the task's sets that is
    installed; for PointMaze and the Corridor a set made on the spot; a download.

    Args:
        task: Names the datasets and the observation layout.
        dataset: Minari id; path of an .hdf5 file in D4RL's layout, an .npz file, a Minari dataset's folder or a
            finished run's folder (what it collected online); None leaves the choice to the task.
        provenance: One of `PROVENANCES`; None tells it from the source.
        action_box: Low and high, (A,) each: actions are moved to just within it, and counted.
        progress: Called with (what, done, total) while data is made, fetched or read.
        log: Called with lines for people: what is made or fetched, and which set is used.

    Raises:
        DataError: Nothing was found, or what was found is broken; the text names the cures.
    """
    say = log if log is not None else _silent
    if provenance is not None and provenance not in PROVENANCES:
        raise DataError(f"provenance is {provenance!r}, expected one of {', '.join(PROVENANCES)}")
    ahead = _ahead.pop((task.id, dataset, provenance), None)
    if ahead is None and dataset is None and (file := d4rl_file(task)) is not None:
        dataset = str(file)
    if ahead is not None:
        loaded = ahead
    elif dataset is not None and is_path(dataset):
        announce(Path(dataset), say)
        loaded = read_path(Path(dataset), task, provenance=provenance, progress=_part(progress, "reading the dataset"))
    else:
        dataset_id = _obtain(task, dataset, progress, say)
        reading = _part(progress, "reading the dataset")
        loaded = from_minari(dataset_id, task=task, provenance=provenance, progress=reading)
    if action_box is not None and loaded.transitions.action.shape[1] == len(action_box[0]):
        loaded = clip_actions(loaded, *action_box)
    say(f"data: {loaded.note}")
    return loaded


_ahead: dict[tuple[str, str | None, str | None], Dataset] = {}


def keep_for_next(task: Task, dataset: str | None, provenance: str | None, loaded: Dataset) -> None:
    """Let the next `load_dataset` of the same data take what was read already; large data are read again.

    Args:
        task: As `load_dataset` has it.
        dataset: Likewise.
        provenance: Likewise.
        loaded: What it gave, with no action box. It belongs to the one that takes it.
    """
    if sum(np.asarray(column).nbytes for column in vars(loaded.transitions).values() if column is not None) < LARGE:
        _ahead[task.id, dataset, provenance] = loaded


def let_go() -> None:
    """Forget what nobody has taken."""
    _ahead.clear()


def announce(path: Path, say: Callable[[str], None]) -> None:
    """Say what takes its time before the first report of progress: a large file is read twice."""
    try:
        size = path.expanduser().stat().st_size
    except OSError:
        return
    if path.suffix in HDF5 and size > LARGE:
        say(f"{path} has {size >> 20:,} MiB: a process of its own reads it first, since damage can crash HDF5")


def is_path(text: str) -> bool:
    """Whether a text names a file or folder rather than a Minari id."""
    path = Path(text)
    if is_id(text) and is_installed(text):
        return False
    if path.suffix in (*HDF5, ".npz", ".npy", ".pkl", ".csv") or text.startswith((".", "/", "~")):
        return True
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def read_path(
    path: Path, task: Task | None = None, *, provenance: str | None = None, progress: Progress | None = None
) -> Dataset:
    """Read a dataset by path: .hdf5, .npz, a Minari dataset's folder, or a finished run's folder.

    Raises:
        DataError: It is none of these, or broken.
    """
    path = path.expanduser()
    if path.suffix == ".npz":
        return from_npz(
            path,
            task=task,
            provenance=provenance,
            progress=progress,
        )
    if path.suffix in HDF5:
        return from_hdf5([path], task=task, provenance=provenance, progress=progress)
    if (path / "data").is_dir():
        return from_minari(path, task=task, provenance=provenance, progress=progress)
    online = sorted((path / ONLINE_FOLDER).glob("seed-*.hdf5"), key=_seed)
    if online:
        for file in online:
            try:
                check_inside(file, path)
            except ValueError as error:
                raise DataError(f"{path}: {error}") from None
        return from_hdf5(online, task=task, id=str(path), provenance=provenance, progress=progress)
    if (path / "manifest.json").is_file():
        raise DataError(f"run {path} kept no online data: it had no online steps, or ran with --no-save-online")
    if path.exists():
        raise DataError(
            f"{path}: of files .hdf5 and .npz are read, of folders Minari datasets and finished runs; give one of "
            f"these, or the id of a Minari dataset"
        )
    raise DataError(f"there is no dataset {path}")


def fetch(name: str, *, progress: NamedProgress | None = None, log: Callable[[str], None] | None = None) -> str:
    """Download a Minari dataset by its id, or a task's data: D4RL's own where the d4rl package works, else Minari's.

    Returns:
        The id or path under which it is found from now on.

    Raises:
        DataError: It cannot be had; the text names the cures.
        EnvError: The name is neither a Minari id nor a task.
    """
    say = log if log is not None else _silent
    if is_id(name) and "/" in name:
        if is_installed(name):
            say(f"{name} is installed already")
            return name
        _download(name, progress, say)
        return name
    task = find_task(name)
    if (file := d4rl_file(task)) is not None:
        say(f"{file} is there already")
        return str(file)
    if published_name(task) is not None and import_d4rl() is not None:
        return str(download_with_d4rl(task))
    theirs = [dataset_id for dataset_id in task.dataset_ids if not dataset_id.startswith(GENERATED)]
    if not theirs:
        place = "" if published_name(task) is None else f"; D4RL's {published_name(task)} goes into {d4rl_folder()}"
        raise DataError(f"task {task.id} has no Minari dataset to download{place}")
    return fetch(theirs[0], progress=progress, log=log)


def _download(dataset_id: str, progress: NamedProgress | None, say: Callable[[str], None]) -> None:
    report = None if progress is None else lambda size: progress("downloading, KiB", size >> 10, 0)
    download(dataset_id, report=report, log=say)


def _seed(path: Path) -> int:
    number = path.stem.removeprefix("seed-")
    return int(number) if number.isdigit() else -1


def _obtain(task: Task, dataset: str | None, progress: NamedProgress | None, say: Callable[[str], None]) -> str:
    """Find, make or download the dataset; gives the id of one that is installed."""
    wanted = task.dataset_ids if dataset is None else (dataset,)
    for dataset_id in wanted:
        if is_installed(dataset_id):
            return dataset_id
    theirs = [dataset_id for dataset_id in wanted if not dataset_id.startswith(GENERATED)]
    made = generated_id(task)
    if made is not None and made in wanted:
        say(
            f"making {made}: {' and '.join(theirs) or 'it'} is not installed, so a scripted controller collects data "
            f"here (generated, not D4RL's file)"
        )
        maker = make_corridor_dataset if task.domain == "corridor" else make_pointmaze_dataset
        return maker(task, progress=_part(progress, "making the dataset"))
    if not theirs:
        make = f", or make one with o2o-smooth data make --task {task.id}" if wanted else ""
        raise DataError(
            f"task {task.id} has no Minari dataset to download: name one with --dataset ID or --dataset FILE{make}"
        )
    try:
        _download(theirs[0], progress, say)
    except DataError as error:
        if len(theirs) == len(wanted):
            raise
        raise DataError(f"{error}; or make one like it with o2o-smooth data make --task {task.id}") from error
    return theirs[0]


def _part(progress: NamedProgress | None, what: str) -> Progress | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _silent(line: str) -> None:
    """Say nothing."""


__all__ = ["ONLINE_FOLDER", "Dataset", "fetch", "is_path", "load_dataset", "read_path"]
