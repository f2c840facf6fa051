"""D4RL's own files: where they lie on a machine that has used D4RL, and the `d4rl` package where it really imports.

The package is never needed: its files are read by our own reader, and its reference scores stand in the task table.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import warnings
from pathlib import Path
from typing import Any

from o2o_smooth.data.hdf5 import published_name
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

FOLDER_VARIABLE = "D4RL_DATASET_DIR"
"""D4RL's own environment variable for its folder."""


def d4rl_folder() -> Path:
    """The folder into which D4RL downloads."""
    configured = os.environ.get(FOLDER_VARIABLE)
    return Path(configured) if configured else Path.home() / ".d4rl" / "datasets"


def d4rl_file(task: Task) -> Path | None:
    """D4RL's own file for a task, where it was downloaded; None where it was not."""
    name = published_name(task)
    path = None if name is None else d4rl_folder() / name
    return path if path is not None and path.is_file() else None


def import_d4rl() -> Any | None:
    """The `d4rl` package; None where it is not installed or does not import (it needs MuJoCo 2.1 binaries)."""
    if importlib.util.find_spec("d4rl") is None:
        return None
    with (
        contextlib.redirect_stdout(io.StringIO()),  # its imports talk
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            package = importlib.import_module("d4rl")
            importlib.import_module("d4rl.infos")
        except (Exception, SystemExit):  # a plain Exception without the binaries, and others on the way
            return None
    return package


def download_with_d4rl(task: Task) -> Path:
    """Have the `d4rl` package fetch its file of a task.

    Raises:
        DataError: The package does not import, does not know the task, or cannot fetch it; the text names the cure.
    """
    name = published_name(task)
    if name is None:
        raise DataError(f"D4RL has no file that fits task {task.id}")
    package = import_d4rl()
    place = f"put {name} into {d4rl_folder()} ({FOLDER_VARIABLE} names another folder)"
    if package is None:
        raise DataError(
            f"the d4rl package is not installed or does not import here: {place}, from a machine that has it"
        )
    url = getattr(package.infos, "DATASET_URLS", {}).get(task.id)
    if url is None:
        raise DataError(f"the d4rl package knows no address for {task.id}: {place}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = Path(importlib.import_module("d4rl.offline_env").download_dataset_from_url(url))
    except Exception as error:  # whatever the network makes it raise
        raise DataError(f"the d4rl package cannot fetch {url} ({' '.join(str(error).split())}): {place}") from error
    if found.name != name:
        raise DataError(f"the d4rl package fetched {found}, expected a file called {name}")
    return found
