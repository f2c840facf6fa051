"""The policy at the switch against its data: the test against scipy's, and what it says in clear cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from o2o_smooth.stability.regime import Episodes, above, compare_with_data


def _data(values: np.ndarray) -> Episodes:
    return Episodes(float(values.mean()), float(values.std()), len(values))


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_for_one_seed_it_is_welchs_test(margin: float) -> None:
    rng = np.random.default_rng(0)
    policy, data = rng.normal(10, 5, 12), rng.normal(6, 2, 40)
    found = compare_with_data(policy[None], _data(data), margin=margin)
    better = stats.ttest_ind(policy - margin, data, equal_var=False, alternative="greater")
    worse = stats.ttest_ind(policy + margin, data, equal_var=False, alternative="less")
    assert found.p_policy_better == pytest.approx(better.pvalue, rel=1e-9)
    assert found.p_data_better == pytest.approx(worse.pvalue, rel=1e-9)
    assert found.df == pytest.approx(better.df)
    interval = stats.ttest_ind(policy, data, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert not found.exact_data


def test_without_the_datas_spread_it_is_a_test_against_their_mean() -> None:
    policy = np.random.default_rng(1).normal(10, 5, 12)
    found = compare_with_data(policy[None], Episodes(7.0, None, 40), margin=0.0)
    assert found.p_policy_better == pytest.approx(stats.ttest_1samp(policy, 7.0, alternative="greater").pvalue)
    assert found.exact_data


def test_seeds_are_strata_whose_own_differences_are_no_noise() -> None:
    noise = np.array([-1.0, 1.0] * 10)
    found = compare_with_data(np.stack([noise + 0.0, noise + 100.0]), Episodes(40.0, 1.0, 1000), margin=5.0)
    assert found.difference == pytest.approx(10.0)
    assert found.high - found.low < 1.0  # the seeds are 100 apart, and each is known well
    assert found.regime == "policy better"
    assert found.seeds == ("data better", "policy better")


@pytest.mark.parametrize(
    ("level", "spread", "regime", "certain"),
    [
        (60.0, 3.0, "policy better", True),
        (40.0, 3.0, "data better", True),
        (50.0, 3.0, "comparable", True),
        (54.0, 3.0, "comparable", False),  # inside the margin, but not shown to be
        (60.0, 60.0, "comparable", False),  # far outside, and as likely chance
    ],
)
def test_the_three_regimes(level: float, spread: float, regime: str, certain: bool) -> None:
    noise = np.tile([-spread, spread], 5)[None]
    found = compare_with_data(level + noise, Episodes(50.0, 3.0, 100), margin=5.0)
    assert (found.regime, found.certain, found.seeds) == (regime, certain, (regime,))


def test_the_interval_and_the_tests_say_the_same() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for shift in np.linspace(-20, 20, 81):
        found = compare_with_data(rng.normal(shift, 8, (3, 6)), Episodes(0.0, 4.0, 30), margin=5.0)
        expected = "policy better" if found.low > 5 else "data better" if found.high < -5 else "comparable"
        assert found.regime == expected
        assert found.certain == (expected != "comparable" or (found.low > -5 and found.high < 5))
        seen.add(expected)
    assert len(seen) == 3


def test_a_policy_without_noise_is_compared_as_it_is() -> None:
    found = compare_with_data(np.full((2, 3), 6.0), Episodes(5.0, 0.0, 10), margin=0.5)
    assert (found.regime, found.certain, found.low, found.df) == ("policy better", True, 1.0, math.inf)
    assert compare_with_data(np.full((2, 3), 5.4), Episodes(5.0, 0.0, 10), margin=0.5).certain


def test_above_a_level_is_more_than_chance() -> None:
    noise = np.tile([-10.0, 10.0], 10)[None]
    assert above(noise + 9.0, 0.0)
    assert not above(noise + 1.0, 0.0)
    assert not above(noise - 9.0, 0.0)


def test_what_cannot_be_tested_is_refused() -> None:
    data = Episodes(0.0, 1.0, 5)
    for policy in ([[1.0]], [1.0, 2.0], [[1.0, math.nan]]):
        with pytest.raises(ValueError, match="policy"):
            compare_with_data(policy, data, margin=1.0)
    with pytest.raises(ValueError, match="margin"):
        compare_with_data([[1.0, 2.0]], data, margin=-1.0)
    with pytest.raises(ValueError, match="std"):
        Episodes(0.0, -1.0, 5)
    with pytest.raises(ValueError, match="finite mean"):
        Episodes(math.nan, 1.0, 5)
