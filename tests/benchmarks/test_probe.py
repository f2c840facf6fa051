"""The line between two checkpoints' actors: exact at its ends, straight between, and refused where there is none."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_smooth.agents import CQL, IQL, TD3BC, CQLConfig, IQLConfig, TD3BCConfig
from o2o_smooth.agents.base import Agent
from o2o_smooth.benchmarks.probe import Line, _envs
from o2o_smooth.errors import CheckpointError

OBS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = gym.spaces.Box(-2, 2, (2,), np.float32)
NAMES = Path("a"), Path("b")


def pair(kind: str, seeds: tuple[int, ...] = (0, 1)) -> tuple[Agent, Agent]:
    """Two agents of other parameters, with one normaliser."""
    made: list[Agent] = []
    for shift in (0, 10):
        own = [seed + shift for seed in seeds]
        agent: Agent
        if kind == "iql":
            agent = IQL(OBS, ACTION, IQLConfig(hidden_dims=(8, 8), actor_layer_norm=True), seeds=own)
        elif kind == "cql":
            agent = CQL(OBS, ACTION, CQLConfig(hidden_dims=(8,)), seeds=own)
        else:
            agent = TD3BC(OBS, ACTION, TD3BCConfig(hidden_dims=(8, 4)), seeds=own)
        agent.seeds = seeds
        agent.set_normalizer(np.array([0.5, 0.0, -1.0]), np.array([2.0, 1.0, 0.1]))
        made.append(agent)
    return made[0], made[1]


@pytest.mark.parametrize("kind", ["iql", "cql", "td3_bc"])
def test_the_ends_of_the_line_are_the_two_policies(kind: str) -> None:
    first, second = pair(kind)
    line = Line(first, second, seeds=(0, 1), shares=[0.0, 0.5, 1.0], names=NAMES)
    obs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    actions = line.act(np.tile(obs, (3, 1, 1))).reshape(3, 2, 5, 2)
    np.testing.assert_allclose(actions[0], first.act(obs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actions[2], second.act(obs), rtol=1e-5, atol=1e-6)
    assert not np.allclose(actions[1], actions[0])
    with torch.no_grad():  # the same parameters, put into an agent
        for own, other in zip(first.networks.actor.parameters(), second.networks.actor.parameters(), strict=True):
            own.copy_(0.5 * own + 0.5 * other)
    np.testing.assert_allclose(actions[1], first.act(obs), rtol=1e-4, atol=1e-5)


def test_seeds_are_paired_by_number_not_by_place() -> None:
    first, second = pair("iql", (4, 7, 9))
    second.seeds = (9, 4, 7)
    line = Line(first, second, seeds=(9,), shares=[0.0, 1.0], names=NAMES)
    obs = np.ones((3, 1, 3), np.float32)
    actions = line.act(np.ones((2, 1, 3), np.float32))
    np.testing.assert_allclose(actions[0], first.act(obs)[2], rtol=1e-5)
    np.testing.assert_allclose(actions[1], second.act(obs)[0], rtol=1e-5)


def test_what_has_no_line_between_is_refused_with_the_cause() -> None:
    first, second = pair("iql")
    second.set_normalizer(np.zeros(3), np.ones(3))
    with pytest.raises(CheckpointError, match="a and b normalise observations differently"):
        Line(first, second, seeds=(0,), shares=[0.0, 1.0], names=NAMES)
    with pytest.raises(CheckpointError, match=r"a \(iql\) and b \(td3_bc\) have other shapes"):
        Line(first, pair("td3_bc")[1], seeds=(0,), shares=[0.0, 1.0], names=NAMES)
    box = gym.spaces.Box(-1, 1, (2,), np.float32)
    narrow = IQL(OBS, box, IQLConfig(hidden_dims=(8, 8), actor_layer_norm=True), seeds=(0, 1))
    narrow.set_normalizer(np.array([0.5, 0.0, -1.0]), np.array([2.0, 1.0, 0.1]))
    with pytest.raises(CheckpointError, match="other action boxes"):
        Line(first, narrow, seeds=(0,), shares=[0.0, 1.0], names=NAMES)


def test_every_environment_runs_the_same_number_of_episodes() -> None:
    for episodes in (2, 7, 20, 50):
        for members in (3, 33, 110, 1000):
            envs = _envs(episodes, members)
            assert episodes % envs == 0
            assert envs == 1 or envs * members <= 256
