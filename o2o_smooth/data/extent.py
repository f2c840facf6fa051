"""How many rows a dataset has, told without reading it: from metadata, headers and shapes."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o2o_smooth.data.columns import KEYS
from o2o_smooth.data.corridor_sets import ROWS as CORRIDOR_ROWS
from o2o_smooth.data.d4rl_files import d4rl_file
from o2o_smooth.data.generate import generated_id, make_pointmaze_dataset
from o2o_smooth.data.installed import is_installed, minari_root
from o2o_smooth.data.minari_sets import read_metadata
from o2o_smooth.data.sources import HDF5, LARGE, ONLINE_FOLDER, is_path
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

# A process of its own: the HDF5 library can crash on a damaged file, and that is for the loader to find and to explain.
_SHAPES = """
import h5py, sys
for path in sys.argv[2:]:
    with h5py.File(path, "r", locking=False) as file:
        print(next(file[key].shape[0] for key in sys.argv[1].split(",") if key in file))
"""
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Extent:
    """The size of a dataset, as far as it can be told."""

    source: str
    """Id or path."""
    rows: int | None
    """At most so many transitions; None where only reading would tell."""
    note: str = ""
    """Why it is not known, or where the number comes from."""
    unpacked: int = 0
    """Bytes that are held besides the rows while it is read."""
    mapped: bool | None = None
    """Whether the rows lie on disk; None where that is decided when they are read."""


def extent(task: Task, dataset: str | None = None, *, patient: bool = True) -> Extent:
    """Tell the size of the dataset that `load_dataset` would take.

    Args:
        task: As for `load_dataset`.
        dataset: As for `load_dataset`.
        patient: Also look into small HDF5 files, which takes a process of its own; large ones are always looked into.
    """
    if dataset is None and (file := d4rl_file(task)) is not None:
        dataset = str(file)
    if dataset is not None and is_path(dataset):
        return _of_path(Path(dataset).expanduser(), patient)
    wanted = task.dataset_ids if dataset is None else (dataset,)
    for name in wanted:
        if is_installed(name):
            return _of_minari(name, minari_root() / name)
    made = generated_id(task)
    if made is not None and made in wanted:
        rows = inspect.signature(make_pointmaze_dataset).parameters["transitions"].default
        return Extent(made, CORRIDOR_ROWS if task.domain == "corridor" else rows, "made on the spot")
    if not wanted:
        return Extent("", None, "the task has no dataset of its own: name one with --dataset")
    return Extent(wanted[0], None, "not installed yet: its size is known once it is downloaded")


def _of_path(path: Path, patient: bool) -> Extent:
    if path.suffix == ".npz":
        return _of_npz(path)
    if (path / "data").is_dir():
        return _of_minari(str(path), path)
    files = [path] if path.suffix in HDF5 else sorted((path / ONLINE_FOLDER).glob("seed-*.hdf5"))
    if not files or not all(file.is_file() for file in files):
        return Extent(str(path), None, "not there, or nothing that is read")
    if not patient and sum(file.stat().st_size for file in files) < LARGE:
        return Extent(str(path), None, "small: its size is known once it is read")
    rows = _shapes(files)
    return Extent(str(path), rows, "" if rows is not None else "its shapes cannot be read")


def _of_minari(name: str, folder: Path) -> Extent:
    try:
        rows = read_metadata(folder).get("total_steps")
    except DataError:
        rows = None
    known = isinstance(rows, int) and rows > 0
    return Extent(name, rows if known else None, "" if known else "its metadata do not tell")


def _of_npz(path: Path) -> Extent:
    """Shape of the observations from the header of their member; the arrays are unpacked before rows are made."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            names = [f"{key}.npy" for key in KEYS["obs"]]
            with archive.open(next(name for name in names if name in archive.namelist())) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape = read(member)[0]
    except Exception:  # whatever numpy, zipfile and zlib make of a broken file; reading it explains
        return Extent(str(path), None, "its headers do not tell")
    rows = int(shape[0]) if shape else 0
    known = 0 < rows <= unpacked
    return Extent(str(path), rows if known else None, "" if known else "its headers do not tell", unpacked)


def _shapes(files: Sequence[Path]) -> int | None:
    """Rows of the observations of HDF5 files, in all."""
    command = [sys.executable, "-P", "-c", _SHAPES, ",".join(KEYS["obs"]), *map(str, files)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    if done.returncode != 0 or len(lines) != len(files) or not all(line.isdigit() for line in lines):
        return None
    return sum(map(int, lines))
