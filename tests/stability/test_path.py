"""Valleys and peaks on constructed scores, and how often noise alone is called one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from o2o_smooth.stability.path import interval, read_path
from o2o_smooth.stability.path_plot import plot_path

SHARES = np.linspace(0, 1, 5)


def scores(means: list[float], *, noise: float = 3.0, seeds: int = 3, episodes: int = 10) -> NDArray[np.float64]:
    """(P, S, E): the means with fresh noise."""
    rng = np.random.default_rng(0)
    return np.array(means)[:, None, None] + noise * rng.standard_normal((len(means), seeds, episodes))


def test_a_valley_is_below_both_ends() -> None:
    found = read_path(SHARES, scores([50, 30, 20, 40, 60]))
    assert found.valley.significant
    assert found.valley.at == 0.5
    assert found.valley.beyond == pytest.approx(30, abs=3)
    assert found.valley.seeds == 3
    assert found.sentence().startswith("there is a valley: at 0.5 of the way")
    assert not found.peak.significant
    assert "no point between is better than both ends; the better end is 1" in found.best()


def test_a_seeds_own_valley_is_told_where_the_mean_has_none() -> None:
    values = scores([40, 50, 60, 70, 80])
    values[2, 1] -= 40
    found = read_path(SHARES, values)
    assert not found.valley.significant
    assert found.own_valleys == 1
    assert found.sentence().endswith("of the seeds alone, 1 of 3 have one")


def test_a_slope_is_no_valley() -> None:
    found = read_path(SHARES, scores([50, 40, 30, 20, 10]))
    assert not found.valley.significant
    assert found.valley.beyond < 0
    assert found.sentence().startswith("there is no valley: no point between is below both ends")


def test_a_better_mixture_is_found_and_its_place_named() -> None:
    found = read_path(SHARES, scores([50, 60, 70, 80, 55]))
    assert found.peak.significant
    assert found.peak.at == 0.75
    assert "the best is between the ends: " in found.best()
    assert "for 3 of 3 seeds" in found.best()


def test_a_point_below_one_end_alone_is_no_valley_however_sure() -> None:
    found = read_path(SHARES, scores([50, 10, 10, 10, 10], noise=0.5))
    assert found.valley.p > 0.05


def test_noise_is_paired_by_episode() -> None:
    easy_and_hard = np.linspace(0, 100, 10)  # what an episode's start is worth, at every point
    values = np.array([50.0, 50.0, 47.0, 50.0, 50.0])[:, None, None] + easy_and_hard + scores([0] * 5, noise=0.5)
    found = read_path(SHARES, values)
    assert found.valley.significant
    assert found.valley.at == 0.5


def test_one_seed_agrees_with_scipys_paired_test() -> None:
    values = scores([50, 49, 47, 49.5, 50], seeds=1)
    found = read_path(SHARES, values).valley
    tests = [
        max(float(stats.ttest_rel(values[end, 0], values[i, 0], alternative="greater").pvalue) for end in (0, -1))
        for i in (1, 2, 3)
    ]
    assert found.p == pytest.approx(min(1.0, 3 * min(tests)))
    assert found.error == pytest.approx(
        stats.sem(values[2, 0] - values[0 if values[0].mean() < values[-1].mean() else -1, 0])
    )
    expected = stats.t.interval(0.95, 9, loc=0, scale=stats.sem(values[1, 0]))[1]
    assert interval(values[1]) == pytest.approx(expected)


def test_noise_alone_is_seldom_called_a_valley_or_a_peak() -> None:
    rng = np.random.default_rng(1)
    alarms = [0, 0]
    for _ in range(400):
        found = read_path(np.linspace(0, 1, 11), rng.standard_normal((11, 3, 8)))
        alarms[0] += found.valley.significant
        alarms[1] += found.peak.significant
    assert max(alarms) <= 0.05 * 400
    assert min(alarms) >= 0


def test_a_policy_without_noise_has_no_valley() -> None:
    found = read_path(SHARES, np.full((5, 2, 4), 7.0))
    assert not found.valley.significant
    assert found.errors == (0.0,) * 5


def test_what_is_no_path_is_refused() -> None:
    good = scores([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        read_path([0.0, 0.5, 0.9], good[:3])
    with pytest.raises(ValueError, match="two episodes"):
        read_path(SHARES, good[:, :, :1])
    good[2, 1, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        read_path(SHARES, good)


def test_the_picture_appears_whole(tmp_path: Path) -> None:
    path = plot_path(SHARES, scores([5, 4, 3, 4, 5]), tmp_path / "x.png", title="a", subtitle="b", unit="score")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
