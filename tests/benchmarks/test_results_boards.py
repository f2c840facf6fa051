"""Leaderboards against hand-computed numbers and scipy: means, pairs, A/A, over tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from o2o_smooth.benchmarks.results_across import across_tasks
from o2o_smooth.benchmarks.results_boards import Board, GroupResult, Line, compare_groups
from o2o_smooth.benchmarks.results_study import read_groups, read_study
from o2o_smooth.stability.statistics import task_mean
from tests.benchmarks.study_folders import ARMS, make_run, make_study, read_plan, write_plan

DEPTHS = {"jump": 30.0, "linear": 10.0, "linear (A/A)": 12.0, "stay": 0.0}
FINALS = {"jump": 60.0, "linear": 75.0, "linear (A/A)": 74.0, "stay": 50.0}


def scores(task: str, agent: str, arm: str, seed: int) -> list[float]:
    """J0 50; the lowest evaluation is at 250, the seed shifts dip and end."""
    shift = 1.0 + (task == "b")
    return [50.0, 50.0 - DEPTHS[arm] - shift * seed * (arm != "stay"), 50.0, FINALS[arm] + shift * seed]


def results(root: Path, **study: Any) -> list[GroupResult]:
    make_study(root, scores, **study)
    found, problems = compare_groups(read_groups(read_study(root)))
    assert problems == {}
    return found


def board(boards: tuple[Board, ...], key: str) -> dict[str, Line]:
    (own,) = [one for one in boards if one.metric.key == key]
    return {line.arm: line for line in own.lines}


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> list[GroupResult]:
    return results(tmp_path_factory.mktemp("study"), tasks=("a", "b"), spread=0.0)


def test_a_task_is_ranked_by_means_and_paired_by_seed(two_tasks: list[GroupResult]) -> None:
    depth, final = board(two_tasks[0].boards, "dip_depth"), board(two_tasks[0].boards, "final")
    assert list(depth) == ["stay", "linear", "linear (A/A)", "jump"]  # the smallest dip first
    assert list(final) == ["linear", "linear (A/A)", "jump", "stay"]  # the highest score first
    linear = depth["linear"]
    assert linear.mean is not None and linear.difference is not None and linear.improvement is not None
    assert linear.mean.mean == pytest.approx(10 + np.mean([0, 1, 2, 3]))
    assert linear.iqm.mean == pytest.approx(11.5)  # the middle two of 10, 11, 12, 13
    assert linear.difference.mean == pytest.approx(-20.0)
    assert (linear.difference.better, linear.better, linear.n) == (4, 4, 4)
    assert linear.improvement.mean == 1.0
    assert linear.says == "better on all 4"
    assert linear.few
    assert depth["jump"].difference is None
    assert depth["jump"].says == ""
    (aa,) = [one.aa for one in two_tasks[0].boards if one.metric.key == "dip_depth"]
    assert aa == pytest.approx(2.0)


def test_probability_of_improvement_is_mann_whitneys(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    ends = {arm: rng.normal(60, 5, 6).round(1) for arm in ARMS}

    def noisy(task: str, agent: str, arm: str, seed: int) -> list[float]:
        return [50.0, 45.0, 50.0, float(ends[arm][seed])]

    make_study(tmp_path, noisy, seeds=range(6))
    found, _ = compare_groups(read_groups(read_study(tmp_path)))
    line = board(found[0].boards, "final")["linear"]
    u = scipy.stats.mannwhitneyu(ends["linear"], ends["jump"]).statistic
    assert line.improvement is not None
    assert line.improvement.mean == pytest.approx(u / 36)
    assert line.difference is not None
    flips = scipy.stats.permutation_test(
        (ends["linear"] - ends["jump"],), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert line.difference.p_value == pytest.approx(flips.pvalue)


def test_recovery_is_a_share_cut_at_the_budget(tmp_path: Path) -> None:
    def slow(task: str, agent: str, arm: str, seed: int) -> list[float]:
        if arm == "stay":
            return [50.0, 49.0, 50.0, 50.0]  # nothing lost
        if arm == "jump":
            return [50.0, 10.0, 10.0, 10.0]  # never back
        return [50.0, 10.0, 50.0, 50.0]  # back from step 500 on

    make_study(tmp_path, slow)
    found, _ = compare_groups(read_groups(read_study(tmp_path)))
    lines = board(found[0].boards, "recovery")
    assert {arm: line.mean.mean for arm, line in lines.items() if line.mean} == {
        "stay": 0.0,
        "linear": 0.5,
        "linear (A/A)": 0.5,
        "jump": 1.0,
    }
    assert (lines["jump"].censored, lines["linear"].censored) == (4, 0)
    assert lines["linear"].difference is not None
    assert lines["linear"].difference.mean == pytest.approx(-0.5)


def test_over_tasks_every_task_weighs_the_same(two_tasks: list[GroupResult]) -> None:
    (across,) = across_tasks(two_tasks)
    assert (across.agent, across.provenance, across.tasks) == ("iql", "generated", ("a", "b"))
    line = board(across.boards, "dip_depth")["linear"]
    every = np.sort([10, 11, 12, 13, 10, 12, 14, 16])
    assert line.iqm.mean == pytest.approx(scipy.stats.trim_mean(every, 0.25))
    assert line.n == 8
    assert line.difference is not None
    assert line.difference.mean == pytest.approx(-20.0)
    assert (line.difference.better, line.difference.n) == (8, 8)
    assert line.difference.p_value == pytest.approx(2 / 2**8)  # all eight signs agree
    assert line.difference.significant
    assert line.says == "better"
    (aa,) = [one.aa for one in across.boards if one.metric.key == "dip_depth"]
    assert aa == pytest.approx(2.0)


def test_what_is_no_larger_than_the_pair_is_noise_over_tasks_too(tmp_path: Path) -> None:
    def near(task: str, agent: str, arm: str, seed: int) -> list[float]:
        end = {"jump": 60.0, "linear": 61.0, "linear (A/A)": 58.0, "stay": 70.0}[arm]
        return [50.0, 45.0, 50.0, end]

    make_study(tmp_path, near, tasks=("a", "b"))
    found, _ = compare_groups(read_groups(read_study(tmp_path)))
    (across,) = across_tasks(found)
    lines = board(across.boards, "final")
    assert lines["linear"].says == "noise"  # 1 point on all eight pairs, where the pair differs by 3
    assert lines["stay"].says == "better"


def test_tasks_that_cannot_share_a_table_do_not(tmp_path: Path) -> None:
    one = results(tmp_path / "a", tasks=("a",), provenance="d4rl")
    other = results(tmp_path / "b", tasks=("b",), provenance="generated")
    bare = results(tmp_path / "c", tasks=("c",), refs=False)
    assert across_tasks([*one, *other, *bare]) == []
    assert bare[0].comparison.unit == "return"
    assert "regret" not in {b.metric.key for b in bare[0].boards}  # which returns do not have


def test_an_arm_that_a_task_lacks_is_left_out_and_named(tmp_path: Path) -> None:
    one = results(tmp_path / "a", tasks=("a",))
    other = results(tmp_path / "b", tasks=("b",), arms={k: v for k, v in ARMS.items() if k != "linear"}, seeds=(0, 1))
    (across,) = across_tasks([*one, *other])
    assert "linear" not in across.finals
    assert any("linear is left out" in note and "b" in note for note in across.notes)
    assert any("2 to 4" in note for note in across.notes)  # seeds are not equal


def test_a_dip_where_nothing_can_be_lost_counts_in_no_mean_over_tasks(tmp_path: Path) -> None:
    def low(task: str, agent: str, arm: str, seed: int) -> list[float]:
        return [1.0, 0.0, 1.0, 50.0] if task == "c" else scores(task, agent, arm, seed)

    make_study(tmp_path, low, tasks=("a", "b", "c"))
    found, _ = compare_groups(read_groups(read_study(tmp_path)))
    (across,) = across_tasks(found)
    assert board(across.boards, "dip_depth")["linear"].n == 8
    assert board(across.boards, "final")["linear"].n == 12
    assert any("leave out c" in note for note in across.notes)
    assert board(found[2].boards, "dip_depth")["linear"].says == "no verdict"


def test_a_group_whose_arms_do_not_fit_together_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores, arms={"jump": ARMS["jump"]})
    make_run(
        root / "runs/other",
        task="maze",
        agent="iql",
        arm="linear",
        seeds=[0],
        scores=scores,
        settings={"schedule": "linear"},
        provenance="minari",
    )
    entry = {"folder": "runs/other", "task": "maze", "agent": "iql", "arm": "linear", "seeds": [0], "job": ""}
    write_plan(root, [*read_plan(root), entry])
    found, problems = compare_groups(read_groups(read_study(root)))
    assert found == []
    assert "from minari data" in problems["maze, iql"]


def test_mean_over_tasks() -> None:
    assert task_mean({"a": [1.0, 3.0], "b": [10.0]}) == pytest.approx(6.0)


def test_what_is_smaller_than_a_point_is_noise_however_sure(tmp_path: Path) -> None:
    def nearly(task: str, agent: str, arm: str, seed: int) -> list[float]:
        tiny = {"jump": 0.0, "linear": 0.05, "linear (A/A)": 0.05, "stay": 1.5}[arm]
        return [50.0, 40.0 - tiny, 50.0, 99.9 - tiny]

    make_study(tmp_path, nearly, tasks=("maze",))
    (found,), _ = compare_groups(read_groups(read_study(tmp_path)))
    final, dip = board(found.boards, "final"), board(found.boards, "dip_depth")
    assert final["linear"].effect is not None
    assert final["linear"].effect.down == final["linear"].n  # on every seed
    assert (final["linear"].says, dip["linear"].says) == ("noise", "noise")
    assert (final["stay"].says, dip["stay"].says) == ("worse on all 4", "worse on all 4")
