"""A clock on the wall that is put back changes nothing: durations and rhythms are measured by one that is not."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

import o2o_smooth
from o2o_smooth.training import manifest, output
from o2o_smooth.training.config import CheckpointConfig
from o2o_smooth.training.resume import resume
from o2o_smooth.training.run import run
from o2o_smooth.training.stopping import StopRequest
from tests.training.test_rollback import WELL, config, data

__all__ = ["data"]


def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back at every look."""
    steps = count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600.0 * next(steps))
    monkeypatch.setattr(time, "time_ns", lambda: int(2e18) - 3_600_000_000_000 * next(steps))
    now: Callable[[], str] = lambda: f"20{99 - next(steps) % 90:02d}-01-01T00:00:00+00:00"  # noqa: E731
    for module in (manifest, output):
        monkeypatch.setattr(module, "now", now)


def test_a_run_under_a_clock_that_goes_backwards(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    often = CheckpointConfig(checkpoint_every=0.001)
    plain = run(config(data, tmp_path / "plain", seeds=(WELL,), checkpoints=often))
    backwards(monkeypatch)
    out = run(config(data, tmp_path / "run", seeds=(WELL,), checkpoints=often))
    assert (out / "evaluations.jsonl").read_bytes() == (plain / "evaluations.jsonl").read_bytes()
    told = json.loads((out / "manifest.json").read_text())
    assert told["status"] == "completed"
    assert told["finished"] < told["started"]  # what the clock said
    assert 0.0 < told["wall_s"] < 600.0  # what it took
    speeds = [json.loads(line)["time/updates_per_s"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert min(speeds) > 0.0


def test_a_run_goes_on_from_its_newest_checkpoint_whatever_the_clock_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, tmp_path / "run", seeds=(WELL,))
    looks = count()

    def check(self: StopRequest) -> None:
        if next(looks) == 40:
            raise RuntimeError("the power is gone")

    backwards(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "check", check)
        with pytest.raises(RuntimeError, match="the power is gone"):
            run(settings)
    resume(tmp_path / "run")
    plain = run(config(data, tmp_path / "plain", seeds=(WELL,)))
    assert (tmp_path / "run" / "evaluations.jsonl").read_bytes() == (plain / "evaluations.jsonl").read_bytes()


def test_nobody_measures_by_the_clock_on_the_wall() -> None:
    root = Path(o2o_smooth.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("time", "time_ns")
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    ]
    assert not found
