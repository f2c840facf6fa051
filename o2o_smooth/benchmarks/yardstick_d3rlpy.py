"""d3rlpy's learners as a yardstick: its own replay buffer, batch assembly and update, as its `fit` calls them.

Runs wherever d3rlpy is installed, also without this package: `python speed_worker.py yardstick_d3rlpy.py`, or alone:

    python yardstick_d3rlpy.py iql          updates per second of IQL

Settings are d3rlpy's defaults but for the widths, the batch size and, for CQL, equal numbers of sampled actions. What
its `fit` does besides (progress bar, timers, log files) is left out, in its favour.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

AGENTS = ("iql", "cql", "td3_bc")


def make(configuration: dict[str, Any]) -> Callable[[int], int]:
    """A learner for {agent, threads, hidden_dims, batch, rows, obs_dim, action_dim}; see speed_worker."""
    import d3rlpy
    import numpy as np
    import torch

    if configuration["agent"] not in AGENTS:
        raise ValueError(f"d3rlpy has no {configuration['agent']} to compare with")
    torch.set_num_threads(int(configuration["threads"]))
    rows, obs_dim, action_dim = (int(configuration[key]) for key in ("rows", "obs_dim", "action_dim"))
    generator = np.random.default_rng(0)
    ends = np.zeros(rows, np.float32)
    ends[999::1000] = 1.0
    ends[-1] = 1.0
    dataset = d3rlpy.dataset.MDPDataset(
        generator.standard_normal((rows, obs_dim), dtype=np.float32),
        generator.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        generator.standard_normal((rows, 1), dtype=np.float32),
        terminals=ends,
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )
    batch = int(configuration["batch"])
    encoder = d3rlpy.models.VectorEncoderFactory(list(configuration["hidden_dims"]))
    shared = {"batch_size": batch, "actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    config: Any
    if configuration["agent"] == "iql":
        config = d3rlpy.algos.IQLConfig(**shared, value_encoder_factory=encoder)
    elif configuration["agent"] == "cql":
        config = d3rlpy.algos.CQLConfig(**shared, n_action_samples=10)
    else:
        config = d3rlpy.algos.TD3PlusBCConfig(**shared)
    learner = config.create(device=configuration.get("device", "cpu"))
    learner.build_with_dataset(dataset)

    def advance(n: int) -> int:
        for _ in range(n):
            learner.update(dataset.sample_transition_batch(batch))  # the losses come back as floats: it has waited
        return n

    return advance


def _alone(agent: str) -> None:
    widths = [256] * (3 if agent == "cql" else 2)
    sizes = {"hidden_dims": widths, "batch": 256, "rows": 100_000, "obs_dim": 17, "action_dim": 6}
    advance = make({"agent": agent, "threads": os.cpu_count() or 1, **sizes})
    advance(4)
    begin = time.perf_counter()
    done = advance(40)
    print(f"{agent}: {done / (time.perf_counter() - begin):.1f} updates/s")


if __name__ == "__main__" and len(sys.argv) > 1 and sys.argv[1] in AGENTS:
    _alone(sys.argv[1])
