"""The command `o2o-smooth bench`: what it shows, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from o2o_smooth.benchmarks.study import PlannedJob, Study, write_json
from o2o_smooth.benchmarks.study_view import headline, pace
from o2o_smooth.cli import main, parse_run
from tests.benchmarks.study_cases import TEXT, dataset

SWEEP = '[sweep]\narm = "linear, mixed"\nramp_steps = [10, 20]\ncount = 3\nactor_lr = {log_uniform = [1e-5, 1e-3]}\n'


def _suite(folder: Path, text: str = TEXT) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text.replace("DATA", str(dataset(folder))), encoding="utf-8")
    return path


def test_list_show_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    assert "smoke" in capsys.readouterr().out
    assert main(["bench", "show", "smoke"]) == 0
    assert 'name = "smoke"' in capsys.readouterr().out
    assert main(["bench", "--help"]) == 0
    assert "sweep-export" in capsys.readouterr().out


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = _suite(tmp_path)
    assert (
        main(["bench", str(suite), "--dry-run", "--out", str(tmp_path / "x"), "--seeds", "0-2", "--workers", "1"]) == 0
    )
    text = capsys.readouterr().out
    assert "3 pretrainings for 6 runs" in text and "memory: at most" in text
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["smok"], "smoke"),
        (["smoke"], "--out"),
        (["smoke", "--seed", "1"], "--seed"),
        (["smoke", "--dry-run", "--seeds", "a"], "write 0-3,7"),
        (["smoke", "--dry-run", "--arms", "jmp"], "jump"),
        (["smoke", "--dry-run", "--scale", "2"], "(0, 1]"),
        (["smoke", "--dry-run", "--workers", "0"], "at least 1"),
        (["status", "nowhere"], "holds no study"),
        (["rerun", "nowhere"], "--failed"),
        (["logs"], "DIR"),
        (["--out", "x"], "suite or a command first"),
        (["smoke", "--launcher-option", "x", "--dry-run"], "NAME=VALUE"),
    ],
)
def test_bad_input_is_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(_suite(tmp_path)), "--out", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.toml", "rows.npz"}


def test_a_broken_study_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text('{"format": 1, "jobs": [{"id": "a"}], "runs": []}', encoding="utf-8")
    assert main(["bench", "status", str(tmp_path)]) == 2
    assert "job.json" in capsys.readouterr().err
    (tmp_path / "study.json").write_text('{"format": 9}', encoding="utf-8")
    assert main(["bench", "status", str(tmp_path)]) == 2
    assert "format 9" in capsys.readouterr().err


def test_status_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path)
    study.add([PlannedJob("a", "pretrain"), PlannedJob("b", "arms", ("a",)), PlannedJob("c", "pretrain")], [])
    study.write()
    write_json(study.job_folder("a") / "failed.json", {"error": "no luck"})
    write_json(study.job_folder("c") / "state.json", {"fraction": 0.25})
    (study.job_folder("a") / "log.txt").write_text("\n".join(map(str, range(100))), encoding="utf-8")
    assert main(["bench", "status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a\tfailed\t\tno luck", "b\tblocked\t\tby a"] and lines[2].startswith("c\tbroken\t25%")
    assert main(["bench", "logs", str(tmp_path), "--lines", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["98", "99", "== failed: no luck"]
    assert main(["bench", "logs", str(tmp_path), "z"]) == 2
    capsys.readouterr()


def test_the_sweep_file_calls_a_command_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep.yaml"
    assert main(["bench", "sweep-export", str(_suite(tmp_path, TEXT + SWEEP)), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "run_cap: 6" in text and "method: random" in text
    assert "  ramp-steps:\n    values: [10, 20]\n" in text
    assert '  actor-lr:\n    distribution: "log_uniform_values"\n    min: 1.0e-05\n    max: 0.001\n' in text
    words = [json.loads(line[4:]) for line in text.splitlines() if line.startswith('  - "')]
    assert words[:2] == ["o2o-smooth", "run"] and words[-1] == "--wandb"
    config = parse_run([*words[2:-1], "--ramp-steps=10", "--actor-lr=0.001"])
    assert (config.task, config.agent, config.seeds) == ("corridor-mixed-v0", "td3_bc", (0, 1))
    assert (config.smoothing.regime, config.smoothing.ramp_steps, config.save_online) == ("mixed", 10, False)
    assert shlex.join(words)
    assert main(["bench", "sweep-export", "smoke"]) == 2
    assert "0 [sweep] tables" in capsys.readouterr().err


def test_time_to_go_is_reckoned_from_what_was_seen() -> None:
    from o2o_smooth.benchmarks.runner import Standing

    standings = {
        "a": Standing(PlannedJob("a", "arms", predicted_s=10.0), "done", seconds=30.0),
        "b": Standing(PlannedJob("b", "arms", predicted_s=20.0, updates=600), "running"),
        "c": Standing(PlannedJob("c", "arms", predicted_s=40.0), "waiting"),
        "d": Standing(PlannedJob("d", "arms", predicted_s=99.0), "failed"),
    }
    found = pace(standings, {"b": {"fraction": 0.5, "resumed_at": 0.0, "seconds": 30.0}}, 2)
    assert found.share == pytest.approx(20 / 70) and found.updates_per_s == pytest.approx(10.0)
    assert found.left_s == pytest.approx(3.0 * 50 / 2)  # all takes three times as long as predicted
    assert headline(standings, found).startswith("1 of 4 jobs done, 1 running, 1 waiting, 1 failed, 10 updates/s")
