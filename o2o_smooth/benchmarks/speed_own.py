"""What `speed_worker` times of this package: the learner with its sampling, and the machine's matmul."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.config import AgentConfig
from o2o_smooth.benchmarks.speed_worker import Advance
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.compiling import decide
from o2o_smooth.training.graphed import GraphedLearner

CHUNK_ROWS = 250_000
LONG_RUN = 1_000_000  # updates; compiling has the time to pay, if it ever does


def make(configuration: Mapping[str, Any]) -> Advance:
    """Build what a configuration names: kind "update" or "matmul"."""
    torch.set_num_threads(int(configuration["threads"]))
    if configuration["kind"] == "matmul":
        return _matmul(str(configuration["precision"]), int(configuration["size"]), str(configuration["device"]))
    learner = make_learner(configuration)
    device = torch.device(str(configuration["device"]))

    def advance(n: int) -> int:
        learner.offline_updates(n)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return n

    return advance


def agent_config(name: str, hidden_dims: tuple[int, ...]) -> AgentConfig:
    """An agent's default settings with other widths.

    Raises:
        ConfigError: An unknown agent.
    """
    if name not in AGENTS:
        raise ConfigError(f"there is no agent '{name}'; there are {', '.join(AGENTS)}")
    return dataclasses.replace(AGENTS[name].config_class(), hidden_dims=hidden_dims)


def make_learner(configuration: Mapping[str, Any]) -> GraphedLearner:
    """A learner over made-up rows, on CUDA with graphs.

    Raises:
        ConfigError: An unknown agent, or a precision that cannot be had.
    """
    name, device = str(configuration["agent"]), str(configuration["device"])
    obs_dim, action_dim = int(configuration["obs_dim"]), int(configuration["action_dim"])
    members = int(configuration["members"])
    config = agent_config(name, tuple(configuration["hidden_dims"]))
    agent = AGENTS[name](
        gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32),
        config,
        seeds=tuple(range(members)),
        device=device,
        precision=configuration["precision"],
        compile=decide(configuration["compile"], torch.device(device), LONG_RUN),
    )
    rows = random_rows(int(configuration["rows"]), members, obs_dim, action_dim, device=device)
    return GraphedLearner(agent, batch_size=int(configuration["batch"]), offline_rows=rows)


def random_rows(rows: int, members: int, obs_dim: int, action_dim: int, *, device: str = "cpu") -> ReplayBuffer:
    """A full buffer of standard normal observations and rewards, shared by all members."""
    buffer = ReplayBuffer(members, rows, obs_dim, action_dim, device=device, shared=True)
    generator = np.random.default_rng(0)
    for begin in range(0, rows, CHUNK_ROWS):
        n = min(CHUNK_ROWS, rows - begin)
        normal = generator.standard_normal((n, 2 * obs_dim + 1), dtype=np.float32)
        uniform = generator.random((n, action_dim + 1), dtype=np.float32)
        ended = uniform[:, -1] < 1e-3
        columns = pack(
            normal[:, :obs_dim],
            2 * uniform[:, :-1] - 1,
            normal[:, -1],
            normal[:, obs_dim:-1],
            ended,
            np.zeros_like(ended),
            np.zeros(n, np.float32),
        )
        buffer.add(columns[None])
    return buffer


def _matmul(precision: str, size: int, device: str) -> Advance:
    """Square products of one size; an "update" is one product."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    generator = torch.Generator(device=device).manual_seed(0)
    a, b = (torch.empty(size, size, device=device).normal_(generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)

    def advance(n: int) -> int:
        for _ in range(n):
            torch.mm(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        return n

    return advance
