"""The demo on a budget of seconds: all four arms from one checkpoint, a table and a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from o2o_smooth.agents import AGENTS
from o2o_smooth.benchmarks.arms import run_arms
from o2o_smooth.benchmarks.demo import DemoConfig, arms, demo
from o2o_smooth.errors import O2OError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.progress import Silent


@pytest.mark.slow
def test_demo_ends_with_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "demo").mkdir()  # a taken name is left alone
    config = DemoConfig(
        out=str(tmp_path / "demo"), seeds=(0, 1), offline_updates=20, online_steps=80, ramp_steps=40, eval_episodes=1
    )
    console = Console(file=io.StringIO(), width=100)
    assert demo(config, console) == 0
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    base = tmp_path / "demo-2"
    assert not list((tmp_path / "demo").iterdir())
    assert str(base / "stability.png") in shown
    assert (base / "stability.png").read_bytes().startswith(b"\x89PNG")
    results = (base / "RESULTS.md").read_text()
    for arm in ("jump", "jump, mixed batch", "linear", "performance gate"):
        assert arm in shown
        assert arm in results
    assert "o2o-smooth demo --seeds 0 1" in results
    assert "torch" in results
    dataset = "o2o-smooth/pointmaze/umaze-dense-v0 (generated"
    assert f"Data: {dataset} by a script, not D4RL's file)" in results
    assert "(measured: uniform policy and scripted controller" in results
    assert f"Offline data: {dataset}), mean score " in results
    assert "(generated), mean score" in " ".join(shown.split())
    switch = []
    for folder in ("jump", "jump-mixed-batch", "linear", "performance-gate"):
        rows = [json.loads(line) for line in (base / folder / "evaluations.jsonl").read_text().splitlines()]
        switch.append([row for row in rows if row["phase"] == "switch"])
        assert json.loads((base / folder / "manifest.json").read_text())["status"] == "completed"
    assert all(rows == switch[0] for rows in switch)  # one checkpoint for all


def test_arms_differ_in_the_smoothing_alone(tmp_path: Path) -> None:
    configs = [arm.config for arm in arms(DemoConfig(), tmp_path)]
    plain = [{k: v for k, v in c.to_dict().items() if k != "smoothing"} for c in configs]
    assert all(c == plain[0] for c in plain)
    assert [c.smoothing.schedule for c in configs] == ["jump", "jump", "linear", "performance_gate"]
    assert [c.smoothing.regime for c in configs] == ["retain", "mixed", "retain", "retain"]


def test_controls_join_the_arms_and_what_is_there_is_not_added_again(tmp_path: Path) -> None:
    names = [arm.name for arm in arms(DemoConfig(controls=True), tmp_path)]
    assert names == [
        *("jump", "jump, mixed batch", "linear", "performance gate"),
        *("stay", "jump to floor 0.2", "jump (A/A)"),
    ]


def test_a_failing_arm_is_reported_as_what_it_is(tmp_path: Path) -> None:
    config: RunConfig[Any] = RunConfig(
        hyper=AGENTS["iql"].config_class(), task="no-such-task", out=str(tmp_path / "x"), offline_updates=1
    )
    with pytest.raises(O2OError, match="no-such-task"):
        run_arms({"a": config}, Silent())
    assert not (tmp_path / "x").exists()
