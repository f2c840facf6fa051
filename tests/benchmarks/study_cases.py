"""A suite of seconds, for tests of studies."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.benchmarks.suite import Suite, read_suite

TEXT = """
name = "tiny"

[protocol]
seeds = [0, 1]
offline_updates = 4
online_steps = 90
ramp_steps = 40
eval_every = 60
eval_episodes = 1
switch_episodes = 1
eval_envs = 1
batch_size = 8
hidden_dims = [8, 8]
audit = false
parity_check = false

[[tasks]]
task = "corridor-mixed-v0"
dataset = "DATA"

[[agents]]
agent = "td3_bc"

[[arms]]
name = "jump"
schedule = "jump"
regime = "mixed"

[[arms]]
name = "linear, mixed"
schedule = "linear"
regime = "mixed"
"""


def dataset(folder: Path) -> Path:
    """Random rows that fit the Corridor."""
    rng, n, path = np.random.default_rng(0), 300, folder / "rows.npz"
    np.savez(
        path,
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-0.9, 0.9, (n, 2)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.arange(n) % 30 == 29,
        truncated=np.zeros(n, bool),
    )
    return path


def suite(text: str = TEXT, *, data: Path | None = None) -> Suite:
    """The suite of a text; without data the task's own."""
    text = text.replace('dataset = "DATA"', "" if data is None else f'dataset = "{data}"')
    content: dict[str, Any] = tomllib.loads(text)
    return read_suite(content, where="tiny.toml", text=text)
