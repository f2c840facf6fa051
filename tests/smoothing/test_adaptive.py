from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o_smooth.smoothing import PerformanceGate, PerformanceGateConfig

GATE = PerformanceGateConfig(
    ramp_steps=1000, share=0.8, retreat=2.0, interval=100, reference_episodes=3, window=2
)  # ten decisions from 0 to 1


def gate(members: int = 1, random_return: float | None = None, **changes: Any) -> PerformanceGate:
    config = PerformanceGateConfig(**{**GATE.__dict__, **changes})
    return PerformanceGate(config, members=members, random_return=random_return)


def opened(returns: float = 10.0, **changes: Any) -> PerformanceGate:
    rule = gate(**changes)
    rule.observe_episodes(0, [returns] * GATE.reference_episodes)
    return rule


def test_weight_stays_zero_until_the_reference_episodes_are_in() -> None:
    rule = gate()
    rule.observe_episodes(0, [10.0, 10.0])
    rule.advance(5000)
    assert rule.weights().tolist() == [0.0]
    assert rule.bar(0) is None
    rule.observe_episodes(0, [10.0])
    assert rule.weights().tolist() == [0.0]
    rule.advance(5100)  # decisions from before the yardstick was known are not made up for
    assert rule.weights().tolist() == [0.1]


def test_weight_advances_by_interval_over_ramp_per_decision_while_returns_hold() -> None:
    rule = opened()
    seen = []
    for t in range(50, 1301, 50):
        rule.advance(t)
        seen.append(float(rule.weights()[0]))
    decided = np.minimum(np.arange(50, 1301, 50) // 100, 10) / 10
    np.testing.assert_array_equal(seen, decided)


def test_full_ramp_ends_at_exactly_one() -> None:
    for interval, ramp in ((100, 1000), (250, 7000), (100, 300), (1, 49)):
        rule = opened(interval=interval, ramp_steps=ramp)
        rule.advance(ramp - interval)
        assert rule.weights()[0] < 1.0
        rule.advance(ramp)
        assert rule.weights()[0] == 1.0


def test_weight_retreats_at_the_stated_multiple_below_the_bar_and_recovers() -> None:
    rule = opened()
    rule.advance(700)
    rule.observe_episodes(0, [7.0])  # running (10 + 7) / 2 = 8.5, bar 8: open
    rule.advance(800)
    assert rule.weights()[0] == 0.8
    rule.observe_episodes(0, [7.0])  # running 7: closed
    rule.advance(900)
    assert rule.weights()[0] == 0.6
    rule.advance(1000)
    assert rule.weights()[0] == 0.4
    rule.observe_episodes(0, [9.5, 9.5])
    rule.advance(1100)
    assert rule.weights()[0] == 0.5


def test_retreat_ends_at_exactly_zero() -> None:
    rule = opened(retreat=1.0)
    rule.advance(300)
    rule.observe_episodes(0, [0.0, 0.0])
    rule.advance(600)
    assert rule.weights()[0] == 0.0
    rule.advance(900)
    assert rule.weights()[0] == 0.0


def test_weight_leaves_one_again_when_returns_fall() -> None:
    rule = opened()
    rule.advance(2000)
    assert rule.weights()[0] == 1.0
    rule.observe_episodes(0, [1.0, 1.0])
    rule.advance(2100)
    assert rule.weights()[0] == 0.8


def test_no_retreat_holds_the_weight() -> None:
    rule = opened(retreat=0.0)
    rule.advance(400)
    rule.observe_episodes(0, [0.0, 0.0])
    rule.advance(900)
    assert rule.weights()[0] == 0.4


@pytest.mark.parametrize(
    ("returns", "random_return", "bar"),
    [
        (10.0, None, 8.0),
        (-10.0, None, -12.0),
        (0.0, None, 0.0),
        (10.0, 5.0, 9.0),
        (10.0, -10.0, 6.0),
        (-200.0, -1200.0, -400.0),  # a pendulum: negative, but far above random
        (-10.0, 0.0, -12.0),  # worse than random at the switch: the random return says nothing
        (5.0, 5.0, 4.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_bar_is_a_share_of_the_way_from_random_to_the_return_at_the_switch(
    returns: float, random_return: float | None, bar: float
) -> None:
    rule = gate(random_return=random_return)
    rule.observe_episodes(0, [returns] * 3)
    assert rule.bar(0) == pytest.approx(bar, abs=1e-12)


def test_bar_is_the_mean_of_the_first_episodes_and_never_moves() -> None:
    rule = gate()
    rule.observe_episodes(0, [5.0, 10.0, 15.0, 100.0, 100.0])
    rule.advance(300)
    assert rule.bar(0) == pytest.approx(8.0)


def test_running_return_is_the_mean_of_the_last_window() -> None:
    rule = gate(window=2)
    rule.observe_episodes(0, [10.0, 10.0, 10.0, 9.0, 3.0])
    assert rule.signals()["gate/running_return"].tolist() == [6.0]
    assert rule.signals()["gate/bar"].tolist() == [pytest.approx(8.0)]


def test_signals_are_nan_before_anything_is_known() -> None:
    assert all(math.isnan(value[0]) for value in gate().signals().values())


@given(
    st.floats(-1e6, 1e6),
    st.one_of(st.none(), st.floats(-1e6, 1e6)),
    st.floats(0.01, 1.0),
)
def test_policy_that_keeps_its_return_exactly_never_closes_the_gate(
    value: float, random_return: float | None, share: float
) -> None:
    rule = gate(random_return=random_return, share=share, reference_episodes=4, window=2)
    rule.observe_episodes(0, [value] * 4)
    rule.advance(100)
    assert rule.weights()[0] == 0.1


def test_members_move_on_their_own_returns() -> None:
    rule = gate(members=3)
    rule.observe_episodes(0, [10.0] * 3)
    rule.observe_episodes(2, [10.0] * 3)
    rule.advance(500)
    np.testing.assert_array_equal(rule.weights(), [0.5, 0.0, 0.5])
    rule.observe_episodes(2, [0.0, 0.0])
    rule.observe_episodes(1, [-5.0] * 3)
    rule.advance(600)
    np.testing.assert_array_equal(rule.weights(), [0.6, 0.1, 0.3])


def test_large_time_jump_makes_every_decision_that_was_due() -> None:
    slow, fast = opened(), opened()
    for t in range(7, 765, 7):
        slow.advance(t)
    fast.advance(763)
    assert slow.weights()[0] == fast.weights()[0] == 0.7
    fast.advance(763)  # the same time again, or earlier, decides nothing
    fast.advance(300)
    fast.advance(763)
    assert fast.weights()[0] == 0.7


def test_not_finite_return_is_refused_and_leaves_no_trace() -> None:
    rule = gate()
    before = rule.state_dict()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"member 0 is (nan|inf)"):
            rule.observe_episodes(0, [1.0, bad])
    assert rule.state_dict() == before


def test_state_goes_through_json_and_goes_on_identically() -> None:
    rng = np.random.default_rng(3)
    rule = gate(members=2, random_return=1.0)
    for t in range(0, 800, 50):
        rule.observe_episodes(t // 50 % 2, rng.uniform(2, 18, 1).tolist())
        rule.advance(t)
    other = gate(members=2, random_return=1.0)
    other.load_state_dict(json.loads(json.dumps(rule.state_dict())))
    path = []
    for t in range(800, 2000, 50):
        returns = rng.uniform(2, 18, 2).tolist()
        for each in (rule, other):
            each.observe_episodes(t // 50 % 2, returns)
            each.advance(t)
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ramp_steps", 0.0),
        ("ramp_steps", math.nan),
        ("interval", -1.0),
        ("interval", math.inf),
        ("share", 0.0),
        ("share", 1.1),
        ("share", math.nan),
        ("retreat", -0.1),
        ("retreat", math.inf),
        ("reference_episodes", 0),
        ("window", 0),
    ],
)
def test_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        gate(**{name: value})


def test_short_first_episodes_of_parallel_environments_do_not_set_the_yardstick() -> None:
    """Lane 0 ends four bad episodes before lane 1 ends a good one: each lane counts equally."""
    rule = PerformanceGate(GATE, lanes=2)
    rule.observe_episodes(0, [1.0] * 10, lane=0)
    assert rule.bar(0) is None
    rule.advance(1000)
    assert rule.weights().tolist() == [0.0]
    rule.observe_episodes(0, [9.0] * GATE.reference_episodes, lane=1)
    assert rule.bar(0) == pytest.approx(GATE.share * 5.0)
    state = json.loads(json.dumps(rule.state_dict()))
    again = PerformanceGate(GATE, lanes=2)
    again.load_state_dict(state)
    assert again.bar(0) == rule.bar(0)
    with pytest.raises(ValueError, match="lanes"):
        PerformanceGate(GATE, lanes=3).load_state_dict(state)
