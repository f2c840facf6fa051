"""Small runs that are stopped at a chosen moment and go on, beside the same runs left alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import AGENTS
from o2o_smooth.envs import find_task, make_env
from o2o_smooth.training import run as run_module
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.resume import can_resume, resume
from o2o_smooth.training.stopping import Interrupted, StopRequest

EVALUATION = EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=30, offline_eval_every=10)


class StopAt(StopRequest):
    """Somebody wants to stop from a number of looks on: the loops look between steps and inside of evaluations."""

    looks, limit = 0, 10**9

    def __init__(self) -> None:
        type(self).looks = 0

    @property
    def number(self) -> int | None:
        type(self).looks += 1
        return signal.SIGTERM if self.looks > self.limit else None

    @number.setter
    def number(self, value: int | None) -> None:
        raise AssertionError(f"signal {value} in a test")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> type[StopAt]:
    monkeypatch.setattr(run_module, "StopRequest", StopAt)
    monkeypatch.setattr(StopAt, "limit", 10**9)
    return StopAt


def dataset(folder: Path, task: str, rows: int = 200) -> str:
    """What a random policy does."""
    rng, env = np.random.default_rng(0), make_env(find_task(task))
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    found: dict[str, list[Any]] = {name: [] for name in names}
    obs, _ = env.reset(seed=0)
    for _ in range(rows):
        space: Any = env.action_space
        action = rng.uniform(space.low, space.high).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(names, (obs, action, reward, after, terminated, truncated), strict=True):
            found[name].append(value)
        obs = env.reset()[0] if terminated or truncated else after
    found["truncated"][-1] = not found["terminated"][-1]
    env.close()
    file = folder / f"{task.replace('/', '-')}.npz"
    arrays: dict[str, Any] = {name: np.array(values) for name, values in found.items()}
    np.savez(file, **arrays)
    return str(file)


def small(out: Path, task: str, data: str | None, agent: str = "iql", **changes: Any) -> RunConfig[Any]:
    """A run of a second."""
    settings: dict[str, Any] = {
        "task": task,
        "agent": agent,
        "dataset": data,
        "seeds": (3, 5),
        "offline_updates": 20,
        "online_steps": 80,
        "num_envs": 2,
        "batch_size": 8,
        "log_every": 10,
        "utd": 0.5,
        "update_after": 16,
        "out": str(out),
        "smoothing": SmoothingConfig("linear", ramp_steps=60),
        "evaluation": EVALUATION,
        "save_online": False,
        **changes,
    }
    hyper = settings.pop("hyper", None) or AGENTS[agent].config_class(hidden_dims=(8, 8))
    return RunConfig(hyper=hyper, **settings)


def finish(folder: Path, most: int = 60) -> int:
    """Resume as often as it takes; the number of times."""
    for times in range(1, most + 1):
        try:
            resume(folder)
        except Interrupted:
            continue
        assert not can_resume(folder)
        return times
    raise AssertionError(f"not complete after {most} resumes")


def without_speed(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def assert_same(folder: Path, left_alone: Path) -> None:
    """Both wrote the same numbers, and the same files."""
    for name in ("evaluations.jsonl", "audit.jsonl"):
        assert (folder / name).read_bytes() == (left_alone / name).read_bytes(), name
    assert without_speed(folder) == without_speed(left_alone)
    names = [{path.relative_to(f) for path in f.rglob("*")} for f in (folder, left_alone)]
    assert names[0] == names[1]
