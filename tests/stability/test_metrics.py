"""Exact on curves whose answer can be written down."""

import ast
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import o2o_smooth.stability
from o2o_smooth.stability.metrics import null_area_from_std, null_dip, null_dip_from_std, stability_metrics


def test_triangle_dip_has_the_area_of_the_triangle() -> None:
    m = stability_metrics([0, 10, 20, 40], [50, 20, 50, 50])
    assert m.j0 == 50
    assert m.dip_depth == 30
    assert m.dip_depth_relative == 30 / 50
    assert m.dip_time == 10
    assert m.dip_area == pytest.approx(0.5 * 20 * 30 / 40, rel=1e-15)
    assert m.auc == pytest.approx(50 - 0.5 * 20 * 30 / 40, rel=1e-15)


def test_dip_area_is_exact_where_the_curve_crosses_j0_between_evaluations() -> None:
    # Down to 40 at t = 1, up to 80 at t = 2: it is back at 50 at t = 1.25, and above J0 nothing counts.
    m = stability_metrics([0, 1, 2], [50, 40, 80])
    assert m.dip_area == pytest.approx((0.5 * 1 * 10 + 0.5 * 0.25 * 10) / 2, rel=1e-15)


def test_a_gain_never_pays_for_a_dip() -> None:
    dip = stability_metrics([0, 1, 2, 3, 4], [50, 40, 50, 50, 50])
    dip_and_gain = stability_metrics([0, 1, 2, 3, 4], [50, 40, 50, 90, 90])
    assert dip_and_gain.dip_area == dip.dip_area > 0


def test_unequal_steps_weigh_by_their_length() -> None:
    m = stability_metrics([0, 1, 101, 102], [50, 0, 0, 50])
    assert m.dip_area == pytest.approx((25 + 5000 + 25) / 102, rel=1e-15)


def test_regret_clips_at_random_and_at_the_reference_exactly() -> None:
    # 0 -> 200 in one step: below 100 for half of it (mean share 1/2), above for the other half (share 1).
    assert stability_metrics([0, 1], [0, 200]).regret == pytest.approx(1 - 0.75, rel=1e-15)
    # -100 -> 100: nothing for half of it, then a mean share of 1/2.
    assert stability_metrics([0, 1], [-100, 100]).regret == pytest.approx(1 - 0.25, rel=1e-15)
    assert stability_metrics([0, 5], [100, 100]).regret == 0


def test_a_rising_curve_has_no_dip_and_nothing_to_recover_from() -> None:
    m = stability_metrics([0, 1, 2], [10, 20, 30])
    assert (m.dip_depth, m.dip_area, m.dip_time, m.recovery_steps, m.late_collapse) == (0, 0, 1, 0, 0)


def test_the_value_at_the_switch_is_no_minimum_after_it() -> None:
    assert stability_metrics([0, 1, 2], [10, 30, 20]).dip_time == 2


def test_recovery_needs_evaluations_in_a_row_after_the_minimum() -> None:
    steps = [0, 1, 2, 3, 4, 5, 6]
    scores = [50, 10, 48, 20, 46, 47, 60]
    assert stability_metrics(steps, scores, recovery_margin=5, recovery_evaluations=2).recovery_steps == 4
    assert stability_metrics(steps, scores, recovery_margin=5, recovery_evaluations=1).recovery_steps == 2
    assert stability_metrics(steps, scores, recovery_margin=2, recovery_evaluations=1).recovery_steps == 2
    assert stability_metrics(steps, scores, recovery_margin=0, recovery_evaluations=1).recovery_steps == 6


def test_recovery_is_censored_not_invented() -> None:
    assert stability_metrics([0, 1, 2, 3], [50, 10, 20, 30]).recovery_steps is None
    # One good evaluation at the very end is not two in a row.
    assert stability_metrics([0, 1, 2, 3], [50, 10, 20, 50], recovery_evaluations=2).recovery_steps is None
    # And one beyond the budget was not seen.
    m = stability_metrics([0, 1, 2, 3, 4], [50, 10, 20, 50, 50], budget=3, recovery_evaluations=2)
    assert m.recovery_steps is None


def test_recovery_before_the_minimum_does_not_count() -> None:
    m = stability_metrics([0, 1, 2, 3, 4], [50, 30, 50, 50, 10], recovery_evaluations=1)
    assert m.dip_time == 4
    assert m.recovery_steps is None


def test_late_collapse_and_final() -> None:
    m = stability_metrics([0, 1, 2, 3], [50, 80, 70, 30])
    assert (m.final, m.late_collapse) == (30, 50)
    assert stability_metrics([0, 1], [50, 30]).late_collapse == 20  # J0 is a score that was had too


def test_the_budget_cuts_the_curve_on_its_line() -> None:
    m = stability_metrics([0, 10, 20], [50, 50, 30], budget=15)
    assert m.dip_area == pytest.approx(0.5 * 5 * 10 / 15, rel=1e-15)
    assert (m.final, m.dip_depth, m.late_collapse) == (50, 0, 0)


def test_the_window_limits_the_dip_and_nothing_else() -> None:
    whole = stability_metrics([0, 1, 2, 3], [50, 40, 45, 10])
    m = stability_metrics([0, 1, 2, 3], [50, 40, 45, 10], window=2)
    assert (m.dip_depth, m.dip_time) == (10, 1)
    assert (m.dip_area, m.final) == (whole.dip_area, whole.final)


def test_relative_depth_counts_from_random_and_is_none_where_nothing_can_be_lost() -> None:
    assert stability_metrics([0, 1], [30, 20], random_score=10).dip_depth_relative == 0.5
    for j0 in (10, 8):
        assert stability_metrics([0, 1], [j0, 5], random_score=10).dip_depth_relative is None


@pytest.mark.parametrize(
    ("steps", "scores", "text"),
    [
        ([0], [1], "got 1 point"),
        ([], [], "got 0 point"),
        ([1, 2], [1, 2], "at the switch"),
        ([0, 2, 1], [1, 2, 3], r"must rise: \[2\] is 1 after 2"),
        ([0, 1, 1], [1, 2, 3], "must rise"),
        ([0, 1, 2], [1, math.nan, 3], r"scores\[1\] is NaN"),
        ([0, 1, math.inf], [1, 2, 3], r"env_steps\[2\] is NaN or infinite"),
        ([0, 1], [1, 2, 3], "one length"),
        ([[0, 1]], [[1, 2]], "two rows"),
    ],
)
def test_what_is_no_curve_is_refused_with_its_place(steps: list[float], scores: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        stability_metrics(steps, scores)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"budget": 3.0}, r"budget must lie in \(0, 2\]"),
        ({"budget": 0.0}, "budget"),
        ({"window": 0.5}, "window must lie between the first evaluation"),
        ({"window": 2.5}, "window"),
        ({"recovery_margin": -1.0}, "recovery_margin"),
    ],
)
def test_settings_that_do_not_fit_the_curve_are_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        stability_metrics([0, 1, 2], [1, 2, 3], **settings)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
    st.data(),
)
def test_areas_agree_with_a_fine_grid(gaps: list[int], data: st.DataObject) -> None:
    steps = np.concatenate([[0], np.cumsum(gaps)]).astype(float)
    scores = np.array(data.draw(st.lists(st.floats(-150, 250), min_size=len(steps), max_size=len(steps))))
    m = stability_metrics(steps, scores)
    grid = np.unique(np.concatenate([np.linspace(a, b, 2001) for a, b in pairwise(steps)]))
    line = np.interp(grid, steps, scores)
    total = steps[-1]
    assert m.dip_area == pytest.approx(np.trapezoid(np.maximum(0, scores[0] - line), grid) / total, rel=1e-4, abs=1e-3)
    clipped = np.clip(line / 100, 0, 1)
    assert m.regret == pytest.approx(1 - np.trapezoid(clipped, grid) / total, rel=1e-4, abs=1e-4)
    assert m.auc == pytest.approx(np.trapezoid(line, grid) / total, rel=1e-6, abs=1e-6)
    assert -1e-12 <= m.dip_area <= m.dip_depth + 1e-9
    assert -1e-12 <= m.regret <= 1 + 1e-12


def test_null_dip_of_a_policy_without_noise_is_zero() -> None:
    assert null_dip([7.0] * 10, evaluations=20, episodes=5, seed=0) == 0
    assert null_dip_from_std(0.0, evaluations=20, episodes=5) == 0


def test_null_dip_of_a_coin_is_exact() -> None:
    # One evaluation of one episode worth 0 or 1, J0 likewise: the dip is 1 when J0 is 1 and J is 0, once in four.
    assert null_dip([0, 1], evaluations=1, episodes=1, seed=3, resamples=200_000, switch_episodes=1) == pytest.approx(
        0.25, abs=0.005
    )


@pytest.mark.parametrize("evaluations", [1, 8])
def test_null_dip_of_normal_episodes_agrees_with_the_order_statistic(evaluations: int) -> None:
    # With J0 all but free of noise the dip is max(0, -min of n normals), whose mean is an integral over the cdf.
    grid = np.linspace(0, 8, 40_001)
    expected = np.trapezoid(1 - stats.norm.cdf(grid) ** evaluations, grid) * 18 / math.sqrt(20)
    normal = null_dip_from_std(18, evaluations=evaluations, episodes=20, switch_episodes=10**9, resamples=200_000)
    assert normal == pytest.approx(expected, rel=0.02)
    pool = stats.norm.ppf((np.arange(2000) + 0.5) / 2000) * 18
    boot = null_dip(pool, evaluations=evaluations, episodes=20, seed=1, resamples=4000, switch_episodes=20_000)
    assert boot == pytest.approx(expected, rel=0.06)


def test_null_area_of_one_evaluation_is_exact() -> None:
    # From J0 down to J in a line: half of max(0, J0 - J), a normal of variance 18^2 (1/20 + 1/80) cut at 0.
    expected = 0.5 * 18 * math.sqrt(1 / 20 + 1 / 80) / math.sqrt(2 * math.pi)
    area = null_area_from_std(18, [0, 500], episodes=20, switch_episodes=80, resamples=400_000)
    assert area == pytest.approx(expected, rel=0.01)
    other = null_area_from_std(18, [0, 7], episodes=20, switch_episodes=80, resamples=400_000)
    assert other == pytest.approx(area, rel=1e-12)


def test_null_area_is_the_mean_area_of_frozen_policies() -> None:
    steps, rng = np.array([0, 250, 500, 1000, 2000, 4000.0]), np.random.default_rng(3)
    frozen = [stability_metrics(steps, rng.normal(50, 18 / math.sqrt(20), 6)).dip_area for _ in range(4000)]
    assert null_area_from_std(18, steps, episodes=20) == pytest.approx(float(np.mean(frozen)), rel=0.05)
    assert null_area_from_std(0, steps, episodes=20) == 0
    with pytest.raises(ValueError, match="must rise"):
        null_area_from_std(18, [0, 2, 1], episodes=20)
    with pytest.raises(ValueError, match="std"):
        null_area_from_std(math.nan, steps, episodes=20)


def test_null_dip_grows_with_evaluations_and_shrinks_with_episodes() -> None:
    scores = np.random.default_rng(0).normal(50, 15, 50)
    few = null_dip(scores, evaluations=3, episodes=10, seed=0)
    many = null_dip(scores, evaluations=30, episodes=10, seed=0)
    long = null_dip(scores, evaluations=30, episodes=40, seed=0)
    assert many > 1.2 * few
    assert many > 1.3 * long


def test_null_dip_is_a_function_of_its_seed() -> None:
    scores = [1.0, 2.0, 5.0]
    first = null_dip(scores, evaluations=5, episodes=3, seed=1)
    assert first == null_dip(scores, evaluations=5, episodes=3, seed=1)
    assert first != null_dip(scores, evaluations=5, episodes=3, seed=2)


def test_null_dip_refuses_what_it_cannot_resample() -> None:
    with pytest.raises(ValueError, match="finite per-episode scores"):
        null_dip([], evaluations=1, episodes=1, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        null_dip([1.0, math.nan], evaluations=1, episodes=1, seed=0)
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        null_dip([1.0], evaluations=1, episodes=0, seed=0)
    with pytest.raises(ValueError, match="std"):
        null_dip_from_std(-1.0, evaluations=1, episodes=1)


def test_stability_knows_neither_torch_nor_the_rest_of_the_house() -> None:
    folder = Path(o2o_smooth.stability.__file__).parent
    seen = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                seen |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                seen.add(node.module or "")
    ours = {name for name in seen if name.startswith("o2o_smooth")}
    ground = ("o2o_smooth.errors", "o2o_smooth.files", "o2o_smooth.reading")
    assert all(name in ground or name.startswith("o2o_smooth.stability") for name in ours)
    assert not any(name.split(".")[0] == "torch" for name in seen)
    assert "numpy" in seen
