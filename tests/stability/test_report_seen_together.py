"""The audits are told beside a dip only where they differ clearly, and never as a cause."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from o2o_smooth.stability.compared import Comparison, Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.seen_together import seen_together
from o2o_smooth.stability.signals import SignalLines
from tests.stability.curve_cases import FLAT, JUMP, LATE, SMOOTH, arms


def comparison(base: Sequence[float] = JUMP, arm: Sequence[float] = SMOOTH, seeds: int = 4) -> Comparison:
    return compare(arms({"jump": base, "linear": arm, "stay": FLAT}, seeds=seeds), Settings())


def lines(*values: float, at: Sequence[float] = (0, 1, 128, 1000)) -> SignalLines:
    """By seed; the first audit is from before the first update, the last one comes late."""
    return {seed: (np.array(at, dtype=float), np.array([0.0, v, v, 900.0])) for seed, v in enumerate(values)}


def audits(jump: SignalLines, linear: SignalLines, name: str = "switch/kl") -> dict[str, dict[str, SignalLines]]:
    return {name: {"jump": jump, "linear": linear, "stay": lines(0, 0, 0, 0)}}


HIGH, LOW = lines(4, 6, 8, 10), lines(1, 2, 2, 5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("switch/kl", "the KL from the policy at the switch"),
        ("switch/action_distance", "the squared distance from the actions at the switch"),
        ("switch/td_error_online", "the TD error on fresh rows"),
    ],
)
def test_what_is_clearly_larger_beside_the_deeper_dip_is_told(name: str, words: str) -> None:
    assert seen_together(comparison(), audits(HIGH, LOW, name)) == (
        f"Seen beside it, in the audits of the first 128 updates: {words} was 7 in jump and 2.5 in linear, on average, "
        "and larger in jump on all 4 seeds; that the two came together does not say that one made the other."
    )


def test_the_policy_comes_before_the_critics() -> None:
    both = audits(HIGH, LOW) | audits(lines(8, 8, 8, 8), lines(1, 1, 1, 1), "switch/td_error_online")
    assert "the KL" in seen_together(comparison(), both)
    only = audits(HIGH, HIGH) | audits(lines(8, 8, 8, 8), lines(1, 1, 1, 1), "switch/td_error_online")
    assert "the TD error on fresh rows was 8 in jump and 1 in linear" in seen_together(comparison(), only)


@pytest.mark.parametrize(
    "found",
    [
        {},
        audits(HIGH, {}),
        audits({}, LOW),
        audits(LOW, HIGH),
        audits(HIGH, lines(1, 2, 2, 5.01)),  # on one seed less than twice as large
        audits(lines(4, 6), LOW),  # two seeds in common
        audits(lines(0, 0, 0, 0), lines(0, 0, 0, 0)),
        audits(lines(4, 6, 8, 10, at=(0, 129, 200, 300)), LOW),  # none of the first updates
        audits(HIGH, LOW, "switch/q_drift"),
    ],
)
def test_where_nothing_differs_clearly_nothing_is_told(found: dict[str, dict[str, SignalLines]]) -> None:
    assert seen_together(comparison(), found) == ""


@pytest.mark.parametrize(
    "found",
    [
        comparison(base=FLAT),  # no dip
        comparison(arm=JUMP),  # none that became smaller
        comparison(arm=LATE),  # only postponed
        comparison(seeds=2),
        compare(arms({"jump": JUMP, "stay": FLAT}), Settings()),  # a control is no smoothed arm
        compare(arms({"jump": JUMP, "linear": SMOOTH}), Settings(random_score=48.0)),  # nothing to lose
        compare(arms({"jump": JUMP, "linear": SMOOTH}), Settings(budget=200.0)),  # ends before twice the ramp
    ],
)
def test_without_a_dip_that_became_smaller_nothing_is_told(found: Comparison) -> None:
    assert seen_together(found, audits(HIGH, LOW)) == ""
