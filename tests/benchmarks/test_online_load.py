"""The load of the online loop: every number of the report comes from the loop itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from o2o_smooth.benchmarks.online_load import Load, online_load
from o2o_smooth.errors import ConfigError, EnvError

TINY: dict[str, Any] = {"task": "Pendulum-v1", "width": 8, "batch_size": 8, "warmup_updates": 4, "seconds": 0.2}


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_report(overlap: str) -> None:
    report = online_load(members=2, num_envs=3, utd=2.0, overlap=overlap, **TINY)
    assert set(Load.__dataclass_fields__) < set(report)
    assert (report["members"], report["num_envs"], report["device"]) == (2, 3, "cpu")
    assert report["overlaps"] == (overlap == "on")
    assert report["seconds"] >= 0.2
    assert 0.0 < report["learner_share"] < 1.0
    # Two updates of both members for every step of one member's environments, and nothing of the warm-up.
    assert report["updates_per_s"] == pytest.approx(2.0 * report["env_steps_per_s"] / 2)


def test_environments_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(EnvError, match="envpool does not step"):
        online_load(**TINY, vectorizer="envpool")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' is not there"):
            online_load(device="cuda", **TINY)


@pytest.mark.slow
def test_command_prints_json() -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "members": 1}.items()]
    command = [sys.executable, "-m", "o2o_smooth.benchmarks.online_load", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert json.loads(done.stdout)["env_steps_per_s"] > 0
