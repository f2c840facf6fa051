"""After a fault: back to the newest good checkpoint, with other draws for the seed that failed, and not for ever."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import AGENTS
from o2o_smooth.draws import Draws
from o2o_smooth.errors import EnvError
from o2o_smooth.training.config import (
    CheckpointConfig,
    EvaluationConfig,
    FaultConfig,
    RunConfig,
    SmoothingConfig,
    SwitchConfig,
)
from o2o_smooth.training.output import Diverged
from o2o_smooth.training.population import run_population
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.resume import resume
from o2o_smooth.training.rollback import rolled
from o2o_smooth.training.run import run
from tests.envs.spiking import NAN_ID, SPIKE_ID, register_spiking

register_spiking()
ROWS, BATCH, UPDATES, POISON = 2000, 8, 60, 1234


def first_hit(seed: int) -> int | None:
    """The first update whose batch holds the poisoned row, by the draws of a seed."""
    for update in range(UPDATES):
        if bool((Draws([seed]).integers("offline_rows", update, BATCH, ROWS) == POISON).any()):
            return update
    return None


SICK = next(s for s in range(500) if (first_hit(s) or 0) > 20 and first_hit(rolled(s, 1)) is None)
CURSED = next(s for s in range(20_000) if all(first_hit(rolled(s, n)) is not None for n in range(2)))
WELL, WELL_TOO = [s for s in range(50) if first_hit(s) is None][:2]


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the spiking environment, one of them with a reward that no loss survives."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(ROWS + 1, 3)).astype(np.float32)
    reward = rng.normal(size=ROWS).astype(np.float32)
    reward[POISON] = 1e37
    path = tmp_path_factory.mktemp("data") / "poisoned.npz"
    np.savez(
        path,
        observations=obs[:-1],
        actions=rng.uniform(-2, 2, (ROWS, 1)).astype(np.float32),
        rewards=reward,
        next_observations=obs[1:],
        terminated=np.zeros(ROWS, bool),
        truncated=np.arange(ROWS) % 20 == 19,
    )
    return path


def config(data: Path, out: Path, on_nan: Any = "rollback", **changes: Any) -> RunConfig[Any]:
    settings: dict[str, Any] = {
        "task": SPIKE_ID,
        "agent": "td3_bc",
        "dataset": str(data),
        "seeds": (SICK,),
        "offline_updates": UPDATES,
        "online_steps": 0,
        "batch_size": BATCH,
        "log_every": 10,
        "out": str(out),
        "hyper": AGENTS["td3_bc"].config_class(hidden_dims=(8, 8)),
        "smoothing": SmoothingConfig("jump", regime="discard"),
        "evaluation": EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_envs=1, offline_eval_every=10),
        "switch": SwitchConfig(parity_check=False, audit=False, holdout=0.0),
        "checkpoints": CheckpointConfig(checkpoint_every=0.0),
        "faults": FaultConfig(on_nan=on_nan, max_rollbacks=2),
    }
    return RunConfig(**{**settings, **changes})


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def rows(out: Path, seed: int) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    return [row for row in found if row["seed"] == seed]


def test_a_run_rolls_back_and_goes_on_with_other_draws(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    out = run(config(data, tmp_path / "run"), listener)
    told = manifest(out)
    assert told["status"] == "completed"
    assert "fault" not in told
    (rollback,) = told["rollbacks"]
    assert rollback["seed"] == SICK
    assert f"after {first_hit(SICK)} updates" in rollback["what"]
    assert (out / "faults" / f"batch-{first_hit(SICK)}.json").is_file()
    assert [n for n in listener.notes if n.startswith("rollback 1 of 2: training diverged: critic/loss of seed")]
    assert [n for n in listener.notes if "goes on from pretraining" in n]  # and not from the beginning
    assert [row["updates"] for row in rows(out, SICK)] == [10, 20, 30, 40, 50, 60]


def test_a_seed_that_keeps_failing_stops_after_the_last_rollback(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    faults = FaultConfig(on_nan="rollback", max_rollbacks=1)
    with pytest.raises(Diverged, match=r"after 1 rollback, --max-rollbacks 1"):
        run(config(data, tmp_path / "run", seeds=(CURSED,), faults=faults), listener)
    told = manifest(tmp_path / "run")
    assert told["status"] == "failed"
    assert len(told["rollbacks"]) == 1
    assert told["fault"]["seed"] == CURSED
    assert len(list((tmp_path / "run" / "faults").glob("batch-*.json"))) == 2  # nothing that was kept is lost


def test_the_seed_beside_it_goes_on_as_it_would_have(data: Path, tmp_path: Path) -> None:
    out = run(config(data, tmp_path / "run", seeds=(WELL, SICK)))
    assert len(manifest(out)["rollbacks"]) == 1
    other = run(config(data, tmp_path / "other", seeds=(WELL, WELL_TOO)))
    mine, theirs = ([row["return_mean"] for row in rows(o, WELL)] for o in (out, other))
    assert mine == theirs


def test_a_stopped_run_can_be_resumed_past_its_fault(data: Path, tmp_path: Path) -> None:
    rolled_back = run(config(data, tmp_path / "a"))
    out = tmp_path / "b"
    with pytest.raises(Diverged, match=rf"resume {out} goes on from there, with other random draws for this seed"):
        run(config(data, out, on_nan="stop"))
    assert manifest(out)["fault"]["seed"] == SICK
    resume(out)
    assert manifest(out)["status"] == "completed"
    # By itself or by hand, it is the same run.
    assert (out / "evaluations.jsonl").read_bytes() == (rolled_back / "evaluations.jsonl").read_bytes()


def test_the_others_of_a_population_are_resumed_with_it(data: Path, tmp_path: Path) -> None:
    names = ["fine", "wild"]
    configs = [config(data, tmp_path / n, on_nan="stop", seeds=(s,)) for n, s in zip(names, (WELL, SICK), strict=True)]
    with pytest.raises(Diverged, match=r"^wild: training diverged: .*interrupted and go on with it: fine"):
        run_population(configs, names=names)
    assert [manifest(tmp_path / n)["status"] for n in names] == ["interrupted", "failed"]
    resume(tmp_path / "fine")
    assert [manifest(tmp_path / n)["status"] for n in names] == ["completed", "completed"]
    assert ["rollbacks" in manifest(tmp_path / n) for n in names] == [False, True]
    alone = run(dataclasses.replace(configs[0], out=str(tmp_path / "alone")))
    mine, theirs = ([row["return_mean"] for row in rows(o, WELL)] for o in (tmp_path / "fine", alone))
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_an_environment_that_breaks_every_time_is_not_tried_for_ever(data: Path, tmp_path: Path) -> None:
    faults = FaultConfig(on_nan="rollback", max_rollbacks=1)
    changes: dict[str, Any] = {"task": NAN_ID, "agent": "td3", "offline_updates": 0, "online_steps": 120}
    settings = AGENTS["td3"].config_class(hidden_dims=(8, 8))
    seeds = (0, 1, 2, 3)  # some of their environments are odd
    with pytest.raises(EnvError, match=r"returned NaN .*after 1 rollback,"):
        run(config(data, tmp_path / "run", faults=faults, dataset=None, hyper=settings, seeds=seeds, **changes))
    assert len(manifest(tmp_path / "run")["rollbacks"]) == 1
