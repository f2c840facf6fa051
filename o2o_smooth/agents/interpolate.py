"""Agents on the straight line between two others: the WiSE-FT sweep, and whether there is a valley on the way."""

from __future__ import annotations

import numpy as np
import torch

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.storage import OPTIONAL, SHARED, take_members
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.averaging import Share, between


def interpolate(agent_a: Agent, agent_b: Agent, a: Share) -> Agent:
    """The agent with the parameters (1 - a) A + a B, of all networks and the log temperature; A and B stay as they are.

    At a = 0 its parameters are exactly A's, at a = 1 exactly B's. Counters, seeds and settings are A's, the optimiser
    is fresh. What only one of the two has, because their online objectives differ, is A's or absent.

    A whole sweep is one agent: `interpolate(take_members(A, [0] * n), take_members(B, [0] * n), np.linspace(0, 1, n))`.

    Args:
        agent_a: M members.
        agent_b: The same kind of agent, with equal networks, action box and observation normaliser.
        a: One for all members, or (M,); outside of [0, 1] the line goes on.

    Raises:
        ConfigError: The two do not fit, or `a` is not a number, or not one per member.

    Source: Wortsman et al. 2022 (arXiv 2109.01903).
    """
    share = np.asarray(a, np.float64)
    if share.shape not in ((), (agent_a.members,)) or not np.isfinite(share).all():
        raise ConfigError(f"a must be a number, or {agent_a.members} (one per member), got {a}")
    if agent_a.name != agent_b.name:
        raise ConfigError(f"there is no line between an {agent_a.name} and an {agent_b.name} agent")
    if agent_a.members != agent_b.members:
        raise ConfigError(f"the agents have {agent_a.members} and {agent_b.members} members; take as many of each")
    own, other = agent_a.networks.state_dict(), agent_b.networks.state_dict()
    for name in SHARED:
        if own[name].shape != other[name].shape or not torch.equal(own[name], other[name].to(own[name])):
            what = "observation normaliser" if name.startswith("obs") else "action box"
            raise ConfigError(f"the agents differ in their {what} ({name}), so their parameters mean different things")
    names = [name for name in {**own, **other} if name not in SHARED]
    for name in names:
        shapes = [tuple(state[name].shape) if name in state else None for state in (own, other)]
        if None in shapes and name.startswith(OPTIONAL):
            continue
        if shapes[0] != shapes[1]:
            raise ConfigError(f"the agents' networks differ in '{name}': {shapes[0]} and {shapes[1]}")
    result = take_members(agent_a, range(agent_a.members))
    line = result.networks.state_dict()
    for name in names:
        if name in own and name in other:
            line[name].copy_(between(own[name], other[name].to(own[name]), share))
    result.optimizer.reset(result.optimizer.components)
    return result
