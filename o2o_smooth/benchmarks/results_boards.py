"""Leaderboards of one task and agent, a metric each.

An arm's mean has the report's interval, and its difference from the baseline is paired by seed, for the arms of a seed
share their pretraining. What counts as noise and what is refused are the report's rules (`stability.verdict`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from o2o_smooth.benchmarks.results_study import Group
from o2o_smooth.errors import O2OError
from o2o_smooth.stability.arms import Arm
from o2o_smooth.stability.compared import METRICS, Column, Comparison, Metric, Row, Settings
from o2o_smooth.stability.comparison import choose_baseline, compare
from o2o_smooth.stability.intervals import FEW_SEEDS, Interval, PairedDifference, interval, paired_difference
from o2o_smooth.stability.statistics import improvement_interval, iqm, stratified_bootstrap
from o2o_smooth.stability.verdict import Effect, word

BySeed = Mapping[int, float]

RECOVERY = Metric("recovery", "Recovery", higher_is_better=False, negligible=0.01)
"""Share of the budget until the score was back, cut at 1 where it never was (a restricted time); 0: nothing lost."""

BY_KEY = {metric.key: metric for metric in METRICS}
"""The report's metrics."""

BOARDS = (
    BY_KEY["final"],
    BY_KEY["dip_depth"],
    BY_KEY["dip_area"],
    RECOVERY,
    BY_KEY["regret"],
    BY_KEY["late_collapse"],
)
"""What has a leaderboard, in order."""

ON_DIPS = ("dip_depth", "dip_area", "recovery")
"""What says nothing where a verdict on the dip is refused."""


@dataclass(frozen=True, eq=False)
class Line:
    """An arm on a leaderboard."""

    arm: str
    """Its name."""
    role: str
    """As in `Arm`."""
    n: int
    """Runs behind it."""
    mean: Interval | None
    """Mean over seeds; over tasks there is none."""
    iqm: Interval
    """Interquartile mean, with a stratified bootstrap."""
    difference: PairedDifference | None
    """From the baseline, over common seeds; None for the baseline, or where there are none."""
    effect: Effect | None
    """The same beside its noise, as verdicts take it."""
    improvement: Interval | None
    """Probability that a run of the arm is better than one of the baseline, pairs drawn together."""
    null: float | None
    """What evaluation noise alone would show, of dips."""
    says: str
    """The verdict in a word or two; empty for the baseline."""
    censored: int
    """Of recovery: seeds that never came back."""

    @property
    def better(self) -> int | None:
        """In how many pairs the arm is better; None without a comparison. Needs `difference`."""
        return None if self.difference is None else self.difference.better

    @property
    def few(self) -> bool:
        """Whether there are so few seeds that intervals must not be taken at their word."""
        return self.n <= FEW_SEEDS


@dataclass(frozen=True, eq=False)
class Board:
    """One metric's leaderboard."""

    metric: Metric
    """What is ranked."""
    baseline: str
    """What arms are compared with."""
    lines: tuple[Line, ...]
    """The best first, by the mean (over tasks: the interquartile mean)."""
    aa: float | None
    """How much an A/A pair differs; None without one."""


@dataclass(frozen=True, eq=False)
class GroupResult:
    """A task and an agent, compared."""

    group: Group
    """What was planned and read."""
    comparison: Comparison
    """As the report makes it."""
    boards: tuple[Board, ...]
    """By metric; without those that the unit does not have."""


def compare_groups(groups: Sequence[Group], baseline: str | None = None) -> tuple[list[GroupResult], dict[str, str]]:
    """Compare the arms of every group; and by label, why a group cannot be compared.

    Args:
        groups: Arms by task and agent.
        baseline: The arm that others are compared with, in groups that have it; the jump where None.

    Raises:
        ConfigError: No group has an arm of that name.
    """
    if baseline is not None:  # an unknown name is told once, with the names of all
        choose_baseline([arm for group in groups for arm in group.arms], baseline)
    found, problems = [], {}
    for group in groups:
        problem = group.problem
        if not problem:
            try:
                has = any(arm.name == baseline for arm in group.arms)
                comparison = compare(group.arms, Settings(baseline=baseline if has else None))
                found.append(GroupResult(group, comparison, group_boards(comparison)))
            except O2OError as error:
                problem = str(error)
        if problem:
            problems[group.label] = problem
    return found, problems


def group_boards(comparison: Comparison) -> tuple[Board, ...]:
    """The leaderboards of one task and agent."""
    return tuple(board for metric in BOARDS if (board := _group_board(comparison, metric)) is not None and board.lines)


def values_of(column: Column, metric: Metric) -> dict[int, float]:
    """A metric by seed; without seeds that do not have it."""
    found = {row.curve.seed: _value(row, metric) for row in column.rows}
    return {seed: value for seed, value in found.items() if value is not None}


def _value(row: Row, metric: Metric) -> float | None:
    values = row.values()
    if metric is RECOVERY:
        share = values["recovery_fraction"]
        return 1.0 if share is None else float(share)
    value = values[metric.key]
    return None if value is None else float(value)


def _group_board(comparison: Comparison, metric: Metric) -> Board | None:
    """One metric over the arms of a comparison; None where the unit does not have it."""
    base = comparison.baseline
    levels = {column.arm.name: values_of(column, metric) for column in comparison.columns}
    if not levels[base.arm.name]:
        return None
    aa = _aa({column.arm.name: column.arm for column in comparison.columns}, levels)
    lines = []
    for column in comparison.columns:
        own = levels[column.arm.name]
        if not own:
            continue
        difference: PairedDifference | None = None
        effect: Effect | None = None
        if column is not base:
            if metric is RECOVERY:
                difference = paired(own, levels[base.arm.name], metric)
                effect = _effect(difference, own, levels[base.arm.name], aa)
            else:
                difference, effect = column.differences[metric.key], column.effects[metric.key]
        judged = metric.key not in ON_DIPS or not (base.outcome.refusal or column.outcome.refusal)
        lines.append(
            Line(
                arm=column.arm.name,
                role=column.arm.role,
                n=len(own),
                mean=interval(list(own.values())) if metric is RECOVERY else column.means[metric.key],
                iqm=stratified_bootstrap({"": list(own.values())}, iqm),
                difference=difference,
                effect=effect,
                improvement=improvement({"": own}, {"": levels[base.arm.name]}, metric) if effect else None,
                null=null_of(column, metric),
                says=word(effect, higher_is_better=metric.higher_is_better, judged=judged) if effect else "",
                censored=sum(row.measured.metrics.recovery_censored for row in column.rows),
            )
        )
    return Board(metric, base.arm.name, ranked(lines, metric), aa)


def paired(mine: BySeed, base: BySeed, metric: Metric) -> PairedDifference | None:
    """The difference over common seeds; None where there are none."""
    common = sorted(mine.keys() & base.keys())
    if not common:
        return None
    a, b = ([values[seed] for seed in common] for values in (mine, base))
    return paired_difference(a, b, higher_is_better=metric.higher_is_better is not False)


def _effect(difference: PairedDifference | None, mine: BySeed, base: BySeed, aa: float | None) -> Effect:
    """The difference in recovery for verdicts; nothing stands in for a missing A/A pair."""
    common = sorted(mine.keys() & base.keys())
    signs = [np.sign(mine[seed] - base[seed]) for seed in common]
    noise = max(aa or 0.0, RECOVERY.negligible)
    if difference is None:
        return Effect(0.0, 0.0, 0.0, 0, 0, 0, significant=False, noise=noise, aa=aa)
    return Effect(
        mean=difference.mean,
        low=difference.low,
        high=difference.high,
        n=difference.n,
        up=sum(sign > 0 for sign in signs),
        down=sum(sign < 0 for sign in signs),
        significant=difference.significant,
        noise=noise,
        aa=aa,
        base=float(np.mean([base[seed] for seed in common])),
    )


def _aa(arms: Mapping[str, Arm], levels: Mapping[str, BySeed]) -> float | None:
    """How much A/A pairs differ on average over their seeds; of several the largest."""
    found = []
    for name, arm in arms.items():
        other = levels.get(arm.twin_of or "", {})
        if common := sorted(levels[name].keys() & other.keys()):
            found.append(abs(float(np.mean([levels[name][seed] - other[seed] for seed in common]))))
    return max(found, default=None)


def improvement(x: Mapping[str, BySeed], y: Mapping[str, BySeed], metric: Metric) -> Interval | None:
    """P(a run of x is better than one of y), over common seeds of common tasks."""
    sign = -1.0 if metric.higher_is_better is False else 1.0
    first: dict[str, list[float]] = {}
    second: dict[str, list[float]] = {}
    for task in x:
        if common := sorted(x[task].keys() & y[task].keys()):
            first[task] = [sign * x[task][seed] for seed in common]
            second[task] = [sign * y[task][seed] for seed in common]
    return improvement_interval(first, second, paired=True) if first else None


def null_of(column: Column, metric: Metric) -> float | None:
    """The mean null dip or null area of an arm."""
    if metric.key == "dip_depth":
        return column.outcome.null_dip
    if metric.key != "dip_area":
        return None
    areas = [row.measured.null_area for row in column.rows]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if len(known) == len(areas) else None


def ranked(lines: Sequence[Line], metric: Metric) -> tuple[Line, ...]:
    """The best first; equal ones in their order."""
    sign = -1.0 if metric.higher_is_better else 1.0
    return tuple(sorted(lines, key=lambda line: sign * (line.iqm.mean if line.mean is None else line.mean.mean)))
