"""Every agent learns a small real task: its evaluation beats the mean return of the data it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
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
def pendulum_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A competent controller that half of the time does something else; the file and its mean return."""
    rng = np.random.default_rng(0)
    env = gym.make("Pendulum-v1")
    columns: dict[str, list[Any]] = {
        key: [] for key in ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    }
    obs, _ = env.reset(seed=0)
    for _ in range(20_000):
        x, y, speed = obs
        torque = -10 * y - 2 * speed if x > 0.8 else 2 * np.sign(speed)
        action = np.clip([torque if rng.random() < 0.5 else rng.uniform(-2, 2)], -2, 2).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        row = (obs, action, reward, following, terminated, truncated)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        obs = env.reset()[0] if terminated or truncated else following
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    np.savez(path, **{key: np.array(column) for key, column in columns.items()})  # type: ignore[arg-type]
    return path, float(np.sum(columns["rewards"])) / 100


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("agent", "updates", "settings"),
    [
        ("iql", 4000, {}),
        ("cql", 3000, {"cql_actions": 4, "cql_weight": 1.0, "actor_lr": 3e-4}),
        # the data are half noise: cloning them has to weigh less than the published 2.5 asks
        ("td3_bc", 5000, {"bc_alpha": 10.0, "critic_layer_norm": True, "actor_lr": 1e-3, "critic_lr": 1e-3}),
    ],
)
def test_offline_agents_beat_their_data_on_pendulum(
    agent: str, updates: int, settings: dict[str, Any], pendulum_data: tuple[Path, float], tmp_path: Path
) -> None:
    data, behaviour = pendulum_data
    config: RunConfig[Any] = RunConfig(
        hyper=AGENTS[agent].config_class(hidden_dims=(64, 64), **settings),
        evaluation=EvaluationConfig(switch_episodes=40, offline_eval_every=0),
        task="Pendulum-v1",
        dataset=str(data),
        agent=agent,
        seeds=(0, 1),
        offline_updates=updates,
        online_steps=0,
        batch_size=128,
        reward_scale=0.1,
        threads=1,
        out=str(tmp_path / "run"),
    )
    learned = [row["return_mean"] for row in rows(run(config), "switch")]
    assert min(learned) > behaviour + 100, f"{learned} against {behaviour}"


@pytest.mark.timeout(900)
def test_iql_beats_its_data_on_pointmaze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    config: RunConfig[Any] = RunConfig(
        hyper=AGENTS["iql"].config_class(hidden_dims=(128, 128), critic_layer_norm=True),
        evaluation=EvaluationConfig(switch_episodes=60, offline_eval_every=0),
        task=MAZE,
        agent="iql",
        seeds=(0, 1),
        offline_updates=12_000,
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
    assert np.mean(after) > -500, f"{after}"
