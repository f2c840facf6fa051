"""What the attacks share: a small run to damage, hostile values, and a process in which memory is watched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.agents import AGENTS
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig

DEEP = 100_000
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**40,
    1e300,
    "x",
    "../../etc",
    "\x1b[2J\n<script>$\\frac$",
    [],
    {},
    [[[]]],
    {"a": {"b": []}},
)
"""What stands in no file of ours at most places."""


def pendulum(folder: Path) -> Path:
    """Made-up data, 200 rows."""
    rng, n = np.random.default_rng(0), 200
    path = folder / "pendulum.npz"
    np.savez(
        path,
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 50 == 49,
    )
    return path


def small(data: Path, out: Path, **changes: Any) -> RunConfig[Any]:
    """A run of a second."""
    settings: dict[str, Any] = {
        "task": "Pendulum-v1",
        "agent": "iql",
        "dataset": str(data),
        "seeds": (3, 5),
        "offline_updates": 4,
        "online_steps": 20,
        "batch_size": 8,
        "log_every": 5,
        "utd": 0.2,
        "out": str(out),
        "hyper": AGENTS["iql"].config_class(hidden_dims=(8, 8)),
        "smoothing": SmoothingConfig("linear", ramp_steps=10),
        "evaluation": EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=10),
    }
    return RunConfig(**{**settings, **changes})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside; of a list to the first alone."""
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(value))
    here = copy
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = new
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy that lacks a place."""
    copy = json.loads(json.dumps(value))
    here = copy
    for key in path[:-1]:
        here = here[key]
    del here[path[-1]]
    return copy
