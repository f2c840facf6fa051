"""Arms of a comparison: one population or several processes, and the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import IQLConfig
from o2o_smooth.benchmarks.arms import run_arms
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.progress import Silent


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.names: set[str] = set()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        self.names.add(name)


def _arms(data: Path, out: Path) -> dict[str, RunConfig[Any]]:
    switches = {"jump": SmoothingConfig("jump"), "linear": SmoothingConfig("linear", ramp_steps=50)}
    switches["mixed"] = SmoothingConfig("jump", regime="mixed")
    return {
        name: RunConfig(
            hyper=IQLConfig(hidden_dims=(8, 8)),
            smoothing=smoothing,
            evaluation=EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_every=50),
            task="Pendulum-v1",
            dataset=str(data),
            seeds=(3, 5),
            offline_updates=10,
            online_steps=100,
            batch_size=16,
            out=str(out / name),
        )
        for name, smoothing in switches.items()
    }


@pytest.mark.slow
def test_stack_and_processes_give_the_same_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data, n = tmp_path / "pendulum.npz", 400
    np.savez(
        data,
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 200 == 199,
    )
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for how in ("stack", "processes"):
        listener = Listener()
        folders = run_arms(_arms(data, tmp_path / how), listener, population=how, workers=2)
        assert list(folders) == ["jump", "linear", "mixed"]
        assert any(note.startswith(f"population: {how}") for note in listener.notes)
        assert {"jump: online", "linear: online", "mixed: online"} <= listener.names
        found[how] = {
            name: [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
            for name, out in folders.items()
        }
    for name, rows in found["stack"].items():
        for x, y in zip(rows, found["processes"][name], strict=True):
            assert (x["phase"], x["env_steps"], x["seed"]) == (y["phase"], y["env_steps"], y["seed"])
            assert x["return_mean"] == pytest.approx(y["return_mean"], rel=1e-3)
