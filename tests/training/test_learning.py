"""Every agent learns a small real task: its evaluation beats the mean return of the data it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import AGENTS
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.run import run

pytestmark = pytest.mark.slow

MAZE = "D4RL/pointmaze/umaze-dense-v2"


def rows(out: Path, phase: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


@pytest.fixture(scope="module")
def minari(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("minari")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("agent", "updates", "settings"),
    [
        ("iql", 12_000, {}),
        ("td3_bc", 8_000, {}),
        ("cql", 4_000, {"cql_actions": 4, "cql_weight": 1.0, "actor_lr": 3e-4}),
    ],
)
def test_offline_agents_beat_their_data_on_pointmaze(
    agent: str, updates: int, settings: dict[str, Any], minari: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari))
    config: RunConfig[Any] = RunConfig(
        hyper=AGENTS[agent].config_class(hidden_dims=(128, 128), critic_layer_norm=True, **settings),
        evaluation=EvaluationConfig(switch_episodes=60, offline_eval_every=0),
        task=MAZE,
        agent=agent,
        seeds=(0, 1),
        offline_updates=updates,
        online_steps=0,
        batch_size=128,
        threads=1,
        out=str(tmp_path / "run"),
    )
    out = run(config)
    behaviour = json.loads((out / "manifest.json").read_text())["dataset"]["return_mean"]
    learned = [row["return_mean"] for row in rows(out, "switch")]
    assert np.mean(learned) > behaviour + 5, f"{learned} against {behaviour}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("agent", ["sac", "td3"])
def test_online_agents_beat_random_play_on_pendulum(agent: str, tmp_path: Path) -> None:
    config: RunConfig[Any] = RunConfig(
        hyper=AGENTS[agent].config_class(hidden_dims=(64, 64), actor_lr=1e-3, critic_lr=1e-3),
        smoothing=SmoothingConfig("jump", regime="discard"),
        evaluation=EvaluationConfig(eval_episodes=10, switch_episodes=10, eval_every=6000),
        task="Pendulum-v1",
        agent=agent,
        seeds=(0, 1),
        offline_updates=0,
        online_steps=6000,
        random_steps=500,
        update_after=500,
        batch_size=128,
        reward_scale=0.1,
        threads=1,
        out=str(tmp_path / "run"),
    )
    out = run(config)
    before = [row["return_mean"] for row in rows(out, "switch")]
    after = [row["return_mean"] for row in rows(out, "online") if row["env_steps"] == 6000]
    assert max(before) < -800  # an untrained policy; random play earns about -1200
    assert min(after) > -300, f"{after}"
