"""Components that stand still for some members, and what adds to an update's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.kernels.cpu import unavailable
from o2o_smooth.smoothing.anchors import Anchors, Decay
from o2o_smooth.smoothing.objective import Mix
from tests.agents.helpers import ACT, OBS, make_agent, three_rows

MIXES = [Mix.uniform(0.0, 2), Mix.uniform(1.0, 2), Mix.uniform(0.3, 2), Mix.uniform(0.3, 2, "matched")]


def everything(agent: Agent) -> dict[str, Tensor]:
    """Networks, moments and step counts."""
    tensors = {**agent.networks.state_dict(), **agent.optimizer.state_tensors()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("mix", MIXES, ids=["offline", "online", "mixed", "matched"])
@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("cql", "sac"), ("td3_bc", "td3"), ("iql", "td3")])
def test_a_member_that_is_frozen_does_not_move_and_the_rest_does_as_ever(name: str, online: str, mix: Mix) -> None:
    free, half, still = (make_agent(name, online) for _ in range(3))
    half.frozen = {"actor": np.array([True, False])}
    still.frozen = {"actor": np.array([True, True])}
    for agent in (free, half, still):  # moments of their own
        frozen, agent.frozen = agent.frozen, {}
        agent.update(three_rows(), mix=mix)
        agent.update(three_rows(), mix=mix)
        agent.frozen = frozen
    before = everything(free)
    for agent in (free, half, still):
        agent.update(three_rows(), mix=mix)
        if online == "td3":
            agent.update(three_rows(), mix=mix)  # in which the actor is due
    after = [everything(agent) for agent in (free, half, still)]
    moved = 0
    for key, value in after[0].items():
        own = key.startswith("actor.")
        if key.startswith(("obs_", "action_", "target_actor")):
            continue
        torch.testing.assert_close(after[1][key][0], after[2][key][0], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(after[1][key][1], after[0][key][1], rtol=1e-12, atol=1e-15)
        if own:
            assert torch.equal(after[2][key], before[key]), key
            moved += not torch.equal(value, before[key])
        else:
            torch.testing.assert_close(after[2][key], value, rtol=1e-12, atol=1e-15)
    assert moved > 8


def test_a_component_that_all_freeze_is_not_even_computed() -> None:
    agent = make_agent("iql", "sac")
    agent.frozen = dict.fromkeys(("actor", "temperature"), np.ones(2, bool))
    info = agent.update(three_rows(), mix=Mix.uniform(1.0, 2))
    assert "critic/loss" in info
    assert not any(name.startswith(("actor/", "temperature/")) for name in info)
    agent.frozen = {}
    assert "actor/loss" in agent.update(three_rows(), mix=Mix.uniform(1.0, 2))


@pytest.mark.parametrize("mode", ["loss", "matched"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_pull_adds_to_the_gradients_of_one_update_alone(mode: Any, dtype: str) -> None:
    """In float32 gradients lie in memory that is kept from update to update."""
    agents = []
    for _ in range(2):
        agent = make_agent("iql", "sac")
        if dtype == "float32":
            cls = type(agent)
            agent = cls(OBS, ACT, agent.config, online="sac", seeds=(3, 8))
        agents.append(agent)
    rows = three_rows(dtype=getattr(torch, dtype))
    mix = Mix.uniform(0.5, 2, mode)
    seen: list[set[str]] = []

    def pull(moving: Mapping[str, Any]) -> Mapping[str, Tensor]:
        seen.append(set(moving))
        gradients.clear()
        for p in agents[0].networks.actor.parameters():
            assert p.grad is not None
            gradients.append(p.grad.clone())
            p.grad.mul_(-1.0)
        return {"anchor/test": torch.ones(2)}

    gradients: list[Tensor] = []
    agents[0].pull = pull
    infos = [agent.update(rows, mix=mix) for agent in agents]
    assert set(infos[0]) - set(infos[1]) == {"anchor/test"}
    assert seen == [{"actor", "critic", "value", "temperature"}]
    for mine, theirs, gradient in zip(
        agents[0].optimizer.first["actor"], agents[1].optimizer.first["actor"], gradients, strict=True
    ):
        torch.testing.assert_close(mine, -theirs)
        assert gradient.abs().max() > 0
    for name in ("critic", "value"):
        for mine, theirs in zip(agents[0].optimizer.first[name], agents[1].optimizer.first[name], strict=True):
            assert torch.equal(mine, theirs)
    agents[0].pull = None
    agents[0].networks.load_state_dict(agents[1].networks.state_dict())
    for agent in agents:
        agent.optimizer.reset(agent.optimizer.components)
        agent.update(rows, mix=mix)
    for mine, theirs in zip(agents[0].optimizer.first["actor"], agents[1].optimizer.first["actor"], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("td3_bc", "td3"), ("cql", "sac")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_updates_from_a_tape_are_pulled_as_plain_ones(name: str, online: str, precision: Any) -> None:
    """The tape's memory is written anew by every update; what was added to it stays with the one before."""
    made = []
    for replay in (True, False):
        agent = AGENTS[name](
            OBS, ACT, AGENTS[name].config_class(hidden_dims=(5, 4)), online=online, seeds=(3, 8), precision=precision
        )
        agent.replay = replay
        anchors = Anchors(agent.networks, kl=Decay(0.5), l2=0.1, parts="all")
        rows = three_rows(dtype=torch.float32)
        agent.pull = partial(lambda a, o, moving: a.pull(0, moving.keys(), online_obs=o), anchors, rows.obs)
        infos = []
        for step in range(10):
            agent.frozen = {"actor": np.array([True, step < 2])} if step < 4 else {}
            infos.append(agent.update(rows, mix=Mix.uniform(1.0 if step > 7 else 0.4, 2)))
        tensors = [{key: value.tolist() for key, value in info.items()} for info in infos]
        made.append((everything(agent), tensors))
        assert bool(agent._tapes.count()) == (replay and unavailable() is None)
    assert made[0][1] == made[1][1]
    assert any("actor/anchor_kl" in info for info in made[0][1])
    for key, value in made[0][0].items():
        assert torch.equal(value, made[1][0][key]), key
