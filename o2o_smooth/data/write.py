"""Writing Minari datasets: real ones, that say how they were made and by what they are scored."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

from o2o_smooth.data.installed import staged
from o2o_smooth.data.room import free_disk
from o2o_smooth.envs.make import Env
from o2o_smooth.envs.tasks import ROBOTICS, Task

RECORD = "o2o_smooth"
"""Key of our record in a dataset's metadata: task, provenance, how it was made, versions."""
_VERSIONED = ("o2o_smooth", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy", "torch")
_PER_EPISODE = 32_768  # bytes of HDF5's own, with a large margin


def write_minari(
    dataset_id: str,
    episodes: Sequence[EpisodeBuffer],
    *,
    task: Task,
    env: Env,
    algorithm: str,
    how: str,
    record: Mapping[str, Any],
    provenance: str = "generated",
    replace: bool = False,
) -> None:
    """Write a dataset under the user's Minari folder; nothing is visible before all of it is written.

    Args:
        dataset_id: Minari id; one that is there already is left alone, unless `replace` is set.
        episodes: With the observations of the environment below our wrapper (`env.env`), T + 1 each.
        task: Whose reference scores go into the metadata.
        env: Of `make_env(task)`; the environment below our wrapper becomes the dataset's, so `recover_environment`
            gives the one the data came from, D4RL compatibility included.
        algorithm: What acted, in a few words.
        how: One or two sentences on how the data came about.
        record: Plain values that tell how to make the same data again.
        provenance: As in `data.sources.PROVENANCES`.
        replace: Put the new dataset in the place of an old one of this id, once it is complete.

    Raises:
        DataError: The folder cannot be written.
    """
    origin = "GENERATED on this machine by o2o_smooth" if provenance == "generated" else "Converted by o2o_smooth"
    scores = "" if task.ref_source is None else f" Reference scores: {task.ref_source}."
    with staged(dataset_id, replace=replace) as staging, warnings.catch_warnings():
        require_room(staging, episodes)
        for field in ("code_permalink", "author_email"):
            warnings.filterwarnings("ignore", message=f"`{field}` is set to None", category=UserWarning)
        raw = env.env  # type: ignore[attr-defined]  # TaskEnv is a wrapper
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            list(episodes),
            env=raw,
            eval_env=raw,
            algorithm_name=algorithm,
            author="o2o_smooth",
            ref_min_score=task.ref_random,
            ref_max_score=task.ref_expert,
            description=f"{origin} for task {task.id}; neither D4RL's nor Minari's file. {how}{scores}",
            requirements=_requirements(task.domain),
        )
        versions = {name: found for name in _VERSIONED if (found := _version(name)) is not None}
        dataset.storage.update_metadata(
            {RECORD: {"task": task.id, "provenance": provenance, **record, "versions": versions}}
        )


def require_room(folder: Path, episodes: Sequence[EpisodeBuffer]) -> None:
    """Refuse a disk that is too full before HDF5 finds out: it can take the process with it.

    Raises:
        OSError: The disk is full.
    """
    free = free_disk(folder)
    fields = ("observations", "actions", "rewards", "terminations", "truncations")
    size = sum(_bytes(getattr(episode, field)) for episode in episodes for field in fields)
    if free is not None and size + _PER_EPISODE * len(episodes) > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_bytes(inner) for inner in value.values())
    return int(np.asarray(value).nbytes)


def _requirements(domain: str) -> list[str]:
    """What the environment needs beside gymnasium, as far as the domain tells."""
    robotics = ["gymnasium-robotics>=1.4"] if domain in ROBOTICS else []
    return [*robotics, "mujoco>=3.2"] if domain != "other" else []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
