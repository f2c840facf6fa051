"""Aggregates against scipy and against what can be counted by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import o2o_smooth.stability as public
from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.stability.statistics import (
    improvement_interval,
    iqm,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

rows = st.lists(st.integers(-5, 5), min_size=1, max_size=7)


def scores(tasks: int = 4, runs: int = 10, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(50, 20, (tasks, runs))


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 7, 8, 10])
def test_iqm_is_the_quarter_trimmed_mean_of_runs_and_tasks_together(runs: int) -> None:
    by_task = scores(3, runs)
    assert iqm(by_task) == pytest.approx(stats.trim_mean(by_task.ravel(), 0.25), rel=1e-12)


def test_iqm_of_tasks_with_different_numbers_of_runs_pools_the_runs() -> None:
    assert iqm({"a": [0.0, 1, 2, 3, 4], "b": [100.0, 5, -90]}) == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_a_row_is_one_task_however_it_is_given() -> None:
    row = scores(1, 9)[0]
    for one in (row, list(row), {"task": row}, [row], row[None]):
        assert iqm(one) == iqm(row)
        assert stratified_bootstrap(one, iqm) == stratified_bootstrap(row, iqm)


def test_optimality_gap_counts_nothing_beyond_the_target_and_every_task_the_same() -> None:
    assert optimality_gap({"a": [90.0, 130], "b": [40.0]}) == (5 + 60) / 2
    assert optimality_gap([90.0, 130, 40], target=50) == pytest.approx(10 / 3)


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=3))
def test_probability_of_improvement_is_mann_whitneys_u_over_the_pairs(tasks: list[tuple[list[int], list[int]]]) -> None:
    x, y = [a for a, _ in tasks], [b for _, b in tasks]
    expected = np.mean([stats.mannwhitneyu(a, b, method="asymptotic").statistic / (len(a) * len(b)) for a, b in tasks])
    assert probability_of_improvement(x, y) == pytest.approx(expected, rel=1e-12)
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)


def test_tasks_are_matched_by_name_not_by_place() -> None:
    x, y = {"a": [1.0, 2], "b": [30.0]}, {"b": [20.0], "a": [0.0]}
    assert probability_of_improvement(x, y) == 1
    with pytest.raises(DataError, match="only one of them has c"):
        probability_of_improvement(x, {**y, "c": [1.0]})
    with pytest.raises(DataError, match="2 and 1 of them"):
        probability_of_improvement([[1.0], [2.0]], [[1.0]])


def test_improvement_interval_of_pairs_draws_them_together() -> None:
    x = scores(2, 12)
    apart, together = improvement_interval(x, x), improvement_interval(x, x, paired=True)
    assert together.mean == apart.mean == 0.5
    assert (together.low, together.high) == pytest.approx((0.5, 0.5))
    assert apart.high - apart.low > 0.2
    with pytest.raises(DataError, match="equal numbers"):
        improvement_interval(x, x[:, :11], paired=True)


def test_improvement_interval_is_that_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(1, 1, 12), rng.normal(0.3, 1, 15)

    def wins(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        assert axis == -1
        return np.asarray((a[..., :, None] > b[..., None, :]).mean(axis=(-2, -1)))

    theirs = stats.bootstrap(
        (x, y), wins, method="percentile", vectorized=True, n_resamples=9999, batch=500, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = improvement_interval(x, y, resamples=9999)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.015)
    assert ours.low < ours.mean < ours.high


def test_profile_is_the_share_above_each_threshold_averaged_over_tasks() -> None:
    profile = performance_profile({"a": [10.0, 20, 30, 40], "b": [25.0]}, [5, 20, 25, 50])
    assert profile.share.tolist() == [1, (0.5 + 1) / 2, (0.5 + 0) / 2, 0]
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()
    assert profile.n == 5
    assert profile.warning is not None


def test_profiles_interval_is_the_binomials() -> None:
    runs = np.arange(40.0)
    profile = performance_profile(runs, [9.5, 27.5], resamples=9999)
    for k, share in enumerate((0.75, 0.3)):
        assert profile.low[k] == pytest.approx(stats.binom.ppf(0.025, 40, share) / 40, abs=1.01 / 40)
        assert profile.high[k] == pytest.approx(stats.binom.ppf(0.975, 40, share) / 40, abs=1.01 / 40)
    assert profile.warning is None


def test_stratified_bootstrap_of_one_task_is_scipys_bootstrap() -> None:
    runs = np.random.default_rng(4).normal(50, 10, 20)
    theirs = stats.bootstrap(
        (runs,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = stratified_bootstrap(runs, iqm, resamples=9999)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.3)
    assert ours.mean == iqm(runs)


@pytest.mark.parametrize("statistic", [iqm, optimality_gap])
def test_all_resamples_at_once_give_what_one_by_one_gives(statistic) -> None:  # type: ignore[no-untyped-def]
    ragged = {"a": scores(1, 9)[0], "b": scores(1, 14, seed=1)[0], "c": scores(1, 10, seed=2)[0]}
    fast = stratified_bootstrap(ragged, statistic, seed=3, resamples=300)
    slow = stratified_bootstrap(ragged, lambda tasks: statistic(tasks), seed=3, resamples=300)
    assert (fast.low, fast.high, fast.mean) == pytest.approx((slow.low, slow.high, slow.mean), rel=1e-12)
    assert fast.n == 33


def test_runs_are_drawn_within_their_task() -> None:
    # Tasks far apart and without spread: whoever draws across tasks sees one.
    found = stratified_bootstrap([[0.0] * 10, [100.0] * 10], lambda tasks: float(np.mean(np.concatenate(tasks))))
    assert (found.mean, found.low, found.high) == (50, 50, 50)


def test_stratified_coverage_of_the_mean_over_tasks() -> None:
    rng = np.random.default_rng(9)
    hits = 0
    for k in range(200):
        sample = rng.normal(50, 10, (5, 10)) + np.arange(5)[:, None] * 100
        found = stratified_bootstrap(sample, lambda t: float(np.mean([x.mean() for x in t])), seed=k, resamples=100)
        hits += found.low <= 250 <= found.high
    assert 0.88 <= hits / 200 <= 0.96


def test_a_seed_gives_one_answer() -> None:
    by_task = scores()
    assert stratified_bootstrap(by_task, iqm, seed=1) == stratified_bootstrap(by_task, iqm, seed=1)
    assert stratified_bootstrap(by_task, iqm, seed=1) != stratified_bootstrap(by_task, iqm, seed=2)
    first, second = (performance_profile(by_task, [40.0, 60], seed=1) for _ in range(2))
    assert (first.low == second.low).all()


def test_percentiles_of_few_runs_on_any_task_warn() -> None:
    assert stratified_bootstrap(scores(3, 9), iqm).warning is None
    warning = stratified_bootstrap({"many": scores(1, 50)[0], "few": [1.0, 2, 3]}, iqm).warning
    assert warning is not None
    assert "of 3 seeds" in warning


def test_what_cannot_be_aggregated_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"scores of hopper\[1\] is NaN"):
        iqm({"hopper": [1.0, math.nan]})
    with pytest.raises(DataError, match="scores of task 1 must be a row"):
        iqm([[1.0, 2.0], []])
    with pytest.raises(DataError, match="no tasks"):
        iqm({})
    with pytest.raises(DataError, match="at least one value"):
        iqm([])
    with pytest.raises(DataError, match="thresholds"):
        performance_profile([1.0], [])
    with pytest.raises(DataError, match="gives NaN"):
        stratified_bootstrap(scores(), lambda _: math.nan)
    with pytest.raises(ConfigError, match="confidence"):
        stratified_bootstrap(scores(), iqm, confidence=1.0)


def test_the_package_offers_them() -> None:
    assert public.stratified_bootstrap is stratified_bootstrap
    assert public.paired_difference([1.0, 2], [0.0, 1]).mean == 1
