"""The t distribution against scipy's."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from o2o_smooth.smoothing.bounds import t_at_confidence
from o2o_smooth.stability.student import t_at_tail, t_tail


@pytest.mark.parametrize("df", [0.7, 1.0, 2.5, 9.0, 40.0, 1234.5, 1e6, math.inf])
@pytest.mark.parametrize("t", [-40.0, -3.0, -0.1, 0.0, 1e-6, 0.5, 1.96, 7.0, 40.0])
def test_tail_agrees_with_scipy(t: float, df: float) -> None:
    expected = stats.norm.sf(t) if math.isinf(df) else stats.t.sf(t, df)
    assert t_tail(t, df) == pytest.approx(expected, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("df", [1.0, 3.3, 30.0, 5000.0, math.inf])
@pytest.mark.parametrize("share", [1e-4, 0.025, 0.05, 0.5, 0.8, 0.995])
def test_quantile_agrees_with_scipy(share: float, df: float) -> None:
    expected = stats.norm.isf(share) if math.isinf(df) else stats.t.isf(share, df)
    assert t_at_tail(share, df) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_what_is_no_distribution_is_refused() -> None:
    for t, df in ((1.0, 0.0), (math.nan, 3.0)):
        with pytest.raises(ValueError, match="distribution"):
            t_tail(t, df)
    with pytest.raises(ValueError, match="distribution"):
        t_at_tail(1.0, 3.0)


@pytest.mark.parametrize("df", [3, 9, 40])
def test_the_two_quantiles_say_in_their_names_which_end_they_take(df: int) -> None:
    """The gate's takes what lies below, the tests' what lies above."""
    assert t_at_tail(0.025, df) > 1.9
    assert t_at_confidence(0.975, df) == pytest.approx(t_at_tail(0.025, df), rel=1e-3)
    with pytest.raises(ValueError, match="confidence"):
        t_at_confidence(0.025, df)
