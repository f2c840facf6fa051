"""The performance gate does what its rule says, member by member."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from o2o_smooth.smoothing import PerformanceGate, PerformanceGateConfig
from o2o_smooth.smoothing.bounds import t_at_confidence

GATE = PerformanceGateConfig(ramp_steps=1000, share=0.8, retreat=2.0, window=4, yardstick=8, ramp_episodes=5)
STICK = [9.0, 10.0, 10.5, 10.5]  # mean 10, deviation 0.707, standard error 0.354: good after four episodes


def gate(members: int = 1, *, lanes: int = 1, random_return: float | None = None, **changes: Any) -> PerformanceGate:
    config = PerformanceGateConfig(**{**GATE.__dict__, **changes})
    return PerformanceGate(config, members=members, lanes=lanes, random_return=random_return)


def opened(**changes: Any) -> PerformanceGate:
    rule = gate(**changes)
    rule.observe_episodes(0, STICK)
    return rule


def verdict(rule: PerformanceGate, member: int = 0) -> int:
    return int(rule.signals()["gate/verdict"][member])


def test_quantile_is_students() -> None:
    for confidence in (0.6, 0.75, 0.9, 0.95, 0.975, 0.99, 0.999):
        for degrees in (2, 3, 4, 5, 7, 10, 22, 100):
            expected = stats.t.ppf(confidence, degrees)
            assert t_at_confidence(confidence, degrees) == pytest.approx(expected, rel=1e-4)
    assert t_at_confidence(0.5, 5) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="confidence"):
        t_at_confidence(1.0, 5)
    with pytest.raises(ValueError, match="degrees"):
        t_at_confidence(0.9, 1)


# The yardstick


def test_weight_stays_zero_until_the_yardstick_is_taken() -> None:
    rule = gate()
    rule.observe_episodes(0, STICK[:3])
    rule.advance(400)
    assert rule.weights().tolist() == [0.0]
    assert rule.yardstick(0) is None
    rule.observe_episodes(0, STICK[3:])
    assert rule.weights().tolist() == [0.0]
    rule.advance(500)  # the time before the yardstick is not made up for
    assert rule.weights().tolist() == [0.1]


def test_yardstick_is_the_mean_of_the_first_episodes_and_never_moves() -> None:
    rule = opened()
    stick = rule.yardstick(0)
    assert stick is not None
    assert (stick.mean, stick.episodes) == (10.0, 4)
    assert stick.deviation == pytest.approx(np.std(STICK, ddof=1))
    rule.observe_episodes(0, [100.0, 100.0, 0.0])
    assert rule.yardstick(0) == stick


@pytest.mark.parametrize(
    ("returns", "changes", "episodes"),
    [
        ([9.9, 10.0, 10.1, 10.0, 10.2, 9.8, 10.0, 9.9], {}, 4),  # they agree
        ([7.0, 13.0, 8.0, 12.0, 9.1, 10.5, 9.5, 10.6], {}, 6),  # error at most half of the tolerated 2 only now
        ([1.0, 19.0, 2.0, 18.0, 3.0, 17.0, 4.0, 16.0], {}, 8),  # never: the most that is allowed
        ([1.0, 19.0, 2.0, 18.0, 3.0, 17.0] * 2, {"yardstick": 12}, 12),
        ([1.0, 19.0, 2.0, 18.0, 3.0, 17.0] * 2, {"yardstick": 12, "ramp_steps": 18.0}, 9),  # half a ramp has passed
        ([1.0, 19.0, 2.0, 18.0, 3.0, 17.0] * 2, {"yardstick": 12, "ramp_steps": 2.0}, 8),  # but eight it takes
    ],
)
def test_yardstick_takes_as_many_episodes_as_its_noise_asks_for(
    returns: list[float], changes: dict[str, Any], episodes: int
) -> None:
    rule = gate(**changes)
    for i, value in enumerate(returns):
        rule.advance(i + 1)
        rule.observe_episodes(0, [value])
    stick = rule.yardstick(0)
    assert stick is not None
    assert stick.episodes == episodes
    assert stick.mean == pytest.approx(np.mean(returns[:episodes]))


@pytest.mark.parametrize(
    ("shift", "random_return", "bar"),
    [
        (0.0, None, 8.0),
        (-20.0, None, -12.0),
        (0.0, 5.0, 9.0),
        (0.0, -10.0, 6.0),
        (0.0, 20.0, 8.0),  # worse than random at the switch: the random return says nothing
        (0.0, 9.9, 10.0 - np.std(STICK, ddof=1) / 2),  # near random: what the yardstick can show
    ],
)
def test_bar_is_a_share_of_the_way_from_random_or_what_the_yardstick_can_show(
    shift: float, random_return: float | None, bar: float
) -> None:
    rule = gate(random_return=random_return, yardstick=4)
    rule.observe_episodes(0, [value + shift for value in STICK])
    assert rule.signals()["gate/bar"][0] == pytest.approx(bar, abs=1e-12)


def test_short_first_episodes_of_parallel_environments_do_not_set_the_yardstick() -> None:
    """Lane 0 ends ten bad episodes before lane 1 ends a good one: each lane counts equally."""
    rule = gate(lanes=2)
    rule.observe_episodes(0, [1.0, 1.1, 0.9] * 3, lane=0)
    rule.advance(1000)
    assert rule.yardstick(0) is None
    rule.observe_episodes(0, [9.0], lane=1)
    assert rule.yardstick(0) is None
    rule.observe_episodes(0, [9.2, 8.9, 9.1], lane=1)
    stick = rule.yardstick(0)
    assert stick is not None
    assert stick.episodes == 8
    assert stick.mean == pytest.approx((1.0 + 1.1 + 0.9 + 1.0 + 9.0 + 9.2 + 8.9 + 9.1) / 8)


# Verdicts


def test_weight_advances_a_step_per_step_and_waits_for_the_next_episode() -> None:
    rule = opened()
    rule.advance(50)
    assert rule.weights()[0] == 0.05
    rule.advance(700)  # a fifth of the ramp per episode, and no more
    assert rule.weights()[0] == 0.2
    rule.observe_episodes(0, [10.1])
    rule.advance(760)
    assert rule.weights()[0] == 0.26
    rule.observe_episodes(0, [10.2])  # what was left over is not saved up
    rule.advance(2000)
    assert rule.weights()[0] == 0.46


def test_full_ramp_ends_at_exactly_one() -> None:
    for length, ramp in ((10, 1000.0), (7, 300.0), (3, 49.0)):
        rule = gate(ramp_steps=ramp, ramp_episodes=1, yardstick=4)
        rule.observe_episodes(0, STICK)
        seen = []
        for t in range(length, int(ramp) + 2 * length, length):
            rule.advance(t)
            seen.append(float(rule.weights()[0]))
            rule.observe_episodes(0, [10.0 + t % 2])
        assert seen == [min(t / ramp, 1.0) for t in range(length, int(ramp) + 2 * length, length)]


def bound(fresh: list[float], size: int, confidence: float = GATE.confidence) -> float:
    """The upper bound of the docstring, by scipy."""
    n, k = len(STICK), len(fresh)
    within = [np.array(STICK)] + ([np.array(fresh)] if k > 1 else [])
    squares = sum(((x - x.mean()) ** 2).sum() for x in within)
    degrees = sum(len(x) - 1 for x in within)
    margin = stats.t.ppf(confidence, degrees) * math.sqrt(squares / degrees) * math.sqrt(1 / size + 1 / n)
    return float(np.mean(fresh[-size:]) + margin)


@pytest.mark.parametrize(
    "fresh",
    [
        [6.0],
        [7.4],
        [7.6],
        [9.0, 7.0],
        [7.9, 7.5, 8.2],
        [7.9, 7.9, 7.8, 7.9],
        [10.0, 9.0, 2.0],
        [10.0, 7.9, 7.9, 7.9, 7.9],
        [12.0, 13.0, 1.0, 12.0],
        [9.0, 11.0, 8.0, 7.0, 12.0],
        [11.0] * 7 + [7.5] * 5,
        [7.0, 9.0] * 7 + [8.1, 7.8],
        [1.0] * 3 + [10.0] * 14 + [7.9, 7.9],  # three are forgotten
    ],
)
def test_verdict_is_that_of_the_documented_bounds(fresh: list[float]) -> None:
    rule = opened()
    rule.observe_episodes(0, fresh)
    kept = fresh[-16:]
    sizes = [k for k in (1, 2, 4, 8, 16) if k <= len(kept)]
    closed = any(np.mean(kept[-k:]) < 8.0 and bound(kept, k) < 10.0 for k in sizes)
    running = np.mean((STICK + fresh)[-4:])
    expected = -1 if closed and np.mean(kept[-2:]) < 8.0 else 1 if running >= 8.0 else 0
    assert verdict(rule) == expected


def test_all_three_verdicts_occur() -> None:
    found = []
    for fresh in ([9.0], [7.6], [2.0]):
        rule = opened()
        rule.observe_episodes(0, fresh)
        found.append(verdict(rule))
    held = opened()
    held.observe_episodes(0, [4.0, 12.0, 4.0, 10.0])  # mean 7.5, but so scattered that it may be chance
    assert [*found, verdict(held)] == [1, 1, -1, 0]


def test_weight_retreats_at_the_stated_multiple_and_comes_back() -> None:
    rule = opened(ramp_episodes=1)
    rule.advance(700)
    rule.observe_episodes(0, [2.0])
    rule.advance(800)
    assert rule.weights()[0] == 0.5
    rule.advance(900)  # a retreat waits for nothing
    assert rule.weights()[0] == pytest.approx(0.3)
    rule.observe_episodes(0, [10.0, 10.5, 10.0, 9.5])
    rule.advance(1000)
    assert rule.weights()[0] == pytest.approx(0.4)


def test_retreat_ends_at_exactly_zero_and_leaves_one() -> None:
    rule = opened(ramp_episodes=1, retreat=1.0)
    rule.advance(1500)
    assert rule.weights()[0] == 1.0
    rule.observe_episodes(0, [2.0])
    rule.advance(1600)
    assert rule.weights()[0] == 0.9
    rule.advance(9000)
    assert rule.weights()[0] == 0.0


def test_no_retreat_holds_the_weight() -> None:
    rule = opened(ramp_episodes=1, retreat=0.0)
    rule.advance(400)
    rule.observe_episodes(0, [1.0])
    rule.advance(900)
    assert rule.weights()[0] == 0.4


def test_good_episodes_after_a_collapse_end_the_retreat_before_the_window_has_forgotten_it() -> None:
    rule = opened(ramp_episodes=1)
    rule.advance(600)
    rule.observe_episodes(0, [1.0, 1.1])
    assert verdict(rule) == -1
    rule.observe_episodes(0, [10.0, 10.0])
    assert verdict(rule) == 0


@pytest.mark.parametrize(("random_return", "values"), [(0.0, [1.0] * 8), (None, [1.0] * 8), (-50.0, [-20.0] * 8)])
def test_one_failure_after_a_lucky_yardstick_does_not_retreat(random_return: float | None, values: list[float]) -> None:
    """Success or failure: eight of eight is no proof of a policy that never fails."""
    rule = gate(random_return=random_return, yardstick=8, window=8)
    rule.observe_episodes(0, values)
    failure = 0.0 if values[0] > 0 else -50.0
    for success in (values[0], values[0], failure, values[0]):
        rule.observe_episodes(0, [success])
        assert verdict(rule) >= 0
    rule.observe_episodes(0, [failure] * 5)
    assert verdict(rule) == -1


def test_policy_that_never_succeeds_has_nothing_to_lose() -> None:
    rule = gate(random_return=0.0, ramp_episodes=1)
    rule.observe_episodes(0, [0.0] * 20)
    rule.advance(1000)
    assert rule.weights()[0] == 1.0


def test_policy_as_good_as_random_still_retreats_when_it_becomes_worse() -> None:
    rule = gate(random_return=10.0)
    rule.observe_episodes(0, STICK)
    assert verdict(rule) == 1
    rule.observe_episodes(0, [2.0, 2.5])
    assert verdict(rule) == -1


@given(st.floats(-1e6, 1e6), st.one_of(st.none(), st.floats(-1e6, 1e6)), st.floats(0.01, 1.0))
def test_policy_that_keeps_its_return_exactly_never_closes_the_gate(
    value: float, random_return: float | None, share: float
) -> None:
    rule = gate(random_return=random_return, share=share)
    rule.observe_episodes(0, [value] * 30)
    assert verdict(rule) == 1
    rule.advance(100)
    assert rule.weights()[0] == 0.1


def test_members_move_on_their_own_returns() -> None:
    rule = gate(members=3, ramp_episodes=1)
    rule.observe_episodes(0, STICK)
    rule.observe_episodes(2, STICK)
    rule.advance(400)
    np.testing.assert_array_equal(rule.weights(), [0.4, 0.0, 0.4])
    rule.observe_episodes(2, [0.0, 0.0])
    rule.observe_episodes(1, [-5.0, -5.1, -4.9, -5.0])
    rule.advance(500)
    np.testing.assert_allclose(rule.weights(), [0.5, 0.1, 0.2], rtol=1e-12)


def test_time_may_come_in_any_portions() -> None:
    slow, fast = opened(), opened()
    for t in range(7, 765, 7):
        slow.advance(t)
    fast.advance(763)
    fast.advance(763)  # the same time again, or an earlier one, moves nothing
    fast.advance(300)
    fast.advance(763)
    assert slow.state_dict() == fast.state_dict()
    assert slow.weights()[0] == 0.2


# Input and keeping


def test_signals_are_nan_before_anything_is_known() -> None:
    found = gate().signals()
    assert found.pop("gate/verdict")[0] == 0.0
    assert found
    assert all(math.isnan(value[0]) for value in found.values())


def test_not_finite_return_is_refused_and_leaves_no_trace() -> None:
    rule = gate()
    before = rule.state_dict()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"member 0 is (nan|inf)"):
            rule.observe_episodes(0, [1.0, bad])
    assert rule.state_dict() == before


def test_state_goes_through_json_and_goes_on_identically() -> None:
    rng = np.random.default_rng(3)

    def make() -> PerformanceGate:
        return gate(members=2, lanes=2, random_return=1.0)

    for cut in (3, 14, 40):  # within the yardstick, after it, late
        rule = make()
        for i in range(cut):
            rule.observe_episodes(i % 2, rng.normal(10, 2, 1).tolist(), lane=i // 2 % 2)
            rule.advance(20 * i)
        other = make()
        other.load_state_dict(json.loads(json.dumps(rule.state_dict())))
        path = []
        for i in range(cut, cut + 80):
            returns = rng.normal(10 if i % 40 < 20 else 4, 2, 1).tolist()
            for each in (rule, other):
                each.observe_episodes(i % 2, returns, lane=i // 2 % 2)
                each.advance(20 * i)
            np.testing.assert_array_equal(rule.weights(), other.weights())
            path.append(rule.weights())
        assert rule.state_dict() == other.state_dict()
        moves = np.diff(path, axis=0)
        assert moves.min() < 0 < moves.max()


def test_state_does_not_share_memory_with_the_rule() -> None:
    rule = opened()
    state = rule.state_dict()
    before = json.dumps(state)
    rule.weights()[:] = 0.5
    rule.observe_episodes(0, [1.0])
    rule.advance(100)
    assert json.dumps(state) == before


def test_state_of_another_population_is_refused() -> None:
    with pytest.raises(ValueError, match="state of 2 members, expected 3"):
        gate(members=3).load_state_dict(gate(members=2).state_dict())
    with pytest.raises(ValueError, match="state of 1 lanes, expected 3"):
        gate(lanes=3).load_state_dict(gate().state_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ramp_steps", 0.0),
        ("ramp_steps", math.nan),
        ("share", 0.0),
        ("share", 1.1),
        ("share", math.nan),
        ("retreat", -0.1),
        ("retreat", math.inf),
        ("confidence", 0.4),
        ("confidence", 1.0),
        ("confidence", math.nan),
        ("yardstick", 3),
        ("window", 0),
        ("ramp_episodes", 0),
    ],
)
def test_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        gate(**{name: value})
    with pytest.raises(ValueError, match="lanes"):
        gate(lanes=0)
    with pytest.raises(ValueError, match="lane 2, but it was made for lanes=2"):
        gate(lanes=2).observe_episodes(0, [1.0], lane=2)
