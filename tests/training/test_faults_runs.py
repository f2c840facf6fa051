"""Whole runs in which numbers go wrong: what is said, what is kept, who else is touched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.storage import load_agent
from o2o_smooth.data.batch import Batch
from o2o_smooth.errors import ConfigError, EnvError
from o2o_smooth.training.config import EvaluationConfig, FaultConfig, RunConfig, SmoothingConfig, SwitchConfig
from o2o_smooth.training.output import Diverged
from o2o_smooth.training.population import run_population
from o2o_smooth.training.run import run
from o2o_smooth.training.seeding import Stream, env_seeds
from tests.envs.spiking import NAN_ID, SPIKE_ID, register_spiking

register_spiking()


def odd_first(count: int, *, odd: bool) -> int:
    """A seed whose only training environment gets an odd seed, or an even one."""
    return [s for s in range(200) if env_seeds(s, Stream.TRAIN_ENV, 1)[0] % 2 == odd][count]


SICK, WELL, WELL_TOO = odd_first(0, odd=True), odd_first(0, odd=False), odd_first(1, odd=False)


def config(out: Path, task: str = SPIKE_ID, agent: str = "td3", **changes: Any) -> RunConfig[Any]:
    settings: dict[str, Any] = {
        "task": task,
        "agent": agent,
        "seeds": (WELL, SICK),
        "offline_updates": 0,
        "online_steps": 120,
        "batch_size": 16,
        "update_after": 16,
        "log_every": 1000,  # no line of the log comes to the help
        "buffer_size": 60,
        "out": str(out),
        "hyper": AGENTS[agent].config_class(hidden_dims=(8, 8)),
        "smoothing": SmoothingConfig("jump", regime="discard"),
        "evaluation": EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_envs=1, eval_every=120),
        "switch": SwitchConfig(parity_check=False, audit=False),
    }
    return RunConfig(**{**settings, **changes})


def test_a_wild_reward_stops_the_run_and_its_batch_can_be_looked_at(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Diverged) as caught:
        run(config(out))
    text = str(caught.value)
    assert f"critic/loss of seed {SICK} is inf after" in text
    assert "(objective td3)" in text
    assert "of its batch has reward 1e+37" in text
    assert "--on-nan rollback" in text
    assert json.loads((out / "manifest.json").read_text())["status"] == "failed"
    (file,) = (out / "faults").glob("batch-*.safetensors")
    about = json.loads(file.with_suffix(".json").read_text())
    assert (about["component"], about["seed"], about["value"]) == ("critic", SICK, "inf")
    assert about["losses"]["critic"] == "inf"
    assert about["largest"]["both.reward"] == pytest.approx(1e37)
    assert str(file) in text
    # The lines of the documentation: the row, and the loss again.
    batch = load_file(file)
    (update,) = about["updates"]
    row = int(batch["both.reward"][0].argmax())
    assert batch["both.reward"][0, row] == np.float32(1e37)
    agent = load_agent(out / "faults" / about["agent"])
    assert agent.updates == update == int(file.stem.partition("-")[2])
    member = agent.seeds.index(SICK)
    rows = {
        name: torch.from_numpy(batch[f"both.{name}"]).expand(2, *batch[f"both.{name}"].shape[1:])
        for name in Batch._fields
    }
    again = agent.update(Batch(**rows))
    assert torch.isinf(again["critic/loss"][member])
    # Its parameters were good, and those of the seed beside it are kept too.
    assert all(p.isfinite().all() for p in load_agent(out / "faults" / about["agent"]).networks.parameters())


def test_an_observation_of_nan_names_the_seed_and_keeps_the_step(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(EnvError, match=rf"environment 1 returned NaN .* step 36 .*, seed {SICK}\. The step is in "):
        run(config(out, NAN_ID))
    step = load_file(out / "faults" / "step-36.safetensors")
    assert np.isnan(step["next_obs"][0]).tolist() == [False, True, False]
    assert np.isfinite(step["action"]).all()
    about = json.loads((out / "faults" / "step-36.json").read_text())
    assert (about["seed"], about["env_steps"], about["component"]) == (SICK, 36, "environment")


def test_in_a_population_the_run_that_diverged_is_named_and_the_others_are_well(tmp_path: Path) -> None:
    names = ("fine", "wild", "good")
    configs = [config(tmp_path / n, seeds=(s,)) for n, s in zip(names, (WELL, SICK, WELL_TOO), strict=True)]
    with pytest.raises(
        Diverged,
        match=r"^wild: training diverged: .*wild starts anew, with .*end as interrupted and go on with it: fine, good",
    ):
        run_population(configs, names=list(names))
    status = [json.loads((tmp_path / n / "manifest.json").read_text())["status"] for n in names]
    assert status == ["interrupted", "failed", "interrupted"]
    assert [(tmp_path / n / "faults").exists() for n in names] == [False, True, False]
    about = json.loads(next((tmp_path / "wild" / "faults").glob("batch-*.json")).read_text())
    assert load_agent(tmp_path / "wild" / "faults" / about["agent"]).seeds == (SICK,)


def test_a_fault_is_named_after_pretraining_too_with_the_checkpoint_that_is_good(tmp_path: Path) -> None:
    base = run(
        config(tmp_path / "base", seeds=(SICK,), online_steps=0, offline_updates=4, dataset=str(_data(tmp_path)))
    )
    fork = config(tmp_path / "fork", seeds=(SICK,), pretrained=str(base), update_after=16)
    with pytest.raises(Diverged, match=r"[Tt]he last good checkpoint is .*fork/checkpoints/switch"):
        run(dataclasses.replace(fork, online_steps=80))


def _data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "data.npz"
    obs = rng.normal(size=(401, 3)).astype(np.float32)
    np.savez(
        path,
        observations=obs[:-1],
        actions=rng.uniform(-2, 2, (400, 1)).astype(np.float32),
        rewards=rng.normal(size=400).astype(np.float32),
        next_observations=obs[1:],
        terminated=np.zeros(400, bool),
        truncated=np.arange(400) % 20 == 19,
    )
    return path


def test_without_the_check_nothing_is_looked_at(tmp_path: Path) -> None:
    out = run(config(tmp_path / "run", faults=FaultConfig(nan_check_every=0), online_steps=60))
    assert not (out / "faults").exists()


@pytest.mark.parametrize("bad", [{"on_nan": "retry"}, {"max_rollbacks": -1}, {"nan_check_every": -1}])
def test_settings_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FaultConfig(**bad)
