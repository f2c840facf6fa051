"""The numpy policy acts as the torch policy does, and sees every change of the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.agents import mirror as mirror_module
from o2o_smooth.agents.mirror import Mirror
from tests.agents.helpers import OBS

WIDE = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32))
PAIRS = [(name, online) for name, cls in AGENTS.items() for online in cls.online_choices]


def small(name: str, online: str | None = None, *, members: int = 3, **settings: Any) -> Agent:
    """A float32 agent whose every parameter, norms and normaliser too, is away from its start."""
    cls = AGENTS[name]
    agent = cls(
        OBS, WIDE, cls.config_class(**{"hidden_dims": (7, 6), **settings}), online=online, seeds=tuple(range(members))
    )
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.networks.actor.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(generator=rng), alpha=0.3)
    agent.set_normalizer(np.array([0.5, -1.0, 2.0]), np.array([2.0, 0.5, 3.0]))
    return agent


def observations(members: int, rows: int = 4) -> NDArray[np.float32]:
    return (3.0 * np.random.default_rng(0).normal(size=(members, rows, 3))).astype(np.float32)


def by_torch(agent: Agent, obs: NDArray[np.float32], *, deterministic: bool) -> NDArray[np.float32]:
    """The same through tensors, which the mirror does not take."""
    return agent.act(torch.from_numpy(obs), deterministic=deterministic, step=5).numpy()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the mirror."""
    seen: list[int] = []
    original = Mirror.act

    def spy(self: Mirror, obs: NDArray[np.float32], noise: NDArray[np.float32] | None) -> NDArray[np.float32]:
        seen.append(obs.shape[1])
        return original(self, obs, noise)

    monkeypatch.setattr(Mirror, "act", spy)
    return seen


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_mirror_acts_as_torch_does(name: str, online: str, layer_norm: bool, calls: list[int]) -> None:
    agent = small(name, online, actor_layer_norm=layer_norm)
    obs = observations(3)
    for deterministic in (True, False):
        action = agent.act(obs, deterministic=deterministic, step=5)
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, by_torch(agent, obs, deterministic=deterministic), rtol=0, atol=2e-6)
    assert calls == [4, 4]
    explored = agent.act(obs, deterministic=False, step=5)
    assert (np.abs(explored - agent.act(obs)) > 1e-4).any()  # it does explore
    assert ((explored >= WIDE.low) & (explored <= WIDE.high)).all()


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (1, 5, 3)])
def test_every_shape_of_observations(shape: tuple[int, ...], calls: list[int]) -> None:
    agent = small("iql", members=1)
    obs = np.random.default_rng(2).normal(size=shape)  # float64, as environments may give
    action = agent.act(obs)
    assert action.shape == (*shape[:-1], 2)
    np.testing.assert_allclose(action, agent.act(torch.from_numpy(obs)).numpy(), rtol=0, atol=2e-6)
    assert len(calls) == 1


def test_exploration_noise_may_differ_between_members(calls: list[int]) -> None:
    overrides = [{"exploration_noise": noise} for noise in (0.0, 0.1, 0.9)]
    cls = AGENTS["td3_bc"]
    agent = cls(OBS, WIDE, cls.config_class(hidden_dims=(7, 6)), seeds=(0, 1, 2), overrides=overrides)
    obs = observations(3)
    explored = agent.act(obs, deterministic=False, step=5)
    np.testing.assert_allclose(explored, by_torch(agent, obs, deterministic=False), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(explored[0], agent.act(obs)[0])
    assert len(calls) == 2


def update(agent: Agent) -> None:
    rng = np.random.default_rng(3)
    flags = np.zeros((2, 6), np.bool_)
    agent.update(
        {
            "obs": rng.normal(size=(2, 6, 3)),
            "action": rng.uniform(WIDE.low, WIDE.high, (2, 6, 2)),
            "reward": rng.normal(size=(2, 6)),
            "next_obs": rng.normal(size=(2, 6, 3)),
            "terminated": flags,
            "truncated": flags,
        }
    )


def replace_storage(agent: Agent) -> None:
    for parameter in agent.networks.actor.parameters():
        parameter.data = parameter.data + 0.5


def new_normalizer(agent: Agent) -> None:
    agent.set_normalizer(np.zeros(3), np.full(3, 0.1))


def load_state(agent: Agent) -> None:
    other = small("sac", members=2)
    with torch.no_grad():
        other.networks.actor.net.weights[0].mul_(-1.0)
    agent.networks.load_state_dict(other.networks.state_dict())


def new_networks(agent: Agent) -> None:
    agent.networks.actor = copy.deepcopy(agent.networks.actor)
    with torch.no_grad():
        agent.networks.actor.net.weights[1].mul_(-1.0)


@pytest.mark.parametrize("change", [update, replace_storage, new_normalizer, load_state, new_networks])
def test_mirror_sees_every_change(change: Callable[[Agent], None], calls: list[int]) -> None:
    agent = small("sac", members=2, actor_lr=0.1)
    obs = observations(2)
    before = agent.act(obs)
    change(agent)
    after = agent.act(obs)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, by_torch(agent, obs, deterministic=True), rtol=0, atol=2e-6)
    assert len(calls) == 2


def test_loaded_and_copied_agents_act_alike_and_apart(tmp_path: Path, calls: list[int]) -> None:
    agent = small("td3", members=2)
    obs = observations(2)
    loaded = AGENTS["td3"].load(agent.save(tmp_path / "agent"))
    twin = copy.deepcopy(agent)
    before = agent.act(obs)
    np.testing.assert_array_equal(loaded.act(obs), before)
    np.testing.assert_array_equal(twin.act(obs), before)
    with torch.no_grad():
        twin.networks.actor.net.biases[-1].add_(1.0)
    np.testing.assert_array_equal(agent.act(obs), before)
    assert (twin.act(obs) > before).all()
    assert len(calls) == 5


def test_float64_agents_act_through_torch(calls: list[int]) -> None:
    agent = small("iql", members=2)
    obs = observations(2)
    single = agent.act(obs)
    double = agent.double().act(obs)
    np.testing.assert_allclose(double, single, rtol=0, atol=2e-6)
    assert calls == [4]  # the first alone


def test_the_way_depends_on_shapes_alone(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "MAX_PRODUCTS", 7 * 6 * 10)
    agent = small("iql", members=2)
    for rows in (10, 11, 10):
        obs = observations(2, rows)
        np.testing.assert_allclose(agent.act(obs), by_torch(agent, obs, deterministic=True), rtol=0, atol=2e-6)
    assert calls == [10, 10]


def test_an_exploration_of_ones_own_goes_through_torch(calls: list[int]) -> None:
    agent = small("td3_bc", members=2)

    class Timid(type(agent.online)):  # type: ignore[misc]
        def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
            return torch.zeros_like(noise)

    agent.online.__class__ = Timid
    obs = observations(2)
    np.testing.assert_allclose(
        agent.act(obs, deterministic=False), np.broadcast_to((WIDE.low + WIDE.high) / 2, (2, 4, 2))
    )
    assert calls == []
    agent.act(obs)
    assert calls == [4]  # the mode is the mirror's all the same


def test_noise_counts_on_through_the_mirror() -> None:
    agent, other = small("sac", members=2), small("sac", members=2)
    obs = observations(2)
    for step in range(3):
        np.testing.assert_array_equal(
            agent.act(obs, deterministic=False), other.act(obs, deterministic=False, step=step)
        )
    assert (agent.acts, other.acts) == (3, 0)
