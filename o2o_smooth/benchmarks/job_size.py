"""What a job needs, predicted: seconds, memory, disk."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from o2o_smooth.agents.settings import leaves
from o2o_smooth.benchmarks.placement import predicted_s
from o2o_smooth.data.extent import Extent, extent
from o2o_smooth.data.store import CGROUP
from o2o_smooth.envs import find_task, make_env
from o2o_smooth.errors import O2OError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.memory import LIBRARIES, Shape, predict
from o2o_smooth.training.prepare import needs_dataset

_COPIES = 4  # parameters, targets and Adam's two moments, at most
_BYTES = 4


def job_seconds(configs: Sequence[RunConfig[Any]], cpus: int) -> float:
    """Seconds of runs as one job, by the table of a CPU's speed."""
    if configs[0].device != "cpu":  # members cost little more than one
        return predicted_s([replace(configs[0], seeds=configs[0].seeds[:1])], cpus=cpus)
    return predicted_s(configs, cpus=cpus)


def job_memory(configs: Sequence[RunConfig[Any]]) -> int | None:
    """Peak memory of runs that share a learner, bytes; None where the environment cannot be made here."""
    config = configs[0]
    shape = _shape(config.task)
    if shape is None:
        return None
    data = _extent(config.task, config.dataset) if needs_dataset(config) else None
    members = sum(len(each.seeds) for each in configs)
    return predict(config, shape, data, held=LIBRARIES, members=members).host


def job_disk(config: RunConfig[Any]) -> int | None:
    """Bytes of a run's checkpoints and of the rows that it keeps, roughly; None as for `job_memory`."""
    shape = _shape(config.task)
    if shape is None:
        return None
    widths: tuple[int, ...] = leaves(config.hyper)["hidden_dims"]
    inputs = shape.obs_dim + shape.action_dim
    network = inputs * widths[0] + sum(a * b for a, b in itertools.pairwise(widths)) + widths[-1]
    networks = 2 + 2 * int(config.hyper.num_critics)
    checkpoints = (2 if config.online_steps else 1) * _COPIES * networks * network
    rows = config.online_steps * (2 * shape.obs_dim + shape.action_dim + 4) if config.save_online else 0
    return _BYTES * len(config.seeds) * (checkpoints + rows)


def machine_memory() -> int | None:
    """Bytes of memory that this machine or container has; None where that cannot be told."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int((CGROUP / "memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


@cache
def _shape(name: str) -> Shape | None:
    task = find_task(name)
    try:
        env = make_env(task)
    except O2OError:
        return None
    spaces: Any = (env.observation_space, env.action_space)
    env.close()
    return Shape(spaces[0].shape[0], spaces[1].shape[0], task.domain)


@cache
def _extent(name: str, dataset: str | None) -> Extent | None:
    return extent(find_task(name), dataset, patient=False)
