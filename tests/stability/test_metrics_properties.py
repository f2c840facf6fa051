"""What must hold for every curve, and the windowed measures on curves whose answer can be written down."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from o2o_smooth.stability.metrics import StabilityMetrics, stability_metrics

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


@st.composite
def curves(draw: st.DrawFn) -> Points:
    """Whole numbers, so that no comparison hangs on rounding."""
    gaps = draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))
    scores = draw(st.lists(st.integers(-60, 160), min_size=len(gaps) + 1, max_size=len(gaps) + 1))
    return np.concatenate([[0], np.cumsum(gaps)]).astype(float), np.array(scores, dtype=float)


def test_windowed_forgetting_sees_the_drop_inside_of_its_window_only() -> None:
    steps, scores = [0, 1, 2, 3, 4, 5], [50, 80, 60, 70, 30, 90]
    expected = {2: (40, 60), 3: (40, 60), 4: (50, 60), 5: (50, 60), 6: (50, 60), 100: (50, 60)}
    for window, (drop, gain) in expected.items():
        m = stability_metrics(steps, scores, forgetting_window=window)
        assert (m.windowed_forgetting, m.windowed_plasticity) == (drop, gain)


def test_a_slow_decline_is_no_fall_in_a_short_window() -> None:
    steps, slow = np.arange(11), np.linspace(100, 0, 11)
    assert stability_metrics(steps, slow, forgetting_window=3).windowed_forgetting == pytest.approx(20)
    fall = np.where(steps < 5, 100.0, 0.0)
    assert stability_metrics(steps, fall, forgetting_window=3).windowed_forgetting == 100


def test_a_drop_needs_its_high_before_its_low() -> None:
    m = stability_metrics([0, 1, 2], [10, 20, 30])
    assert (m.windowed_forgetting, m.windowed_plasticity) == (0, 20)
    m = stability_metrics([0, 1, 2], [30, 20, 10])
    assert (m.windowed_forgetting, m.windowed_plasticity) == (20, 0)


def test_the_drop_from_the_switch_itself_counts() -> None:
    assert stability_metrics([0, 1, 2], [70, 20, 20], forgetting_window=2).windowed_forgetting == 50


def test_worst_case_is_the_lowest_after_the_switch_within_the_budget() -> None:
    assert stability_metrics([0, 1, 2, 3], [5, 40, 20, 30]).worst_case == 20  # not J0, which was before
    assert stability_metrics([0, 1, 2, 3], [50, 40, 45, 10], window=2).worst_case == 10
    assert stability_metrics([0, 1, 2, 3], [50, 40, 45, 10], budget=2).worst_case == 40
    m = stability_metrics([0, 1, 2, 3], [50, 40, 45, 10], budget=2.5)
    assert (m.worst_case, m.windowed_forgetting) == (40, 10)  # what was seen by then, not the line's


def test_censored_is_not_recovered_at_once() -> None:
    never = stability_metrics([0, 1, 2], [50, 10, 10])
    assert (never.recovery_steps, never.recovery_censored) == (None, True)
    unharmed = stability_metrics([0, 1, 2], [50, 49, 50])
    assert (unharmed.recovery_steps, unharmed.recovery_censored) == (0, False)
    back = stability_metrics([0, 1, 2, 3], [50, 10, 50, 50])
    assert (back.recovery_steps, back.recovery_censored) == (2, False)
    cut = stability_metrics([0, 1, 2, 3], [50, 10, 50, 50], budget=2)
    assert (cut.recovery_steps, cut.recovery_censored) == (None, True)


def test_a_window_of_one_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match="forgetting_window must hold at least 2 evaluations, got 1"):
        stability_metrics([0, 1], [1, 2], forgetting_window=1)


def test_new_measures_stand_behind_the_old_ones() -> None:
    names = [field.name for field in dataclasses.fields(StabilityMetrics)]
    old = "j0, dip_depth, dip_depth_relative, dip_area, dip_time, recovery_steps, late_collapse, final, auc, regret"
    assert ", ".join(names[:10]) == old


@given(curves(), st.integers(2, 12))
def test_windowed_measures_agree_with_every_pair_counted(curve: Points, window: int) -> None:
    steps, scores = curve
    m = stability_metrics(steps, scores, forgetting_window=window)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(scores)), 2) if j - i < window]
    assert m.windowed_forgetting == max(0.0, *(scores[i] - scores[j] for i, j in pairs))
    assert m.windowed_plasticity == max(0.0, *(scores[j] - scores[i] for i, j in pairs))


@given(curves())
def test_measures_of_one_curve_agree_with_each_other(curve: Points) -> None:
    steps, scores = curve
    m = stability_metrics(steps, scores, forgetting_window=len(scores))
    assert m.dip_depth == max(0, m.j0 - m.worst_case)
    assert m.windowed_forgetting >= max(m.dip_depth, m.late_collapse)
    assert m.recovery_censored == (m.recovery_steps is None)
    assert 0 <= m.dip_area <= m.dip_depth + 1e-9
    assert m.worst_case <= m.final <= m.worst_case + m.windowed_plasticity
    assert min(m.worst_case, m.j0) - 1e-9 <= m.auc <= max(scores) + 1e-9


@given(curves(), st.sampled_from([-50.0, 25.0]), st.sampled_from([0.5, 2.0]))
def test_scores_shifted_and_scaled_shift_and_scale_the_measures(curve: Points, shift: float, scale: float) -> None:
    steps, scores = curve
    plain = stability_metrics(steps, scores, recovery_margin=5)
    moved = stability_metrics(
        steps, scale * scores + shift, recovery_margin=5 * scale, random_score=shift
    )  # random was 0
    for name in ("j0", "final", "auc", "worst_case"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(plain, name) + shift)
    for name in ("dip_depth", "dip_area", "late_collapse", "windowed_forgetting", "windowed_plasticity"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(plain, name), abs=1e-9)
    for name in ("dip_time", "recovery_steps", "recovery_censored"):
        assert getattr(moved, name) == getattr(plain, name)
    assert moved.dip_depth_relative == (
        None if plain.dip_depth_relative is None else pytest.approx(plain.dip_depth_relative)
    )


@given(curves(), st.sampled_from([0.25, 1000.0]))
def test_a_unit_of_time_scales_times_and_nothing_else(curve: Points, unit: float) -> None:
    steps, scores = curve
    plain, moved = stability_metrics(steps, scores), stability_metrics(unit * steps, scores)
    for field in dataclasses.fields(StabilityMetrics):
        before, after = getattr(plain, field.name), getattr(moved, field.name)
        if field.name in ("dip_time", "recovery_steps"):
            assert after == (None if before is None else unit * before)
        else:
            assert after == (None if before is None else pytest.approx(before, abs=1e-12))


@given(curves(), st.data())
def test_points_on_the_line_change_no_integral_and_no_extreme(curve: Points, data: st.DataObject) -> None:
    steps, scores = curve
    added = np.array(data.draw(st.lists(st.floats(0.01, float(steps[-1])), min_size=1, max_size=6)))
    finer = np.unique(np.concatenate([steps, added]))
    plain = stability_metrics(steps, scores)
    fine = stability_metrics(finer, np.interp(finer, steps, scores))
    for name in ("dip_area", "auc", "regret", "final", "late_collapse", "worst_case", "dip_depth"):
        if name == "worst_case" and scores[0] < scores[1:].min():
            continue  # the line rises from J0, and a point on it lies lower than the evaluations
        assert getattr(fine, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-9)


@given(curves(), st.floats(0.05, 1.0))
def test_a_budget_on_the_line_is_the_integral_up_to_there(curve: Points, share: float) -> None:
    steps, scores = curve
    budget = max(float(steps[1]), share * float(steps[-1]))
    if budget in steps:
        return
    cut = stability_metrics(steps, scores, budget=budget)
    kept = np.append(steps[steps < budget], budget)
    alone = stability_metrics(kept, np.interp(kept, steps, scores))
    for name in ("dip_area", "auc", "regret"):
        assert getattr(cut, name) == pytest.approx(getattr(alone, name), rel=1e-9, abs=1e-9)
