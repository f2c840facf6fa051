"""The limit's FLOPs, against the issue's figures and against torch's own count of plain implementations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from o2o_smooth.agents import CQLConfig, IQLConfig, SACConfig, TD3BCConfig, TD3Config, TD3ObjectiveConfig
from o2o_smooth.agents.config import AgentConfig
from o2o_smooth.benchmarks.speed_limit import Net, useful_flops
from o2o_smooth.errors import ConfigError

HALF_CHEETAH = {"obs_dim": 17, "action_dim": 6, "batch": 256}
OBS, ACT, ROWS, HIDDEN = 5, 3, 8, (16, 12)
Q = Net((OBS + ACT, *HIDDEN, 1))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    sizes = (inputs, *HIDDEN, outputs)
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Counted:
    """Networks of two critics on random rows; counts the FLOPs of what happens inside."""

    def __init__(self, actor_outputs: int) -> None:
        self.q = [mlp(OBS + ACT, 1) for _ in range(2)]
        self.target = [mlp(OBS + ACT, 1).requires_grad_(False) for _ in range(2)]
        self.v, self.actor, self.target_actor = mlp(OBS, 1), mlp(OBS, actor_outputs), mlp(OBS, actor_outputs)
        self.obs, self.next_obs, self.action = torch.randn(ROWS, OBS), torch.randn(ROWS, OBS), torch.randn(ROWS, ACT)

    def both(self, critics: list[nn.Sequential], obs: Tensor, action: Tensor) -> Tensor:
        return torch.stack([critic(torch.cat([obs, action], -1)) for critic in critics])

    def critic_loss(self, target: Tensor) -> Tensor:
        return (self.both(self.q, self.obs, self.action) - target).square().sum()

    def frozen(self) -> None:
        for critic in self.q:
            critic.requires_grad_(False)


def count(loss: object) -> int:
    with FlopCounterMode(display=False) as counter:
        loss().backward()  # type: ignore[operator]
    return int(counter.get_total_flops())


def useful(config: AgentConfig) -> float:
    return useful_flops(replace(config, hidden_dims=HIDDEN), obs_dim=OBS, action_dim=ACT, batch=ROWS)


@pytest.mark.parametrize(
    ("config", "gflop"),
    [(IQLConfig(), 0.535), (TD3BCConfig(), 0.41), (CQLConfig(hidden_dims=(256, 256, 256)), 13.2)],
)
def test_at_half_cheetah_sizes(config: AgentConfig, gflop: float) -> None:
    assert useful_flops(config, **HALF_CHEETAH) * 1e-9 == pytest.approx(gflop, rel=0.01)


def test_iql_needs_exactly_what_a_plain_implementation_does() -> None:
    n = Counted(2 * ACT)

    def loss() -> Tensor:
        with torch.no_grad():
            target_q, y = n.both(n.target, n.obs, n.action).amin(0), n.v(n.next_obs)
        v, policy = n.v(n.obs), n.actor(n.obs)
        loss: Tensor = (target_q - v).square().sum() + n.critic_loss(y) + policy.square().sum()
        return loss

    assert useful(IQLConfig()) == count(loss)


def test_td3_bc_needs_a_plain_implementation_without_the_states_gradient() -> None:
    n = Counted(ACT)

    def critic() -> Tensor:
        with torch.no_grad():
            y = n.both(n.target, n.next_obs, n.target_actor(n.next_obs))
        return n.critic_loss(y)

    def actor() -> Tensor:
        n.frozen()
        q: Tensor = n.q[0](torch.cat([n.obs, n.actor(n.obs)], -1))
        return q.sum()

    every, second = count(critic), count(actor)
    second -= 2 * ROWS * OBS * HIDDEN[0]  # torch also asks for the gradient of the state beside the action
    assert useful(TD3BCConfig()) == every + second / 2
    assert useful(TD3Config(td3=TD3ObjectiveConfig(actor_delay=1))) == every + second


def sac_loss(n: Counted) -> Tensor:
    mean, _ = n.actor(n.obs).chunk(2, -1)
    with torch.no_grad():
        y = n.both(n.target, n.next_obs, n.actor(n.next_obs)[:, :ACT]).amin(0)
    loss = n.critic_loss(y)
    copies = []
    for critic in n.q:
        copy = mlp(OBS + ACT, 1).requires_grad_(False)
        copy.load_state_dict(critic.state_dict())
        copies.append(copy)
    return loss + n.both(copies, n.obs, mean).amin(0).sum()


def dense_excess() -> int:
    """What `amin` makes torch do: both critics' input gradients, and the state's beside the action's."""
    return 2 * ROWS * (Q.back(OBS + ACT) + OBS * HIDDEN[0])


def test_sac_needs_a_plain_implementation_without_the_larger_critics_gradient() -> None:
    n = Counted(2 * ACT)
    assert useful(SACConfig()) == count(lambda: sac_loss(n)) - dense_excess()


@pytest.mark.parametrize("backup", [False, True])
def test_cql_needs_a_plain_implementation_with_a_shared_first_layer(backup: bool) -> None:
    n, k = Counted(2 * ACT), 4

    def loss() -> Tensor:
        wide = n.obs.expand(3 * k, -1, -1)
        total = sac_loss(n) + n.both(n.q, wide, torch.randn(3 * k, ROWS, ACT)).logsumexp(1).sum()
        if backup:
            n.both(n.target, n.next_obs.expand(k - 1, -1, -1), torch.randn(k - 1, ROWS, ACT))
        return total

    first = 2 * ROWS * OBS * HIDDEN[0]  # of one evaluation; each of 3k has it forward and in the weights' gradient
    shared = 2 * (3 * k * 2 + (k - 1 if backup else 0)) * first
    config = CQLConfig(cql_actions=k, max_target_backup=backup)
    assert useful(config) == count(loss) - dense_excess() - shared


def test_flops_grow_with_rows_and_members() -> None:
    one = useful_flops(IQLConfig(), **HALF_CHEETAH)
    assert useful_flops(IQLConfig(), obs_dim=17, action_dim=6, batch=1024) == 4 * one
    assert useful_flops(IQLConfig(), **HALF_CHEETAH, members=16) == 16 * one


def test_an_agent_without_a_formula_is_named() -> None:
    @dataclass(frozen=True)
    class Mine(AgentConfig):
        pass

    with pytest.raises(ConfigError, match="no FLOP count for Mine"):
        useful_flops(Mine(), **HALF_CHEETAH)
