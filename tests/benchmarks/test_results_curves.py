"""Our curves beside published ones: tested and drawn only where both were measured alike, at the same counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from o2o_smooth.benchmarks import results
from o2o_smooth.benchmarks.published_curves import read_published_curves
from o2o_smooth.benchmarks.results import compare, write_results
from o2o_smooth.benchmarks.results_beside import beside_groups
from o2o_smooth.benchmarks.results_boards import compare_groups
from o2o_smooth.benchmarks.results_curves import CurveAgreement, curve_agreements
from o2o_smooth.benchmarks.results_pictures import curves_figure
from o2o_smooth.benchmarks.results_rows import run_rows
from o2o_smooth.benchmarks.results_study import read_groups, read_study
from tests.benchmarks.curve_cases import TASK, make_curves, make_study_before

STAY = {"stay": {"schedule": "stay"}}
JUMP = {"jump": {"schedule": "jump"}, "linear": {"schedule": "linear", "ramp_steps": 300}}


def alike(seed: int) -> dict[int, float]:
    """What the published runs do too, a little apart; 777 updates are nobody else's."""
    return {250: 10.0 + 2 * (seed - 1), 500: 31.0 + 2 * (seed - 1), 777: 99.0}


def held(root: Path, head: Path, **settings: Any) -> list[CurveAgreement]:
    study = read_study(root)
    groups = read_groups(study)
    found, _ = compare_groups(groups)
    rows = run_rows(groups, {result.group.label: result.comparison for result in found})
    return curve_agreements(study, groups, rows, read_published_curves([head]), **settings)


def lines_of(root: Path, head: Path, **settings: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    return compare(root, curves=[head], tell=lines.append, **settings), lines


@pytest.mark.parametrize("shared", [True, False])
def test_common_counts_are_judged_and_nothing_else(tmp_path: Path, shared: bool) -> None:
    root = make_study_before(tmp_path / "study", alike, shared=shared)
    (one,) = held(root, make_curves(tmp_path))
    assert [point.at for point in one.points] == [250, 500, 1000]  # 777 is not interpolated
    assert one.comparable and one.answer == "inside"
    assert one.points[0].ours == (8.0, 10.0, 12.0)  # once a seed, though four arms share it
    assert one.points[2].ours == (48.0, 50.0, 52.0)  # at the switch
    assert one.points[2].theirs == (50.0, 52.0, 48.0)
    assert one.widest is not None and one.widest.at == 500
    assert one.widest.difference == pytest.approx(1.0)


def test_an_interval_is_welchs(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", lambda seed: {250: 20.0 + 7 * seed})
    (one,) = held(root, make_curves(tmp_path))
    known = scipy.stats.ttest_ind([20.0, 27.0, 34.0], [10.0, 12.0, 8.0], equal_var=False).confidence_interval(0.95)
    assert (one.points[0].low, one.points[0].high) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize(
    ("before", "tolerance", "answers", "verdict", "code"),
    [
        (alike, 10.0, ["inside"] * 3, "inside", 0),
        (lambda seed: {250: 40.0 + seed, 500: 30.0 + seed}, 10.0, ["outside", "inside", "inside"], "outside", 1),
        (lambda seed: {250: 10.0 + 15 * (seed - 1), 500: 30.0 + seed}, 10.0, ["cannot tell", "inside", "inside"],
         "cannot tell", 2),
        (alike, 1.0, ["cannot tell"] * 3, "cannot tell", 2),
    ],
)  # fmt: skip
def test_the_verdict_of_a_curve(
    tmp_path: Path,
    before: Callable[[int], Mapping[int, float]],
    tolerance: float,
    answers: Sequence[str],
    verdict: str,
    code: int,
) -> None:
    root = make_study_before(tmp_path / "study", before)
    head = make_curves(tmp_path)
    (one,) = held(root, head, tolerance=tolerance)
    assert [point.answer for point in one.points] == answers
    assert one.answer == verdict
    found, lines = lines_of(root, head, tolerance=tolerance)
    assert found == code
    (line,) = [text for text in lines if text.startswith("curve: ")]
    assert f"{TASK}, iql, before the switch (pretraining): {verdict}; " in line
    assert len([text for text in lines if text.startswith("  at ")]) == 3
    assert any(text.startswith("source: A library: <https://example.org/library>") for text in lines)


def test_one_point_of_many_may_stray_by_chance(tmp_path: Path) -> None:
    # Its 95 % interval leaves 0 out; that of 1 - 0.05 / 3, which all points share, does not.
    ours = [16.0, 17.5, 23.0]
    theirs = [10.0, 12.0, 8.0]
    test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    assert 0.05 / 3 < test.pvalue < 0.05
    root = make_study_before(tmp_path / "study", lambda seed: {250: ours[seed], 500: 30.0 + seed})
    (one,) = held(root, make_curves(tmp_path))
    assert [point.answer for point in one.points] == ["outside", "inside", "inside"]
    assert one.answer == "cannot tell"
    alone = make_curves(tmp_path / "alone", at=(250,), runs={k: [v] for k, v in enumerate(theirs)})
    (other,) = held(root, alone)
    assert other.answer == "outside"


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_single_seed_on_either_side_cannot_tell(tmp_path: Path, seeds: Sequence[int]) -> None:
    root = make_study_before(tmp_path / "study", alike, seeds=seeds)
    runs = {1: (10.0, 30.0, 50.0)} if len(seeds) > 1 else {1: (10.0, 30.0, 50.0), 2: (12.0, 32.0, 52.0)}
    (one,) = held(root, make_curves(tmp_path, runs=runs))
    assert {point.answer for point in one.points} == {"cannot tell"}
    assert one.answer == "cannot tell"


def test_nan_of_ours_is_never_agreement(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike)
    log = root / "jobs" / "pretrain-1" / "run" / "evaluations.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    rows[0] |= {"score": None, "return_mean": None}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (one,) = held(root, make_curves(tmp_path))
    assert one.points[0].answer == "cannot tell"
    assert one.answer == "cannot tell"


def test_a_pretraining_from_the_cache_leaves_the_switch(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike)
    log = root / "jobs" / "pretrain-1" / "run"
    for path in log.iterdir():
        path.unlink()
    log.rmdir()
    (one,) = held(root, make_curves(tmp_path))
    assert one.comparable
    assert [point.at for point in one.points] == [1000]


def test_a_broken_pretraining_is_told(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike)
    (root / "jobs" / "pretrain-1" / "run" / "evaluations.jsonl").write_text("{\n", encoding="utf-8")
    (one,) = held(root, make_curves(tmp_path))
    assert not one.comparable
    assert "evaluations.jsonl, line 1 is not an evaluation" in one.reasons[0]


@pytest.mark.parametrize(
    ("curves", "study", "reason"),
    [
        ({"task": "maze-v0"}, {}, "task: maze-v0 there, maze-v2 here"),
        ({}, {"provenance": "minari"}, "offline data: generated there, minari here"),
        ({}, {"refs": False}, "normalised scores there, returns here"),
        ({"score": "return"}, {"refs": False}, "normalised scores there, returns here"),
        ({"more": "batch_size = 256"}, {"arms": {"stay": {"schedule": "stay", "batch_size": 128}}},
         "rows of a batch: 256 there, 128 here"),
        ({"more": 'budget_bound = "its rate falls"'}, {"offline_updates": 2000},
         "budget: 1000 there, 2000 here (its rate falls)"),
        ({"at": (100, 200, 300)}, {},
         "no evaluation at the same updates: 100 to 300 there, 250 to 1,000 here"),
        ({"phase": "online"}, {"arms": JUMP}, "another switch: there what our arm stay does"),
        ({"phase": "online"}, {"arms": STAY, "offline_updates": 500},
         "updates before the switch: 1000 there, 500 here"),
    ],
)  # fmt: skip
def test_what_was_measured_otherwise_is_refused(
    tmp_path: Path, curves: dict[str, Any], study: dict[str, Any], reason: str
) -> None:
    root = make_study_before(tmp_path / "study", alike, **study)
    head = make_curves(tmp_path, **curves)
    (one,) = held(root, head)
    assert reason in one.reasons
    code, lines = lines_of(root, head)
    assert code == 2
    (line,) = [text for text in lines if text.startswith("curve: ")]
    assert "NOT COMPARABLE" in line and reason in line
    assert not any(text.startswith("  at ") for text in lines)  # never side by side
    forced, lines = lines_of(root, head, force=True)
    assert forced == 2
    assert any(text.startswith("  at ") for text in lines) == bool(one.points)
    groups = read_groups(read_study(root))
    assert beside_groups(read_study(root), groups, [one]) == {}


def test_another_agent_or_task_is_not_held_against_ours(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike)
    assert held(root, make_curves(tmp_path / "a", agent="cql")) == []
    assert held(root, make_curves(tmp_path / "b", task="labyrinth-v2")) == []
    assert compare(root, curves=[make_curves(tmp_path / "c", agent="cql")], tell=lambda _: None) == 2


def test_a_longer_pretraining_begins_as_a_shorter_one(tmp_path: Path) -> None:
    # Where nothing falls with the budget, its first thousand updates are a thousand updates.
    root = make_study_before(tmp_path / "study", lambda s: {**alike(s), 1000: 51.0 + s}, offline_updates=2000)
    (one,) = held(root, make_curves(tmp_path))
    assert one.comparable
    assert [point.ours[0] for point in one.points] == [8.0, 29.0, 51.0]


def test_returns_are_normalised_with_the_tables_references(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike)  # 0 is a return of 0, 100 one of 200
    runs = {1: (20.0, 60.0, 100.0), 2: (24.0, 64.0, 104.0), 3: (16.0, 56.0, 96.0)}
    (one,) = held(root, make_curves(tmp_path, runs=runs, score="return"))
    assert one.comparable and one.answer == "inside"
    assert one.points[0].theirs == (10.0, 12.0, 8.0)
    np.testing.assert_allclose(one.theirs(), np.array([[10, 30, 50], [12, 32, 52], [8, 28, 48]], dtype=float))


def test_after_the_switch_the_arm_that_does_the_same_counts(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike, arms={**JUMP, **STAY})
    runs = {1: (40.0, 45.0, 61.0), 2: (41.0, 46.0, 62.0), 3: (39.0, 44.0, 60.0)}
    (one,) = held(root, make_curves(tmp_path, runs=runs, phase="online"))
    assert one.arm == "stay"
    assert [point.at for point in one.points] == [250, 500, 1000]
    assert one.comparable and one.answer == "inside"


def figure_of(root: Path, head: Path) -> Figure:
    study = read_study(root)
    groups = read_groups(study)
    (result,), _ = compare_groups(groups)
    found = held(root, head)
    return curves_figure(result, beside_groups(study, groups, found).get(result.group.label))


def bands_of(figure: Figure, panel: int) -> list[PolyCollection]:
    return [c for c in figure.axes[panel].collections if isinstance(c, PolyCollection)]


def test_what_is_comparable_is_drawn_behind_ours(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike, arms=STAY)
    figure = figure_of(root, make_curves(tmp_path))
    left, main = figure.axes
    (band,) = bands_of(figure, 0)
    assert band.get_datalim(left.transData).y0 == pytest.approx(8.0)  # the range of its runs
    assert band.get_datalim(left.transData).y1 == pytest.approx(52.0)
    legend = left.get_legend()
    assert legend is not None
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == [
        "ours (mean of 3)",
        "A library (mean and range of 3)",
    ]
    assert main.get_xlabel().startswith("environment steps")
    theirs = [line for line in left.lines if line.get_label() == "_published"]
    assert [np.asarray(line.get_ydata()).tolist() for line in theirs] == [[10.0, 30.0, 50.0]]
    ours = [line.get_zorder() for line in left.lines if line not in theirs and len(np.asarray(line.get_xdata())) > 2]
    assert ours and max(line.get_zorder() for line in theirs) < min(ours)


def test_what_is_published_after_the_switch_is_named_at_its_end(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike, arms=STAY)
    figure = figure_of(root, make_curves(tmp_path, phase="online"))
    (main,) = figure.axes  # there is nothing to show before the switch
    assert any(text.get_text().startswith("A library (3 runs)") for text in main.texts)
    assert len([line for line in main.lines if line.get_label() == "_published"]) == 1


def test_what_is_not_comparable_leaves_the_picture_as_it_was(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike)
    figure = figure_of(root, make_curves(tmp_path, task="maze-v0"))
    (main,) = figure.axes
    assert not any("A library" in text.get_text() for text in main.texts)
    assert not [line for line in main.lines if line.get_label() == "_published"]


def test_results_show_curves_with_their_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_study_before(tmp_path / "study", alike, arms=STAY)
    near, far = make_curves(tmp_path / "near"), make_curves(tmp_path / "far", task="maze-v0")
    monkeypatch.setattr(results, "read_published_curves", lambda: read_published_curves([near, far]))
    write_results(root, note=lambda _: None)
    page = (root / "RESULTS.md").read_text(encoding="utf-8")
    section = page[page.index("## Published curves") :]
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {TASK}") and "A library" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:7] == [TASK, "iql", "before the switch", "pretraining", "3", "31.0 (3)", "30.0 (3)"]
    assert cells[8:] == ["inside", "A library"]
    assert "+1.0 [" in cells[7] and cells[7].endswith("at 500")
    assert "not comparable: task: maze-v0 there, maze-v2 here" in section
    assert "Licence: MIT." in section
    assert "Grey: published (A library)." in page
    assert (root / "plots" / f"curves-{TASK}-iql.png").stat().st_size > 10_000


def test_a_study_of_other_tasks_has_no_such_section(tmp_path: Path) -> None:
    root = make_study_before(tmp_path / "study", alike, arms=STAY)
    write_results(root, note=lambda _: None)
    assert "Published curves" not in (root / "RESULTS.md").read_text(encoding="utf-8")


def test_shipped_curves_stand_apart_from_the_second_sets(tmp_path: Path) -> None:
    root = make_study_before(
        tmp_path / "study", alike, tasks=("hopper-medium-v2",), provenance="d4rl", arms=STAY, offline_updates=500_000
    )
    lines: list[str] = []
    compare(root, tell=lines.append)
    (line,) = [text for text in lines if text.startswith("curve: ")]
    assert "NOT COMPARABLE (task: hopper-medium-v0 there, hopper-medium-v2 here" in line


def test_shipped_curves_are_tested_where_a_study_is_of_the_first_sets(tmp_path: Path) -> None:
    root = make_study_before(
        tmp_path / "study",
        lambda seed: {100_000: 40.0 + seed, 300_000: 31.0 + seed / 2},
        last=lambda seed: 31.5 + seed / 10,
        tasks=("hopper-medium-v0",),
        provenance="d4rl",
        arms=STAY,
        offline_updates=500_000,
    )
    lines: list[str] = []
    compare(root, tell=lines.append)
    (line,) = [text for text in lines if text.startswith("curve: ")]
    assert ": cannot tell; 2 of 3 points inside; IQL's own code" in line  # theirs are far apart at 100,000
    assert any(
        text.startswith("  at 500,000 updates: inside; ours 31.6 (3 seeds), published 31.6 (3 runs)") for text in lines
    )
