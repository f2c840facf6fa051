"""What the attacks share: a small run to damage, hostile values, and a process in which memory is watched."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
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


def in_a_fork(work: Callable[[], object], *, seconds: int = 60) -> tuple[str, int]:
    """What became of `work` in a process of its own: "fine", the error's text, or a signal; MiB it needed more."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            before = _peak()
            try:
                work()
                text = "fine"
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(writing, json.dumps([text[:2000], _peak() - before]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if not told:
        return f"died: {os.waitstatus_to_exitcode(status)}", 0
    text, mib = json.loads(told)
    return text, mib


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
