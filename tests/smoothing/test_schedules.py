from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o_smooth.smoothing import (
    SCHEDULE_NAMES,
    Cosine,
    Exponential,
    Floor,
    Hold,
    Jump,
    Linear,
    Power,
    Schedule,
    Sigmoid,
    Stay,
    Steps,
    parse_schedule,
)

lengths = st.one_of(st.integers(1, 10**12).map(float), st.floats(1e-6, 1e300))
ramps: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(Linear, lengths),
    st.builds(Cosine, lengths),
    st.builds(Exponential, lengths),
    st.builds(Sigmoid, lengths, st.floats(0.01, 1000.0)),
    st.builds(Power, lengths, st.floats(0.01, 100.0)),
    st.builds(Steps, lengths, st.integers(1, 1000)),
)
curves = st.recursive(
    st.one_of(st.builds(Jump), st.builds(Stay), ramps),
    lambda inner: st.one_of(
        st.builds(Hold, st.one_of(st.just(0.0), lengths), inner), st.builds(Floor, st.floats(0.0, 1.0), inner)
    ),
    max_leaves=4,
)


def logistic(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


@pytest.mark.parametrize(
    ("curve", "t", "w"),
    [
        (Jump(), 0, 1.0),
        (Stay(), 10**9, 0.0),
        (Linear(400), 100, 0.25),
        (Linear(400), -5, 0.0),
        (Linear(400), 401, 1.0),
        (Cosine(600), 200, 0.25),
        (Cosine(600), 300, 0.5),
        (Power(100, 2.0), 50, 0.75),
        (Power(100, 0.5), 75, 0.5),
        (Exponential(1000), 250, 1 - 1000**-0.25),  # N' = N / ln 1000
        (Exponential(1000), 999, 1 - math.exp(-999 / (1000 / math.log(1000)))),
        (Sigmoid(100, 10.0), 50, 0.5),
        (
            Sigmoid(100, 6.0),
            25,
            (logistic(6 * -0.25) - logistic(-3.0)) / (logistic(3.0) - logistic(-3.0)),
        ),
        (Steps(100, 4), 24, 0.0),
        (Steps(100, 4), 25, 0.25),
        (Steps(100, 4), 74, 0.5),
        (Steps(100, 4), 99, 0.75),
        (Steps(100, 4), 100, 1.0),
        (Steps(100, 4), -1, 0.0),
    ],
)
def test_curve_is_its_formula(curve: Schedule, t: float, w: float) -> None:
    assert curve(t) == pytest.approx(w, abs=1e-12)


def test_exponential_is_cut_where_it_passes_one_minus_a_thousandth() -> None:
    curve = Exponential(1000)
    assert curve(1000) == 1.0
    assert curve(1000 * (1 - 1e-9)) == pytest.approx(1 - 1e-3, abs=1e-10)
    assert curve.time_constant == pytest.approx(1000 / math.log(1000))


@given(ramps)
def test_ramp_hits_zero_and_one_exactly(curve: Schedule) -> None:
    steps = curve.steps  # type: ignore[attr-defined]
    assert curve(0) == 0.0
    assert curve(steps) == 1.0
    assert curve(10 * steps) == 1.0


@given(curves, st.floats(0, 2e3), st.floats(0, 2e3))
def test_curve_is_monotone_and_stays_in_the_unit_interval(curve: Schedule, a: float, b: float) -> None:
    early, late = curve(min(a, b)), curve(max(a, b))
    assert 0.0 <= early <= late + 1e-15
    assert late <= 1.0


@given(st.integers(1, 300), st.integers(1, 50))
def test_steps_rise_exactly_at_their_stairs(n: int, run: int) -> None:
    curve = Steps(n * run, n)
    for stair in range(1, n + 1):
        assert curve(stair * run) == stair / n
        assert curve(stair * run - 1e-3) == (stair - 1) / n


def test_steps_of_one_is_a_delayed_jump() -> None:
    curve = Steps(100, 1)
    assert [curve(t) for t in (0, 99, 99.999, 100, 101)] == [0, 0, 0, 1, 1]


def test_hold_starts_the_curve_after_the_wait() -> None:
    curve = Hold(1000, Linear(100))
    assert [curve(t) for t in (0, 999, 1000, 1050, 1100)] == [0, 0, 0, 0.5, 1]
    assert [Hold(10, Jump())(t) for t in (0, 9, 10)] == [0, 0, 1]


def test_floor_keeps_a_share_of_the_offline_objective_for_ever() -> None:
    curve = Floor(0.2, Linear(100))
    assert curve(50) == 0.5
    assert curve(80) == curve(10**9) == 0.8
    assert Floor(1.0, Jump())(5) == 0.0
    assert Floor(0.0, Jump())(5) == 1.0


def test_modifiers_apply_from_right_to_left() -> None:
    assert parse_schedule("hold:10+floor:0.25+jump") == Hold(10, Floor(0.25, Jump()))
    assert parse_schedule("floor:0.25+hold:10+jump") == Floor(0.25, Hold(10, Jump()))


@given(curves)
def test_text_form_reads_back_as_the_same_curve(curve: Schedule) -> None:
    assert parse_schedule(str(curve)) == curve


@pytest.mark.parametrize(
    ("text", "curve"),
    [
        ("linear:1234567", Linear(1234567)),
        ("linear:1e6", Linear(1e6)),
        ("linear:1e+6", Linear(1e6)),
        (" hold:1e+3 + linear:2.5E+3 ", Hold(1000, Linear(2500))),
        ("sigmoid:50", Sigmoid(50, 10.0)),
        ("sigmoid:50:4", Sigmoid(50, 4.0)),
        ("power:50:3", Power(50, 3.0)),
        ("steps:50:2", Steps(50, 2)),
        ("jump", Jump()),
        ("stay", Stay()),
    ],
)
def test_text_is_read(text: str, curve: Schedule) -> None:
    assert parse_schedule(text) == curve


def test_text_without_a_length_takes_the_given_one_and_its_own_wins() -> None:
    assert parse_schedule("floor:0.1+linear", 500) == Floor(0.1, Linear(500))
    assert parse_schedule("linear:7", 500) == Linear(7)
    assert parse_schedule("jump", 500) == Jump()


def test_every_name_is_read() -> None:
    for name in SCHEDULE_NAMES:
        assert str(parse_schedule(name, 10)).split(":")[0] == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("liner:5000", ["'liner'", *SCHEDULE_NAMES, "hold:STEPS", "floor:SHARE"]),
        ("", ["''", "linear"]),
        ("linear", ["how long", "linear:STEPS"]),
        ("linear:soon", ["'soon'", "not a number"]),
        ("linear:5:6", ["linear", "at most 1", "got 2"]),
        ("jump:5", ["jump takes no number"]),
        ("steps:100:2.5", ["stairs", "whole", "2.5"]),
        ("steps:100:inf", ["stairs", "whole", "inf"]),
        ("steps:100:nan", ["stairs", "whole", "nan"]),
        ("steps:100:0", ["at least one stair"]),
        ("linear:-5", ["linear", "positive", "-5"]),
        ("cosine:nan", ["cosine", "positive"]),
        ("exponential:inf", ["exponential", "positive"]),
        ("sigmoid:5:0", ["sigmoid", "steepness"]),
        ("power:5:-1", ["power", "exponent"]),
        ("wait:5+linear:5", ["'wait:5'", "hold:STEPS", "floor:SHARE"]),
        ("hold+linear:5", ["'hold'", "hold:STEPS"]),
        ("hold:-1+linear:5", ["hold", "negative", "-1"]),
        ("floor:1.5+linear:5", ["floor", "between 0 and 1", "1.5"]),
        ("linear:5+hold:3", ["'hold'", "in front of one"]),
    ],
)
def test_text_that_cannot_be_read_names_the_part(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        parse_schedule(text)
    for word in words:
        assert word in str(error.value)
