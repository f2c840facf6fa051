"""Runs that are really killed, at any moment and inside of writes, and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from o2o_smooth.benchmarks import kill_trials
from o2o_smooth.benchmarks.kill_trials import Trial


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")
def test_killed_runs_are_the_run_that_was_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "o2o_smooth.benchmarks.kill_trials"]
    command += ["--trials", "6", "--seed", "1", "--out", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stdout + found.stderr
    outcome = json.loads((tmp_path / "trials.json").read_text())
    assert outcome["passed"] == outcome["trials"] == 6
    assert outcome["kills"] >= 6
    assert outcome["resumed_from_checkpoint"] >= 3


def test_every_kind_of_difference_is_a_fault(tmp_path: Path) -> None:
    for name in ("left", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.log").write_text("")
        for file in ("evaluations.jsonl", "audit.jsonl", "metrics.jsonl"):
            (tmp_path / name / file).write_text('{"x": 1}\n')
        manifest = {"status": "completed", "resumed": [{"checkpoint": 3}]}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))

    def faults(newest: int | None = 3) -> str:
        trial = Trial(0, kills=[{"newest": newest}])
        kill_trials._compare(trial, tmp_path / "left", tmp_path / "run")
        return "; ".join(trial.faults)

    run = tmp_path / "run"
    (run / "metrics.jsonl").write_text('{"x": 1, "time/updates_per_s": 9}\n')
    assert faults() == ""
    assert "where [4] were" in faults(4)
    for file, text, named in (
        ("metrics.jsonl", '{"x": 2}\n', "metrics.jsonl differs"),
        ("evaluations.jsonl", "{}\n", "evaluations.jsonl differs"),
        ("manifest.json", '{"status": "failed"}', "status failed"),
        ("../run.log", "the checkpoint 7 is not used", "a broken checkpoint"),
        (".manifest.json.7.tmp", "", "other files"),
    ):
        before = (run / file).read_text() if (run / file).exists() else None
        (run / file).write_text(text)
        assert named in faults()
        (run / file).unlink() if before is None else (run / file).write_text(before)
