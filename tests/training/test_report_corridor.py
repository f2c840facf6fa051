"""The negative case of the Corridor: smoothing only postpones the drop, and the report says so in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.page import sentences
from o2o_smooth.training.config import default_config
from o2o_smooth.training.population import run_population
from o2o_smooth.training.report_runs import read_runs


@pytest.mark.slow
def test_the_report_says_that_smoothing_on_narrow_data_only_postpones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IQL -> SAC: no row of these data shows what the faster policy meets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    shared = {"seeds": [0, 1, 2], "threads": 1, "offline_eval_every": 0, "save_online": False, "regime": "retain"}
    shared |= {"online_steps": 2000, "eval_every": 200, "eval_episodes": 10}  # twice the ramp
    arms = {"jump": "jump", "linear": "linear:1000"}
    folders = run_population(
        [
            default_config(
                "corridor-narrow-v0", "iql", "corridor", {**shared, "schedule": schedule, "out": str(tmp_path / name)}
            )
            for name, schedule in arms.items()
        ]
    )
    found = compare(read_runs([(None, folder) for folder in folders]).arms)
    happened, changed, unknown = sentences(found)
    assert happened.startswith("jump dropped on 3 of 3 seeds")
    assert changed.startswith("Against jump: linear only postponed the dip: it was not smaller")
    assert "steps later, on 3 of 3 seeds" in changed
    assert "an A/A pair" in unknown
