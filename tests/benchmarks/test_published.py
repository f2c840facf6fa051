"""Published numbers: facts as printed, held against ours only where they were measured alike."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import scipy.stats

from o2o_smooth.benchmarks.published import Published, read_published, shipped
from o2o_smooth.benchmarks.results import compare
from o2o_smooth.benchmarks.results_compare import agreements, exit_code, other_data, welch
from o2o_smooth.cli import main
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError, DataError
from tests.benchmarks.study_folders import make_study

TASK = "antmaze-umaze-v2"  # IQL: 77.00 ± 0.71 at the switch, 96.50 ± 1.12 after a million steps
STEPS = (0, 1000, 500_000, 1_000_000)
OURS = r"; ours -?\d"


def find(task: str, agent: str, metric: str, source: str = "CORL, fine-tuning") -> Published:
    (one,) = [
        p for p in read_published() if (p.task, p.agent, p.metric, p.source.name) == (task, agent, metric, source)
    ]
    return one


def study(root: Path, shift: float = 0.0, wobble: float = 1.0, **run: Any) -> Path:
    def scores(task: str, agent: str, arm: str, seed: int) -> list[float]:
        off = shift + wobble * (seed - 1.5)
        return [77.0 + off, 77.0, 80.0, 96.5 + off]

    settings = {"provenance": "d4rl", "steps": STEPS, "offline_updates": 1_000_000, **run}
    return make_study(root, scores, tasks=(TASK,), arms={"stay": {"schedule": "stay"}}, **settings)


def lines_of(root: Path, **settings: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    return compare(root, tell=lines.append, **settings), lines


def test_the_averages_that_the_source_prints_come_out() -> None:
    # A slip of a digit in a table would show here: these are the averages in CORL's README, rounded there.
    printed = {
        ("antmaze", "j0"): {"awac": 18.12, "cql": 48.38, "iql": 56.29, "spot": 52.88, "cal_ql": 53.04, "rebrac": 80.0},
        ("antmaze", "final"): {"awac": 16.46, "cql": 95.58, "iql": 78.5, "spot": 92.38, "cal_ql": 97.33},
        ("cloned", "j0"): {"awac": 22.84, "cql": -0.72, "iql": 21.69, "spot": 2.43, "cal_ql": -0.76, "rebrac": 20.33},
        ("cloned", "final"): {"awac": 21.76, "cql": 0.22, "iql": 44.99, "spot": 11.81, "cal_ql": -0.79},
        ("antmaze", "regret"): {"awac": 0.82, "cql": 0.11, "iql": 0.24, "spot": 0.15, "cal_ql": 0.07, "rebrac": 0.11},
    }
    numbers = [one for one in read_published() if one.source.name == "CORL, fine-tuning"]
    for (part, metric), averages in printed.items():
        for agent, value in averages.items():
            own = [o.mean for o in numbers if part in o.task and (o.agent, o.metric) == (agent, metric)]
            assert mean(own) == pytest.approx(value, abs=0.0101), (part, metric, agent)
    offline = {"bc": 50.40, "td3_bc": 76.45, "cql": 78.28, "iql": 81.63, "rebrac": 89.74, "edac": 92.92, "dt": 73.84}
    for agent, value in offline.items():
        own = [o.mean for o in read_published() if o.agent == agent and o.task.startswith(("half", "hop", "walk"))]
        assert len(own) == 9
        assert mean(own) == pytest.approx(value, abs=0.0101)


def test_every_number_has_a_source_and_a_task_that_is_known() -> None:
    numbers = read_published()
    assert len(numbers) == 10 * 6 * 3 + 27 * 10
    assert {one.source.provenance for one in numbers} == {"d4rl"}
    for one in numbers:
        assert find_task(one.task).id == one.task
        assert one.source.url.startswith("https://")
        assert one.source.where and one.source.seeds == 4


def test_the_stated_spread_becomes_a_standard_deviation() -> None:
    one = find(TASK, "iql", "final")
    assert (one.mean, one.spread, one.text) == (96.5, 1.12, "96.50 ± 1.12")
    assert one.deviation == pytest.approx(1.12 * math.sqrt(4 / 3))


def test_the_interval_is_welchs() -> None:
    a, b = np.array([70.0, 75.0, 80.0, 77.0]), np.array([60.0, 66.0, 61.0])
    found = welch(a.mean(), a.std(ddof=1), 4, b.mean(), b.std(ddof=1), 3)
    known = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found == pytest.approx((known.low, known.high))
    assert welch(1.0, 0.0, 2, 3.0, 0.0, 2) == (-2.0, -2.0)


@pytest.mark.parametrize(
    ("shift", "wobble", "tolerance", "answer", "code"),
    [
        (0.0, 1.0, 10.0, "inside", 0),
        (30.0, 1.0, 10.0, "outside", 1),
        (0.0, 12.0, 10.0, "cannot tell", 2),
        (4.0, 1.0, 3.0, "outside", 1),
    ],
)
def test_agreement(tmp_path: Path, shift: float, wobble: float, tolerance: float, answer: str, code: int) -> None:
    found, lines = lines_of(study(tmp_path, shift, wobble), tolerance=tolerance)
    assert found == code
    (line,) = [text for text in lines if text.startswith(f"{TASK}, iql, final")]
    assert f": {answer};" in line
    assert "published 96.50 ± 1.12 (4 seeds)" in line
    assert f"ours {96.5 + shift:.1f} (4 seeds)" in line
    assert any(text.startswith("source: CORL, fine-tuning: <https://github.com/corl-team/CORL>") for text in lines)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provenance": "minari"}, "offline data: d4rl there, minari here"),
        ({"provenance": "generated"}, "offline data: d4rl there, generated here"),
        ({"offline_updates": 1000}, "updates before the switch: 1000000 there, 1000 here"),
    ],
)
def test_other_data_and_protocols_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    root = study(tmp_path, **change)
    code, lines = lines_of(root)
    assert code == 2
    shown = [line for line in lines if line.startswith(TASK)]
    assert shown
    assert all("NOT COMPARABLE" in line and reason in line for line in shown)
    assert not any(re.search(OURS, line) for line in shown)  # never side by side
    forced, lines = lines_of(root, force=True)
    assert forced == 2  # what is forced never counts
    shown = [line for line in lines if line.startswith(TASK)]
    assert all("NOT COMPARABLE" in line and re.search(OURS, line) for line in shown)


def test_fewer_online_steps_leave_the_score_at_the_switch_comparable(tmp_path: Path) -> None:
    _, lines = lines_of(study(tmp_path, steps=(0, 100, 200, 300)))
    assert any(line.startswith(f"{TASK}, iql, j0 (at the switch): inside") for line in lines)
    assert any("online steps: 1000000 there, 300 here" in line for line in lines if "final" in line)


def test_another_switch_is_not_comparable_after_it(tmp_path: Path) -> None:
    def scores(task: str, agent: str, arm: str, seed: int) -> list[float]:
        return [77.0 + seed, 77.0, 80.0, 96.0]

    arms = {"jump": {"schedule": "jump"}}
    root = make_study(
        tmp_path, scores, tasks=(TASK,), arms=arms, provenance="d4rl", steps=STEPS, offline_updates=1_000_000
    )
    _, lines = lines_of(root)
    assert any("another switch: there what our arm stay does" in line for line in lines if "final" in line)


def test_the_same_pretraining_counts_once_at_the_switch(tmp_path: Path) -> None:
    row = {
        "task": TASK, "agent": "iql", "agent_name": "iql", "calibrated": None, "status": "completed", "unit": "score",
        "provenance": "d4rl", "dataset": None, "offline_updates": 1_000_000, "online_steps": 1, "role": "jump",
        "baseline": "jump", "pretraining": "x", "j0": 77.0, "final": 5.0,
    }  # fmt: skip
    rows = [{**row, "arm": arm, "seed": seed} for arm in ("jump", "linear") for seed in range(3)]
    found = {one.published.metric: one for one in agreements(rows, [find(TASK, "iql", "j0")])}
    assert found["j0"].values == (77.0, 77.0, 77.0)
    assert found["j0"].answer == "inside"
    other = agreements([{**one, "agent_name": "cql", "calibrated": True} for one in rows], read_published())
    assert {one.published.agent for one in other} == {"cal_ql"}


def test_a_regret_of_another_definition_is_shown_and_never_tested(tmp_path: Path) -> None:
    _, lines = lines_of(study(tmp_path))
    (line,) = [text for text in lines if f"{TASK}, iql, regret" in text]
    assert "NOT COMPARABLE (another definition: " in line


def test_one_seed_cannot_tell(tmp_path: Path) -> None:
    code, lines = lines_of(study(tmp_path, seeds=(0,)))
    assert code == 2
    assert any(": cannot tell;" in line for line in lines)


def test_nothing_published_is_not_agreement(tmp_path: Path) -> None:
    root = make_study(tmp_path, lambda *_: [50.0, 40.0, 50.0, 60.0], arms={"jump": {"schedule": "jump"}})
    code, lines = lines_of(root)
    assert (code, lines) == (2, ["no published numbers are on file for the completed runs of this study"])
    assert exit_code([]) == 2
    with pytest.raises(ConfigError, match="tolerance"):
        compare(root, tolerance=0.0)


def test_the_command_takes_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(study(tmp_path, shift=3.0))
    assert main(["bench", "compare", root]) == 2 and "(within 10 points)" in capsys.readouterr().out
    assert main(["bench", "compare", root, "--tolerance", "2.5"]) == 1
    assert "(within 2.5 points)" in capsys.readouterr().out
    assert main(["bench", "compare", root, "--tolerance", "0"]) == 2
    assert "must be more than 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("format = 1", "format = 9"), "format is 9"),
        (('spread = "', 'spread = "?'), "spread is"),
        (("seeds = 4", "seeds = 0"), "seeds must be at least 1"),
        (("seeds = 4", "sees = 4"), "no key 'sees'"),
        (('"52.75 ± 8.67", ', ""), "5 cells for 6 agents"),
        (('"52.75 ± 8.67"', '"52.75 8.67"'), "expected 'mean ± spread'"),
        (("[source]", "[sauce]"), "do not fit"),
        (("[source]", "[source"), "cannot be read"),
    ],
)
def test_a_broken_file_of_numbers_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = next(path for path in shipped() if path.name == "corl-finetuning.toml").read_text(encoding="utf-8")
    path = tmp_path / "x.toml"
    path.write_text(text.replace(change[0], change[1], 1), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_published([path])
    assert str(path) in str(caught.value)


def test_data_of_another_version_or_tier_are_not_comparable() -> None:
    assert other_data("hopper-medium-v2", ["/data/hopper_medium-v2.hdf5", "mujoco/hopper/medium-v0", None]) == []
    assert other_data("hopper-medium-v2", ["/data/hopper_medium-v0.hdf5"]) == [
        "offline data: D4RL's hopper_medium-v2.hdf5 there, hopper_medium-v0.hdf5 here"
    ]
    assert other_data("hopper-medium-v2", ["mujoco/hopper/expert-v0"]) == [
        "offline data: those of hopper-medium-v2 there, mujoco/hopper/expert-v0 here"
    ]
    assert other_data("a-task-of-my-own", ["mujoco/hopper/expert-v0"]) == []
