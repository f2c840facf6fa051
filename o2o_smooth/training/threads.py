"""How many CPU threads the learner gets."""

from __future__ import annotations

from typing import Any

import torch

from o2o_smooth.agents import CQLConfig
from o2o_smooth.training.config import RunConfig

SHARED_FLOPS = 1.5e7  # of a layer; below it two threads gain less than a third, and lose all of it where others compute


def set_threads(config: RunConfig[Any], members: int) -> None:
    """Give the learner the CPU threads that were asked for, or those that suit it."""
    threads = config.threads or default_threads(config, members)
    if threads is not None:
        torch.set_num_threads(threads)


def default_threads(config: RunConfig[Any], members: int | None = None) -> int | None:
    """One thread where a layer's matmul is too small to share; None leaves torch's choice."""
    width = max(config.hyper.hidden_dims)
    actions = 3 * config.hyper.cql_actions if isinstance(config.hyper, CQLConfig) else 1
    members = len(config.seeds) if members is None else members
    flops = 2 * members * config.hyper.num_critics * config.batch_size * actions * width**2
    return 1 if flops < SHARED_FLOPS else None
