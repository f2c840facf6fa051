"""Agents on the line between two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import Agent
from o2o_smooth.agents.interpolate import interpolate
from o2o_smooth.agents.storage import take_members
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import Mix
from tests.agents.helpers import make_agent, three_rows


def trained(agent: Agent) -> Agent:
    """Another agent, some steps on."""
    other = take_members(agent, range(agent.members))
    for _ in range(3):
        other.update(three_rows(), mix=Mix.uniform(1.0, agent.members))
    return other


def state(agent: Agent) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().numpy().copy() for name, tensor in agent.networks.state_dict().items()}


@pytest.mark.parametrize("name", ["iql", "cql", "td3_bc", "sac"])
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0, [0.2, 0.9]])
def test_every_tensor_lies_on_the_line_and_the_ends_are_the_agents(name: str, a: float | list[float]) -> None:
    first = make_agent(name)
    second = trained(first)
    before = state(first), state(second)
    found = state(interpolate(first, second, a))
    share = np.broadcast_to(np.asarray(a, np.float64), (2,))
    assert found.keys() == before[0].keys()
    moved = 0
    for key, value in found.items():
        x, y = before[0][key], before[1][key]
        if key.startswith(("obs_", "action_")):
            np.testing.assert_array_equal(value, x)
            continue
        weight = share.reshape(-1, *[1] * (x.ndim - 1))
        np.testing.assert_allclose(value, (1 - weight) * x + weight * y, rtol=1e-12, atol=1e-15)
        moved += not np.array_equal(x, y)
        if a in (0.0, 1.0):
            np.testing.assert_array_equal(value, y if a else x)
    assert moved > 6
    for agent, values in zip((first, second), before, strict=True):  # a pure function
        for key, value in state(agent).items():
            np.testing.assert_array_equal(value, values[key])


def test_it_acts_as_its_parameters_say_and_its_optimiser_is_fresh() -> None:
    first = make_agent("iql")
    second = trained(first)
    obs = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 5, 3)))
    assert torch.equal(interpolate(first, second, 1.0).act(obs), second.act(obs))
    half = interpolate(second, first, 0.5)
    assert not torch.equal(half.act(obs), second.act(obs))
    assert second.optimizer.steps["actor"].any()
    assert not any(steps.any() for steps in half.optimizer.steps.values())
    assert not any(moment.any() for moments in half.optimizer.first.values() for moment in moments)
    assert (half.updates, half.seeds) == (second.updates, second.seeds)


def test_a_whole_sweep_is_one_agent() -> None:
    first = make_agent("td3_bc")
    second = trained(first)
    a, b = (take_members(agent, [1, 1, 1]) for agent in (first, second))
    sweep = interpolate(a, b, np.linspace(0, 1, 3))
    obs = np.random.default_rng(0).normal(size=(3, 4, 3))
    acted = sweep.act(torch.as_tensor(obs))
    for i, share in enumerate((0.0, 0.5, 1.0)):
        alone = interpolate(first, second, share).act(torch.as_tensor(obs[[i, i]]))
        torch.testing.assert_close(acted[i], alone[1], rtol=1e-12, atol=1e-14)


def test_what_only_one_of_them_has_does_not_stand_in_the_way() -> None:
    sac, td3 = make_agent("iql", "sac"), make_agent("iql", "td3")
    found = interpolate(sac, td3, 0.5)
    assert found.networks.log_alpha is not None
    assert sac.networks.log_alpha is not None
    assert torch.equal(found.networks.log_alpha, sac.networks.log_alpha)
    assert interpolate(td3, sac, 0.5).networks.log_alpha is None


def test_agents_that_do_not_fit_are_refused() -> None:
    agent = make_agent("iql")
    shifted = make_agent("iql")
    shifted.set_normalizer(np.ones(3), np.ones(3))
    for other, a, words in (
        (make_agent("cql"), 0.5, "between an iql and an cql"),
        (make_agent("iql", hidden_dims=(5, 5)), 0.5, "networks differ in 'actor.net.weights.1'"),
        (make_agent("iql", seeds=(1,)), 0.5, "2 and 1 members"),
        (shifted, 0.5, "observation normaliser"),
        (agent, [0.1, 0.2, 0.3], r"2 \(one per member\)"),
        (agent, float("nan"), "must be a number"),
    ):
        with pytest.raises(ConfigError, match=words):
            interpolate(agent, other, a)
