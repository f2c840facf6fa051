"""Against scipy, against brute force, and against the truth: how often intervals hold what they promise."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import o2o_smooth.stability.intervals as module
from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.stability.intervals import Method, interval, paired_difference

METHODS: tuple[Method, ...] = ("bootstrap", "studentised", "sign_flip")
small_integers = st.lists(st.integers(-4, 4), min_size=2, max_size=9)


def p_value(values: NDArray[np.float64], method: Method = "sign_flip") -> float:
    return paired_difference(values, np.zeros(len(values)), method=method).p_value


@given(small_integers)
def test_sign_flip_p_value_is_that_of_scipys_exact_permutation_test(values: list[int]) -> None:
    sample = np.array(values, dtype=float)
    exact = stats.permutation_test(
        (sample,), lambda x, axis: np.sum(x, axis=axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert p_value(sample) == pytest.approx(exact.pvalue, rel=1e-12)


def test_ties_of_subset_sums_count_as_ties_in_spite_of_rounding() -> None:
    # 0.1 + 0.2 is not 0.3 in binary; as integers the sums tie.
    sample = np.array([0.1, 0.2, -0.3, 0.7, 0.1, -0.1])
    assert p_value(sample) == p_value(np.array([1.0, 2, -3, 7, 1, -1]))


@given(small_integers.filter(lambda values: len(values) >= 4), st.sampled_from([0.5, 0.8, 0.95]))
def test_sign_flip_interval_holds_just_what_the_test_does_not_reject(values: list[int], confidence: float) -> None:
    sample = np.array(values, dtype=float)
    found = interval(sample, method="sign_flip", confidence=confidence)
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(sample))))

    def rejected(theta: float) -> bool:
        sums = signs @ (sample - theta)
        return bool((np.abs(sums) >= abs((sample - theta).sum()) - 1e-9).mean() <= 1 - confidence + 1e-12)

    if found.confidence < confidence:
        assert (found.low, found.high) == (sample.min(), sample.max())
        assert not rejected(found.low - 100)
        assert not rejected(found.high + 100)
    else:
        assert rejected(found.low - 1e-6)
        assert rejected(found.high + 1e-6)
        if found.high > found.low:
            assert not rejected(found.low + 1e-6)
            assert not rejected(found.high - 1e-6)


@pytest.mark.parametrize(("n", "holds"), [(2, 0.5), (3, 0.75), (4, 0.875), (5, 0.9375)])
def test_too_few_seeds_say_what_their_interval_holds(n: int, holds: float) -> None:
    sample = np.arange(1.0, n + 1)
    found = paired_difference(sample, np.zeros(n))
    assert (found.low, found.high, found.confidence) == (1, n, holds)
    assert found.p_value == 1 - holds
    assert found.warning is not None
    assert f"{n} seeds are too few for 95 %" in found.warning
    assert f"p < {1 - holds:.3g}" in found.warning
    assert f"{100 * holds:.4g} %" in found.warning
    assert not found.significant  # although 0 lies outside of what the interval can be


def test_six_seeds_of_one_sign_are_enough() -> None:
    found = paired_difference([1.0, 2, 3, 4, 5, 6], np.zeros(6))
    assert (found.low, found.high, found.p_value, found.warning) == (1, 6, 2 / 64, None)
    assert found.significant


def test_one_seed_has_no_interval() -> None:
    for method in ("auto", *METHODS):
        found = paired_difference([3.0], [1.0], method=method)
        assert (found.mean, found.low, found.high, found.p_value) == (2, -math.inf, math.inf, 1)
        assert found.warning is not None
        assert "one seed" in found.warning
        assert not found.significant


def test_drawn_sign_patterns_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = np.random.default_rng(3).normal(0.5, 1, 14)
    exact = paired_difference(sample, np.zeros(14), method="sign_flip")
    monkeypatch.setattr(module, "EXACT_SEEDS", 0)
    drawn = paired_difference(sample, np.zeros(14), method="sign_flip", resamples=50_000)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=4 * math.sqrt(exact.p_value / 50_000))
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.03)
    assert drawn.p_value != exact.p_value


@pytest.mark.parametrize("method", METHODS)
def test_many_normal_seeds_give_students_interval(method: Method) -> None:
    sample = np.random.default_rng(5).normal(10, 3, 200)
    student = stats.ttest_1samp(sample, 9.4)
    low, high = student.confidence_interval()
    found = interval(sample, method=method)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert p_value(sample - 9.4, method) == pytest.approx(student.pvalue, abs=0.015)
    assert 0.02 < student.pvalue < 0.2  # where a p-value that is off would show
    assert found.warning is None


def test_percentiles_are_those_of_scipys_bootstrap() -> None:
    sample = np.random.default_rng(8).exponential(2, 12)
    theirs = stats.bootstrap(
        (sample,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = interval(sample, method="bootstrap", resamples=20_000)
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.04)


def test_studentised_ends_are_the_sample_less_the_quantiles_of_t() -> None:
    # All 5^5 resamples of five values, each as likely: the distribution that the draws come from.
    sample = np.array([1.0, 2, 4, 8, 16])
    drawn = sample[np.array(list(itertools.product(range(5), repeat=5)))]
    spread = drawn.std(axis=1, ddof=1) / math.sqrt(5)
    off = drawn.mean(axis=1) - sample.mean()
    t = np.where(spread > 0, off / np.where(spread > 0, spread, 1), np.copysign(np.inf, off))
    error = sample.std(ddof=1) / math.sqrt(5)
    low, high = np.quantile(t, [0.1, 0.9], method="inverted_cdf")
    found = interval(sample, method="studentised", confidence=0.8, resamples=50_000)
    assert (found.low, found.high) == pytest.approx(
        (sample.mean() - high * error, sample.mean() - low * error), rel=0.04
    )
    assert found.high - found.mean > 2 * (found.mean - found.low)  # a long tail to the right


@pytest.mark.parametrize("method", METHODS)
@given(
    values=st.lists(st.integers(-50, 50), min_size=6, max_size=12, unique=True),
    scale=st.sampled_from([-3.0, -0.5, 0.25, 7.0]),
    shift=st.sampled_from([-40.0, 0.0, 1000.0]),
)
def test_intervals_follow_shift_scale_and_reflection(
    method: Method, values: list[int], scale: float, shift: float
) -> None:
    sample = np.array(values, dtype=float)
    plain = interval(sample, method=method, resamples=199)
    moved = interval(scale * sample + shift, method=method, resamples=199)
    ends = sorted((scale * plain.low + shift, scale * plain.high + shift))
    assert [moved.low, moved.high] == pytest.approx(ends, rel=1e-7, abs=1e-6)
    assert moved.mean == pytest.approx(scale * plain.mean + shift)


@pytest.mark.parametrize("method", METHODS)
@given(st.lists(st.floats(-10, 12), min_size=6, max_size=12))
def test_zero_lies_outside_just_where_the_p_value_is_small(method: Method, values: list[float]) -> None:
    sample = np.array(values)
    found = paired_difference(sample, np.zeros(len(sample)), method=method, resamples=199)
    assert 0 < found.p_value <= 1
    gap = max(found.low, -found.high) / max(1e-300, float(np.abs(sample).max()))  # of 0 to the interval
    if abs(gap) > 1e-9:
        assert found.significant == (gap > 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_one_answer_and_no_global_generator_is_touched(method: Method) -> None:
    sample = np.random.default_rng(0).normal(size=18)
    np.random.seed(4)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = interval(sample, method=method, seed=1)
    assert first == interval(sample, method=method, seed=1)
    assert first != interval(sample, method=method, seed=2)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002


def test_auto_flips_signs_for_few_seeds_and_studentises_more() -> None:
    rng = np.random.default_rng(0)
    for n, method in ((2, "sign_flip"), (8, "sign_flip"), (9, "studentised"), (30, "studentised")):
        assert interval(rng.normal(size=n)).method == method


def test_auto_flips_signs_where_resamples_are_flat_too_often() -> None:
    dips = np.array([0.0] * 9 + [30])
    found = interval(dips)
    assert (found.method, found.low) == ("sign_flip", 0)
    assert math.isfinite(found.high)
    asked = interval(dips, method="studentised")
    assert asked.high == math.inf
    assert asked.warning is not None
    assert "no bound" in asked.warning


def test_a_flat_resample_at_the_mean_itself_is_no_error_away() -> None:
    # One in 27 resamples is all -1, one all 0, one all 1: t of -inf, 0 and inf, each within a tail of 5 %.
    found = interval([-1.0, 0, 1], method="studentised", confidence=0.9)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.warning is None


@pytest.mark.parametrize(("n", "warned"), [(2, True), (8, True), (9, False)])
def test_a_percentile_bootstrap_of_few_seeds_warns(n: int, warned: bool) -> None:
    warning = interval(np.arange(n), method="bootstrap").warning
    assert (warning is not None) == warned
    assert warning is None or f"percentile bootstrap of {n} seeds" in warning


@pytest.mark.parametrize("method", ("auto", *METHODS))
@pytest.mark.parametrize("n", [2, 7, 12, 20])
def test_equal_arms_differ_by_nothing_and_equal_values_say_so(method: Method, n: int) -> None:
    arm = np.random.default_rng(0).normal(50, 10, n)
    same = paired_difference(arm, arm, method=method)
    assert (same.mean, same.low, same.high, same.better, same.p_value) == (0, 0, 0, 0, 1)
    assert same.warning is not None
    assert f"all {n} values are equal" in same.warning
    shifted = paired_difference(np.full(n, 0.3), np.full(n, 0.1), method=method)
    assert (shifted.low, shifted.high) == pytest.approx((0.2, 0.2))
    assert shifted.significant == (n >= 7 or method == "bootstrap")


def test_pairs_take_out_what_the_seeds_share() -> None:
    rng = np.random.default_rng(2)
    shared, effect = rng.normal(0, 30, 8), rng.normal(5, 1, 8)
    found = paired_difference(shared + effect, shared)
    assert found.mean == pytest.approx(effect.mean())
    assert found.better == found.n == 8
    assert found.low > 3.5
    assert found.p_value == 2 / 256


def test_better_counts_strictly_and_in_the_sense_asked_for() -> None:
    a, b = [1.0, 5, 3, 3, 0, 2], [2.0, 4, 3, 1, 1, 0]
    up, down = paired_difference(a, b), paired_difference(a, b, higher_is_better=False)
    assert (up.better, down.better) == (3, 2)
    assert (up.mean, up.low, up.high) == (down.mean, down.low, down.high)
    assert up.mean == pytest.approx(0.5)


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(DataError, match="at least one value"):
        interval([])
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        interval([[1.0, 2.0]])
    with pytest.raises(DataError, match=r"b\[1\] is NaN"):
        paired_difference([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(DataError, match="3 and 2 values"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="confidence must lie between 0 and 1, got 95"):
        interval([1.0, 2.0], confidence=95)
    with pytest.raises(ConfigError, match="resamples must be at least 2000"):
        interval([1.0, 2.0], confidence=0.999, resamples=1000)
    with pytest.raises(ConfigError, match="got 'jackknife'"):
        interval([1.0, 2.0], method="jackknife")  # type: ignore[arg-type]


def coverage(draw: Callable[[np.random.Generator], NDArray[np.float64]], mean: float, method: Method) -> float:
    """Share of 1,000 samples whose interval holds the true mean; its own standard error is 0.007."""
    rng = np.random.default_rng(7)
    found = [interval(draw(rng), method=method, seed=k, resamples=399) for k in range(1000)]
    return float(np.mean([one.low <= mean <= one.high for one in found]))


@pytest.mark.parametrize(
    ("n", "method", "least", "most"),
    [
        (5, "bootstrap", 0.80, 0.87),  # why it warns
        (5, "sign_flip", 0.915, 0.96),  # promises 93.75 %
        (5, "studentised", 0.93, 0.98),
        (8, "auto", 0.93, 0.97),
        (10, "bootstrap", 0.87, 0.92),
        (10, "sign_flip", 0.93, 0.97),
        (10, "auto", 0.93, 0.97),
    ],
)
def test_coverage_of_normal_samples(n: int, method: Method, least: float, most: float) -> None:
    assert least <= coverage(lambda rng: rng.normal(3, 2, n), 3, method) <= most


@pytest.mark.parametrize(
    ("n", "method", "least", "most"),
    [
        (5, "bootstrap", 0.74, 0.82),
        (5, "sign_flip", 0.86, 0.93),  # supposes symmetry, and loses a little without it
        (5, "studentised", 0.90, 0.97),
        (10, "bootstrap", 0.82, 0.89),
        (10, "sign_flip", 0.88, 0.94),
        (10, "auto", 0.92, 0.97),
    ],
)
def test_coverage_of_skewed_samples(n: int, method: Method, least: float, most: float) -> None:
    assert least <= coverage(lambda rng: rng.exponential(2, n), 2, method) <= most


def test_auto_does_not_go_beyond_the_values_where_one_alone_makes_the_spread() -> None:
    values = [0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.1, 0.2, -60.0]
    wild = interval(values, method="studentised")
    assert wild.low < min(values) - 60  # t in resamples without the one seed
    found = interval(values)
    assert found.method == "sign_flip"
    assert min(values) <= found.low <= found.high <= max(values)
    assert interval(np.arange(10.0)).method == "studentised"
