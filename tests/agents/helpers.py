"""Small agents and hand-made batches."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.data.batch import Batch, as_batch

OBS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACT = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


def make_agent(name: str, online: str | None = None, *, seeds: tuple[int, ...] = (3, 8), **settings: Any) -> Agent:
    """A small float64 agent, its targets moved away from its networks so that mixing them up shows."""
    cls = AGENTS[name]
    config = cls.config_class(**{"hidden_dims": (5, 4), **settings})
    agent = cls(OBS, ACT, config, online=online, seeds=seeds).double()
    for m, seed in enumerate(seeds):
        rng = torch.Generator().manual_seed(1000 + seed)
        for net in (agent.networks.target_critic, agent.networks.target_actor):
            if net is not None:
                for parameter in net.parameters():
                    draw = torch.empty(parameter.shape[1:], dtype=torch.float64).normal_(generator=rng)
                    parameter.data[m] += 0.1 * draw
        if agent.networks.log_alpha is not None:
            agent.networks.log_alpha.data[m] -= 0.3 * m
        if agent.networks.log_multiplier is not None:
            agent.networks.log_multiplier.data[m] += 0.2 * m
    return agent


def three_rows(members: int = 2, dtype: torch.dtype = torch.float64) -> Batch:
    """Three rows: an ordinary step, a terminated one, a truncated one. An action sits on the bound."""
    rng = np.random.default_rng(7)
    rows = {
        "obs": rng.normal(size=(members, 3, 3)),
        "action": np.tile([[0.3, -0.7], [1.0, 0.1], [-0.4, 0.9]], (members, 1, 1)),
        "reward": np.tile([0.5, -1.0, 2.0], (members, 1)),
        "next_obs": rng.normal(size=(members, 3, 3)),
        "terminated": np.tile([0.0, 1.0, 0.0], (members, 1)),
        "truncated": np.tile([0.0, 0.0, 1.0], (members, 1)),
        "mc_return": np.tile([0.2, -1.0, 0.0], (members, 1)),
    }
    return as_batch(rows, members=members, dtype=dtype)
