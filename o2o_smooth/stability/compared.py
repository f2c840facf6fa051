"""What a comparison consists of: a row a run, a column an arm, and how it was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from o2o_smooth.stability.arms import Arm
from o2o_smooth.stability.curves import Curve, Unit
from o2o_smooth.stability.report import Measured
from o2o_smooth.stability.statistics import Interval, Method, PairedDifference
from o2o_smooth.stability.verdict import Change, Effect, Outcome, Unknowns


@dataclass(frozen=True)
class Metric:
    """A column of the report."""

    key: str
    """Its name in `stability.json`."""
    label: str
    """Its name for people."""
    higher_is_better: bool | None
    """None: neither is."""
    steps: bool = False
    """Whether it counts environment steps; points otherwise."""
    negligible: float = 0.0
    """Differences up to this matter to nobody, however surely they are there; in points, or shares of the budget."""


METRICS = (
    Metric("j0", "J0", None),
    Metric("dip_depth", "Dip", higher_is_better=False, negligible=1.0),
    Metric("dip_area", "Dip area", higher_is_better=False, negligible=0.25),
    Metric("dip_time_steps", "Minimum at", None, steps=True),
    Metric("late_collapse", "Late collapse", higher_is_better=False, negligible=1.0),
    Metric("final", "Final", higher_is_better=True, negligible=1.0),
    Metric("auc", "Mean score", higher_is_better=True, negligible=1.0),
    Metric("regret", "Regret", higher_is_better=False, negligible=0.01),
)
"""What is aggregated over seeds."""


@dataclass(frozen=True, eq=False)
class Row:
    """One run: one seed of one arm."""

    curve: Curve
    """Its evaluations."""
    measured: Measured
    """What they say."""
    budget: float
    """The online budget that counts, in environment steps."""
    drop_steps: float | None
    """The first evaluation that lay under J0 by more than noise; None where none did."""
    relative: bool = True
    """Whether the random score is known, so that there is a relative depth."""

    def values(self) -> dict[str, Any]:
        """The row of `stability.json`: scores in the curve's unit, `_steps` in environment steps."""
        found = dataclasses.asdict(self.measured.metrics)
        steps, back = found.pop("dip_time"), found.pop("recovery_steps")
        first = {
            "run": self.curve.run,
            "arm": self.curve.arm,
            "seed": self.curve.seed,
            "j0": found.pop("j0"),
            "dip_depth": found.pop("dip_depth"),
            "dip_area": found.pop("dip_area"),
            "dip_time": steps / self.budget,
            "recovery_steps": back,
            "late_collapse": found.pop("late_collapse"),
            "final": found.pop("final"),
            "auc": found.pop("auc"),
            "regret": None if self.curve.unit == "return" else found["regret"],
            "null_dip": self.measured.null_dip,
        }
        found.pop("regret")
        if not self.relative:
            found["dip_depth_relative"] = None
        return {
            **first,
            "dip_time_steps": steps,
            "recovery_fraction": None if back is None else back / self.budget,
            "null_area": self.measured.null_area,
            "dropped": self.measured.dropped,
            "drop_steps": self.drop_steps,
            **found,
        }


@dataclass(frozen=True, eq=False)
class Column:
    """One arm of the comparison."""

    arm: Arm
    """Its curves and its role."""
    rows: tuple[Row, ...]
    """One a seed."""
    means: Mapping[str, Interval | None]
    """Mean over seeds by metric; None where the unit has no such metric."""
    differences: Mapping[str, PairedDifference | None]
    """Its metrics minus the baseline's, over common seeds; None where there are none. Empty for the baseline."""
    effects: Mapping[str, Effect]
    """The same for `verdict`, beside the noise."""
    outcome: Outcome
    """What happened to it."""

    def change(self) -> Change:
        """What it changed against the baseline."""
        e = self.effects
        return Change(self.outcome, e["dip_depth"], e["dip_area"], e["final"], e["dip_time_steps"], e["drop_steps"])


@dataclass(frozen=True, eq=False)
class Comparison:
    """All arms, measured over one budget."""

    columns: tuple[Column, ...]
    """The baseline first, then the other arms, then the controls."""
    budget: float
    """Online steps that count."""
    window: float | None
    """How long after the switch a minimum counts as the dip; None: the budget."""
    unit: Unit
    """Of all scores."""
    method: Method
    """Of the intervals, as asked for."""
    confidence: float
    """Of the intervals, as asked for."""
    aa: Mapping[str, float]
    """By metric, the absolute mean difference of the A/A pair (the largest of several); empty without one."""
    unknowns: Unknowns
    """What the numbers do not say."""
    notes: tuple[str, ...]
    """What else has to be said."""
    seen: str = ""
    """What the audits showed beside the dip, as a sentence; empty where they show nothing clearly."""

    @property
    def baseline(self) -> Column:
        """What everything is compared with."""
        return self.columns[0]

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the arms that are no controls changed."""
        return tuple(column.change() for column in self.columns[1:] if not column.arm.control)


@dataclass(frozen=True)
class Settings:
    """How to compare."""

    baseline: str | None = None
    """Name of the arm that everything is compared with; the jump where None."""
    budget: float | None = None
    """Online steps that count; where None, as far as every curve goes."""
    window: float | None = None
    """How long after the switch a minimum counts as the dip; the budget where None."""
    method: Method = "auto"
    """Of the intervals."""
    confidence: float = 0.95
    """Of the intervals."""
    random_score: float | None = None
    """Score of a random policy; 0 of normalised scores and not known of returns where None."""
    mix_provenance: bool = False
    """Let scores from data of different provenance share the report."""
    add_controls: str | None = None
    """The command that adds missing controls."""
