"""A run whose environments fail goes on, and tells; one whose environments are broken stops with the cause."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.envs import state as env_state
from o2o_smooth.envs.supervision import Gone
from o2o_smooth.errors import ConfigError, EnvError
from o2o_smooth.training.config import CheckpointConfig, EnvConfig, RunConfig, default_config
from o2o_smooth.training.keeping import Keeper
from o2o_smooth.training.run import run
from tests.envs.misbehaving import misbehaving

TASK_FILE = """\
id = "misbehaving"
env_id = "o2o-smooth-tests/Misbehaving-v0"
max_episode_steps = 8
[env_kwargs]
"""


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, name: str, done: int, total: int, remark: str = "") -> None: ...

    def note(self, text: str) -> None:
        self.said.append(text)


def config(folder: Path, **kwargs: Any) -> RunConfig[Any]:
    """A run of 60 steps of SAC in two environments; `kwargs` are the environment's."""
    misbehaving()
    marks = folder / "marks"
    marks.mkdir()
    file = folder / "task.toml"
    lines = {"how": "raise", "marks": str(marks), **kwargs}
    file.write_text(TASK_FILE + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    values = {
        "offline_updates": 0,
        "online_steps": 60,
        "num_envs": 2,
        "hidden_dims": [8, 8],
        "eval_every": 30,
        "update_after": 10,
        "eval_episodes": 2,
        "switch_episodes": 2,
        "schedule": "jump",
        "log_every": 10,
        "parity_check": False,
        "out": str(folder / "run"),
    }
    return default_config(str(file), "sac", "other", values)


def test_a_run_goes_on_and_tells(tmp_path: Path) -> None:
    """Every twelfth step of an environment's life fails: of those that collect, and of those of evaluations."""
    notes = Notes()
    out = run(config(tmp_path, times=7, at=12, whole_life=True), notes)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    faults = manifest["env_faults"]
    assert (faults["dropped_episodes"], faults["evaluations_repeated"]) == (4, 3)
    assert faults["last"] == "ValueError: the joint broke"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["collect/dropped_episodes"] == faults["dropped_episodes"]
    evaluations = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    assert evaluations[-1]["env_steps"] == 60
    assert {row["length_mean"] for row in evaluations} == {8.0}
    told = [text for text in notes.said if "the joint broke" in text]
    assert len(told) == 7
    said = "environment 0 failed: ValueError: the joint broke; it is made anew, "
    assert told[0] == said + "its episode is dropped (restart 1 of at most 10)"
    assert told[2] == "evaluation: " + said + "plays its episodes again (restart 1 of at most 10)"
    log = (out / "env_faults.log").read_text()
    assert log.count("Traceback (most recent call last)") == 7


def test_a_run_without_failures_says_nothing(tmp_path: Path) -> None:
    out = run(config(tmp_path, how="nothing"))
    assert "env_faults" not in json.loads((out / "manifest.json").read_text())
    assert not (out / "env_faults.log").exists()
    assert "dropped_episodes" not in (out / "metrics.jsonl").read_text()


def test_a_broken_environment_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    made = config(tmp_path, times=40, at=3)
    made = replace(made, environments=EnvConfig(env_restarts=1))
    with pytest.raises(EnvError, match=r"the joint broke; after 1 restarts, .*--env-restarts allows"):
        run(made)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_settings_out_of_range_are_named() -> None:
    for wrong in ({"env_timeout": 0.0}, {"env_timeout": float("nan")}, {"env_restarts": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            EnvConfig(**wrong)
    supervision = EnvConfig(env_timeout=5.0, env_restarts=2).supervision()
    assert (supervision.timeout_s, supervision.max_restarts, supervision.repeat) == (5.0, 2, False)


def test_a_checkpoint_waits_for_an_environment_that_has_just_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture, write = env_state.capture, Keeper.write
    asked: list[bool] = []
    kept: list[bool] = []

    def dies(envs: Any) -> Any:
        asked.append(len(asked) not in (2, 5))  # the first is whether they can be captured at all
        if not asked[-1]:
            raise Gone("environment 1 failed: its process was killed by signal 9")
        return capture(envs)

    def seen(self: Keeper, state: Any, *rest: Any, **named: Any) -> Path:
        kept.append(state["online"]["envs"] is not None)
        return write(self, state, *rest, **named)

    monkeypatch.setattr(env_state, "capture", dies)
    monkeypatch.setattr(Keeper, "write", seen)
    notes = Notes()
    run(replace(config(tmp_path, how="nothing"), checkpoints=CheckpointConfig(checkpoint_every=0.0)), notes)
    assert len(kept) == len(asked) - 3 > 10 and all(kept)
    assert sum("a checkpoint is put off: environment 1" in text for text in notes.said) == 2
    assert not any("new episodes" in text for text in notes.said)
