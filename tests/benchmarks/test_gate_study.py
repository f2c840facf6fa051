"""The study of the gate on a budget of seconds: all arms, paired differences, and nothing done twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.benchmarks import gate_study
from o2o_smooth.benchmarks.gate_study import (
    SCHEDULES,
    STUDIES,
    GateStudy,
    Study,
    arms,
    difference_table,
    folder_name,
    main,
    study,
)
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.stability.curves import Curve
from o2o_smooth.training.progress import Silent


def curve(arm: str, seed: int, scores: list[float]) -> Curve:
    steps = np.arange(len(scores), dtype=np.float64) * 10.0
    return Curve(run=arm, arm=arm, seed=seed, env_steps=steps, scores=np.array(scores))


def test_differences_are_paired_by_seed() -> None:
    curves = {
        "jump": [curve("jump", s, [50.0, 30.0 + 3 * s, 60.0]) for s in range(4)],
        "gate": [curve("gate", s, [50.0, 50.0, 61.0 + s]) for s in reversed(range(4))],
    }
    line = difference_table(curves).splitlines()[-1]
    # A triangle of half the budget and depth 20 - 3s, cut where the last part comes back above J0.
    depths = np.array([20.0 - 3 * s for s in range(4)])
    areas = -(depths + depths * depths / (depths + 10)) / 4
    # Four seeds: sign flips, whose interval goes from the least to the greatest difference.
    assert f"{areas.mean():+.1f} [{areas.min():+.1f}, {areas.max():+.1f}] | 4 of 4" in line
    finals = np.array([1.0, 2.0, 3.0, 4.0])
    assert f"{finals.mean():+.1f} [+1.0, +4.0] | 4 of 4" in line


def test_arms_share_one_pretraining_and_go_on_to_five_ramps(tmp_path: Path) -> None:
    pretraining, forks = arms(GateStudy(out=tmp_path), "pointmaze")
    assert pretraining.online_steps == 0
    assert {c.pretrained for c in forks.values()} == {pretraining.out}
    assert {c.online_steps for c in forks.values()} == {25_000}
    assert {c.seeds for c in forks.values()} == {tuple(range(10))}
    assert [(c.smoothing.schedule, c.smoothing.regime) for c in forks.values()] == [
        (schedule, regime or "retain") for schedule, regime, _ in SCHEDULES.values()
    ]
    assert [name for name, config in forks.items() if config.online_stream] == ["gate (A/A)"]
    assert len({c.out for c in forks.values()}) == len(forks)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match="seeds must be at least 2"):
        GateStudy(seeds=1)
    with pytest.raises(ConfigError, match="ramp_steps must be at least 1"):
        GateStudy(ramp_steps=0)
    with pytest.raises(ConfigError, match="give one --task"):
        GateStudy(dataset="x.npz")


@pytest.mark.slow
def test_study_ends_with_a_table_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    settings = {**STUDIES["pointmaze"].settings, "hidden_dims": [8, 8], "batch_size": 8}
    small = dataclasses.replace(STUDIES["pointmaze"], settings=settings)
    monkeypatch.setitem(gate_study.STUDIES, "pointmaze", small)
    flags = "--task pointmaze --seeds 2 --ramp-steps 50 --offline-updates 4 --online-steps 60 --eval-episodes 1"
    command = [*flags.split(), "--population", "stack", "--out", str(tmp_path / "study")]
    assert main(command) == 0
    base = tmp_path / "study" / "pointmaze"
    text = (base / "RESULTS.md").read_text()
    for arm in SCHEDULES:
        assert f"| {arm} " in text
    assert (base / "stability.png").read_bytes().startswith(b"\x89PNG")
    folders = [base / "pretrain", *(base / folder_name(arm) for arm in SCHEDULES)]
    before = {f: (f / "manifest.json").stat().st_mtime_ns for f in folders}
    broken = base / "gate" / "manifest.json"
    manifest = json.loads(broken.read_text())
    broken.write_text(json.dumps({**manifest, "status": "interrupted"}))
    evaluations = (base / "gate" / "evaluations.jsonl").read_bytes()
    assert main(command) == 0
    assert (base / "gate" / "evaluations.jsonl").read_bytes() == evaluations  # done again, with the same numbers
    assert json.loads(broken.read_text())["status"] == "completed"
    assert all((f / "manifest.json").stat().st_mtime_ns == before[f] for f in folders if f.name != "gate")
    capsys.readouterr()
    assert main([*command, "--ramp-steps", "30"]) == 2
    assert "pretrain was made with other settings (evaluation)" in capsys.readouterr().err
    assert (base / "RESULTS.md").read_text() == text


def test_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing: dict[str, Any] = {"corridor": Study("no-such-task", "iql", 10, 10, "retain", {})}
    monkeypatch.setattr(gate_study, "STUDIES", missing)
    with pytest.raises(O2OError, match="no-such-task"):
        study(GateStudy(task=("corridor",), out=tmp_path), "corridor", Silent())
