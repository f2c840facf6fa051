"""Controls are recognised by what was done, or by name where nobody told."""

from dataclasses import replace

import pytest

from o2o_smooth.errors import DataError
from o2o_smooth.stability.arms import arms_by_name, find_twins, group_curves, role_by_name, role_of
from tests.stability.curve_cases import FLAT, curve


@pytest.mark.parametrize(
    ("schedule", "regime", "fraction", "role"),
    [
        ("jump", "retain", None, "jump"),
        ("jump", "discard", None, "jump"),
        ("jump", "mixed", None, "mixed"),
        ("jump", "retain", 0.5, "mixed"),
        ("stay", "mixed", None, "stay"),
        ("floor:0.2+jump", "retain", None, "floor"),
        ("floor:0.2+linear:5000", "retain", None, "smoothed"),
        ("hold:100+jump", "retain", None, "smoothed"),
        ("linear:5000", "mixed", None, "smoothed"),
        ("performance_gate", "retain", None, "smoothed"),
    ],
)
def test_the_role_follows_from_schedule_and_regime(
    schedule: str, regime: str, fraction: float | None, role: str
) -> None:
    assert role_of(schedule, regime, fraction) == role
    assert role_of(schedule, regime, fraction, treated=True) == "smoothed"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("jump", "jump"),
        ("Stay", "stay"),
        ("jump, mixed batch", "mixed"),
        ("jump-mixed", "mixed"),
        ("floor:0.2+jump", "floor"),
        ("floor", "floor"),
        ("linear 5k", "smoothed"),
        ("linear (A/A)", "twin"),
        ("jump-aa", "twin"),
        ("aa", "smoothed"),
        ("bazaar", "smoothed"),
        ("cal-ql", "smoothed"),
    ],
)
def test_without_settings_the_name_tells(name: str, role: str) -> None:
    assert role_by_name(name) == role


def test_a_named_twin_belongs_to_the_arm_it_names() -> None:
    arms = arms_by_name(curve(arm, s, FLAT) for arm in ("jump (A/A)", "jump", "cosine-aa") for s in (0, 1))
    assert [(a.name, a.role, a.twin_of) for a in arms] == [
        ("jump (A/A)", "twin", "jump"),
        ("jump", "jump", None),
        ("cosine-aa", "smoothed", None),  # there is no cosine
    ]


def test_equal_settings_are_a_twin_whatever_the_names_and_the_order() -> None:
    plain = arms_by_name(curve(arm, 0, FLAT) for arm in ("b", "a", "other"))
    b, a, other = (replace(arm, role="smoothed", settings="same") for arm in plain)
    found = find_twins([replace(b, stream=1), a, replace(other, settings="different")])
    assert [(arm.name, arm.role, arm.twin_of) for arm in found] == [
        ("b", "twin", "a"),
        ("a", "smoothed", None),
        ("other", "smoothed", None),
    ]


def test_equal_settings_on_other_seeds_are_no_pair() -> None:
    (one,) = arms_by_name([curve("a", 0, FLAT)])
    (two,) = arms_by_name([curve("b", 1, FLAT)])
    assert [arm.role for arm in find_twins([replace(one, settings="s"), replace(two, settings="s", stream=1)])] == [
        "smoothed",
        "smoothed",
    ]


def test_an_arm_with_a_seed_twice_is_refused_with_the_cure() -> None:
    with pytest.raises(DataError, match=r"arm 'a' has seed 3 twice .*NAME=FOLDER"):
        group_curves([curve("a", 3, FLAT), curve("a", 3, FLAT)])


def test_jumps_have_no_ramp_and_others_one_that_nobody_told() -> None:
    arms = arms_by_name(curve(arm, 0, FLAT) for arm in ("jump", "stay", "jump (A/A)", "linear"))
    assert [arm.ramp_steps for arm in arms] == [0, 0, 0, None]
    assert arms_by_name([curve("linear", 0, FLAT)], {"linear": 500})[0].ramp_steps == 500
