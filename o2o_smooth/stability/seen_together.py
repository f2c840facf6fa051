"""What the audits showed beside a dip: a clause for the verdict, of what was seen together and never of a cause."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from o2o_smooth.stability.compared import Column, Comparison
from o2o_smooth.stability.signals import SignalLines
from o2o_smooth.stability.verdict import AGREEING_SEEDS

FIRST_UPDATES = 128.0
"""Audits of so many updates after the switch are the first ones."""

CLEARLY = 2.0
"""An audit shows something where the baseline has so many times what the arm has, on every seed."""

_TOLD = {
    "switch/kl": "the KL from the policy at the switch",
    "switch/action_distance": "the squared distance from the actions at the switch",
    "switch/td_error_online": "the TD error on fresh rows",
}


def seen_together(comparison: Comparison, audits: Mapping[str, Mapping[str, SignalLines]]) -> str:
    """A sentence on the first arm that made the dip smaller and whose audits differ clearly; empty where none does.

    Args:
        comparison: What is reported.
        audits: By name, then by arm, then by seed, along updates since the switch.
    """
    base = comparison.baseline
    if base.outcome.refusal or 2 * base.outcome.dropped < base.outcome.n:
        return ""
    for column in comparison.columns[1:]:
        better = column.effects["dip_depth"].kind(higher_is_better=False) == "better"
        if column.arm.control or column.outcome.refusal or not better:
            continue
        for name, words in _TOLD.items():
            if text := _differs(base, column, audits.get(name, {}), words):
                return text
    return ""


def _differs(base: Column, column: Column, arms: Mapping[str, SignalLines], words: str) -> str:
    """The sentence on one number, where it differs clearly on every seed that both have."""
    ours, theirs = _first(arms.get(column.arm.name, {})), _first(arms.get(base.arm.name, {}))
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < AGREEING_SEEDS or any(theirs[s] <= 0 or theirs[s] < CLEARLY * ours[s] for s in common):
        return ""
    mean, other = (float(np.mean([found[s] for s in common])) for found in (theirs, ours))
    return (
        f"Seen beside it, in the audits of the first {FIRST_UPDATES:.0f} updates: {words} was {mean:.2g} in "
        f"{base.arm.name} and {other:.2g} in {column.arm.name}, on average, and larger in {base.arm.name} on all "
        f"{len(common)} seeds; that the two came together does not say that one made the other."
    )


def _first(lines: SignalLines) -> dict[int, float]:
    """By seed, the mean over the first audits after an update."""
    found = {}
    for seed, (updates, values) in lines.items():
        early = values[(updates > 0) & (updates <= FIRST_UPDATES)]
        if len(early):
            found[seed] = float(early.mean())
    return found
