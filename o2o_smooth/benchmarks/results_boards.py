"""Leaderboards: every metric by task and agent, and over the tasks of an agent.

Per task an arm's mean has the report's interval and its difference from the baseline is paired by seed, which share
their pretraining. Over tasks the level is the interquartile mean of runs x tasks and the difference the mean over tasks
of the paired differences, both with a stratified percentile bootstrap; since that is too narrow for few seeds, a
difference over tasks is significant only where flipping the signs of all pairs says so too. What counts as noise and
what is refused are the report's rules (`stability.verdict`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.benchmarks.results_study import Group
from o2o_smooth.errors import O2OError
from o2o_smooth.stability.arms import Arm
from o2o_smooth.stability.compared import METRICS, Column, Comparison, Metric, Row, Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.intervals import FEW_SEEDS, Interval, PairedDifference, interval, paired_difference
from o2o_smooth.stability.report import DROP_MARGIN
from o2o_smooth.stability.statistics import improvement_interval, iqm, stratified_bootstrap, task_mean
from o2o_smooth.stability.verdict import Effect, word

FloatArray = NDArray[np.float64]
BySeed = Mapping[int, float]

RECOVERY = Metric("recovery", "Recovery", higher_is_better=False)
"""Share of the budget until the score was back, cut at 1 where it never was (a restricted time); 0: nothing lost."""

_BY_KEY = {metric.key: metric for metric in METRICS}
BOARDS = (
    _BY_KEY["final"],
    _BY_KEY["dip_depth"],
    _BY_KEY["dip_area"],
    RECOVERY,
    _BY_KEY["regret"],
    _BY_KEY["late_collapse"],
)
"""What has a leaderboard, in order."""

ON_DIPS = ("dip_depth", "dip_area", "recovery")
"""What says nothing where a verdict on the dip is refused."""

_WITH_MARGIN = ("dip_depth", "final")  # metrics of single evaluations, for which the margin stands in for an A/A pair


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
    """From the baseline over common seeds, and for the mean over tasks; None for the baseline or without common seeds."""
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


@dataclass(frozen=True, eq=False)
class Across:
    """An agent over tasks whose scores may stand in one table."""

    agent: str
    """As the suite calls it."""
    provenance: str
    """Of the offline data of all its tasks."""
    tasks: tuple[str, ...]
    """Those that every arm below has completed seeds of."""
    boards: tuple[Board, ...]
    """By metric."""
    finals: Mapping[str, Mapping[str, FloatArray]]
    """By arm and task: final scores, for profiles."""
    notes: tuple[str, ...]
    """What is left out, and why."""


def compare_groups(groups: Sequence[Group]) -> tuple[list[GroupResult], dict[str, str]]:
    """Compare the arms of every group; and by label, why a group cannot be compared."""
    found, problems = [], {}
    for group in groups:
        problem = group.problem
        if not problem:
            try:
                comparison = compare(group.arms, Settings())
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
                improvement=_improvement({"": own}, {"": levels[base.arm.name]}, metric) if effect else None,
                null=_null(column, metric),
                says=word(effect, higher_is_better=metric.higher_is_better, judged=judged) if effect else "",
                censored=sum(row.measured.metrics.recovery_censored for row in column.rows),
            )
        )
    return Board(metric, base.arm.name, _ranked(lines, metric), aa)


def paired(mine: BySeed, base: BySeed, metric: Metric) -> PairedDifference | None:
    """The difference over common seeds; None where there are none."""
    common = sorted(mine.keys() & base.keys())
    if not common:
        return None
    a, b = ([values[seed] for seed in common] for values in (mine, base))
    return paired_difference(a, b, higher_is_better=metric.higher_is_better is not False)


def _effect(difference: PairedDifference | None, mine: BySeed, base: BySeed, aa: float | None) -> Effect:
    """The difference for verdicts; nothing stands in for a missing A/A pair."""
    common = sorted(mine.keys() & base.keys())
    signs = [np.sign(mine[seed] - base[seed]) for seed in common]
    if difference is None:
        return Effect(0.0, 0.0, 0.0, 0, 0, 0, significant=False, noise=aa or 0.0, aa=aa)
    return Effect(
        mean=difference.mean,
        low=difference.low,
        high=difference.high,
        n=difference.n,
        up=sum(sign > 0 for sign in signs),
        down=sum(sign < 0 for sign in signs),
        significant=difference.significant,
        noise=aa or 0.0,
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


def _improvement(x: Mapping[str, BySeed], y: Mapping[str, BySeed], metric: Metric) -> Interval | None:
    """P(a run of x is better than one of y), over common seeds of common tasks."""
    sign = -1.0 if metric.higher_is_better is False else 1.0
    first: dict[str, list[float]] = {}
    second: dict[str, list[float]] = {}
    for task in x:
        if common := sorted(x[task].keys() & y[task].keys()):
            first[task] = [sign * x[task][seed] for seed in common]
            second[task] = [sign * y[task][seed] for seed in common]
    return improvement_interval(first, second, paired=True) if first else None


def _null(column: Column, metric: Metric) -> float | None:
    """The mean null dip or null area of an arm."""
    if metric.key == "dip_depth":
        return column.outcome.null_dip
    if metric.key != "dip_area":
        return None
    areas = [row.measured.null_area for row in column.rows]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if len(known) == len(areas) else None


def _ranked(lines: Sequence[Line], metric: Metric) -> tuple[Line, ...]:
    """The best first; equal ones in their order."""
    sign = -1.0 if metric.higher_is_better else 1.0
    return tuple(sorted(lines, key=lambda line: sign * (line.iqm.mean if line.mean is None else line.mean.mean)))


# Over tasks


def across_tasks(results: Sequence[GroupResult]) -> list[Across]:
    """Every agent over its tasks that have reference scores and one provenance, where there are two at least."""
    found: dict[tuple[str, str], list[GroupResult]] = {}
    for result in results:
        if result.comparison.unit != "score":
            continue
        kinds = {c.provenance for arm in result.group.arms for c in arm.curves} - {None}
        key = (result.group.agent, " + ".join(sorted(map(str, kinds))) or "no offline data")
        found.setdefault(key, []).append(result)
    every = [_across(agent, kind, own) for (agent, kind), own in found.items() if len(own) > 1]
    return [one for one in every if one is not None]


def _across(agent: str, provenance: str, results: Sequence[GroupResult]) -> Across | None:
    """One agent over several tasks; None where fewer than two have the baseline."""
    names = [result.comparison.baseline.arm.name for result in results]
    baseline = max(dict.fromkeys(names), key=names.count)
    columns = {r.group.task: {c.arm.name: c for c in r.comparison.columns} for r in results}
    notes = [
        f"{task} is left out of the tables over tasks of {agent}: it has no completed {baseline}"
        for task, own in columns.items()
        if baseline not in own
    ]
    columns = {task: own for task, own in columns.items() if baseline in own}
    if len(columns) < 2:
        return None
    arms: list[str] = []
    for name in dict.fromkeys(name for own in columns.values() for name in own):
        if lacking := [task for task, own in columns.items() if name not in own]:
            where = ", ".join(lacking)
            notes.append(f"{name} is left out of the tables over tasks of {agent}: it has no completed run on {where}")
        else:
            arms.append(name)
    notes += _unequal(agent, arms, columns)
    with_dips = {t: own for t, own in columns.items() if own[baseline].outcome.refusal != "random"}
    if with_dips and (lost := [task for task in columns if task not in with_dips]):
        notes.append(
            f"Dips and recoveries of {agent} over tasks leave out {', '.join(lost)}: the score at the switch is within "
            "noise of a random policy's, so there is nothing to lose"
        )
    boards = tuple(
        _across_board(baseline, arms, with_dips or columns if metric.key in ON_DIPS else columns, metric)
        for metric in BOARDS
    )
    finals = {
        name: {task: np.array(list(values_of(own[name], _BY_KEY["final"]).values())) for task, own in columns.items()}
        for name in arms
    }
    return Across(agent, provenance, tuple(columns), boards, finals, tuple(notes))


def _unequal(agent: str, arms: Sequence[str], columns: Mapping[str, Mapping[str, Column]]) -> list[str]:
    """What to say where arms or tasks do not have the same seeds."""
    counts = {len(own[name].rows) for own in columns.values() for name in arms}
    if len(counts) < 2:
        return []
    return [f"Seeds are not equal over the arms and tasks of {agent}: {min(counts)} to {max(counts)} of a cell"]


def _across_board(
    baseline: str, arms: Sequence[str], columns: Mapping[str, Mapping[str, Column]], metric: Metric
) -> Board:
    """One metric over tasks."""
    levels = {name: {task: values_of(own[name], metric) for task, own in columns.items()} for name in arms}
    aa = _across_aa(arms, columns, levels)
    lines = []
    for name in arms:
        own = [columns[task][name] for task in columns]
        base = [columns[task][baseline] for task in columns]
        difference, effect = (None, None) if name == baseline else _across_effect(levels, name, baseline, metric, aa)
        judged = metric.key not in ON_DIPS or not any(c.outcome.refusal for c in (*own, *base))
        nulls = [_null(column, metric) for column in own]
        known = [value for value in nulls if value is not None]
        lines.append(
            Line(
                arm=name,
                role=own[0].arm.role,
                n=sum(map(len, levels[name].values())),
                mean=None,
                iqm=stratified_bootstrap({task: list(v.values()) for task, v in levels[name].items()}, iqm),
                difference=difference,
                effect=effect,
                improvement=_improvement(levels[name], levels[baseline], metric) if effect else None,
                null=float(np.mean(known)) if known and len(known) == len(nulls) else None,
                says=word(effect, higher_is_better=metric.higher_is_better, judged=judged) if effect else "",
                censored=sum(row.measured.metrics.recovery_censored for column in own for row in column.rows),
            )
        )
    return Board(metric, baseline, _ranked(lines, metric), aa)


Levels = Mapping[str, Mapping[str, BySeed]]


def _pairs(levels: Levels, name: str, other: str) -> dict[str, list[float]]:
    """By task, the differences of two arms over common seeds."""
    found = {}
    for task, mine in levels[name].items():
        base = levels[other][task]
        if common := sorted(mine.keys() & base.keys()):
            found[task] = [mine[seed] - base[seed] for seed in common]
    return found


def _across_aa(arms: Sequence[str], columns: Mapping[str, Mapping[str, Column]], levels: Levels) -> float | None:
    """The A/A difference over tasks: the same mean over tasks as that of an effect, of the pair."""
    found = []
    for name in arms:
        twins = {own[name].arm.twin_of for own in columns.values()}
        other = twins.pop() if len(twins) == 1 else None
        if other in levels and (pairs := _pairs(levels, name, str(other))):
            found.append(abs(task_mean(pairs)))
    return max(found, default=None)


def _across_effect(
    levels: Levels, name: str, baseline: str, metric: Metric, aa: float | None
) -> tuple[PairedDifference | None, Effect]:
    """The mean over tasks of the paired differences, and what verdicts take of it."""
    pairs = _pairs(levels, name, baseline)
    if aa is not None:
        noise = aa
    else:
        noise = DROP_MARGIN if metric.key in _WITH_MARGIN else 0.0
    if not pairs:
        return None, Effect(0.0, 0.0, 0.0, 0, 0, 0, significant=False, noise=noise, aa=aa)
    found = stratified_bootstrap(pairs, task_mean)
    pooled = np.concatenate([np.array(values) for values in pairs.values()])
    flipped = paired_difference(
        pooled, np.zeros(len(pooled)), method="sign_flip", higher_is_better=metric.higher_is_better is not False
    )
    significant = flipped.significant and not found.low <= 0 <= found.high
    up, down = int((pooled > 0).sum()), int((pooled < 0).sum())
    difference = PairedDifference(
        mean=found.mean,
        low=found.low,
        high=found.high,
        n=len(pooled),
        better=flipped.better,
        p_value=flipped.p_value,
        method=found.method,
        warning=found.warning,
        confidence=found.confidence,
        significant=significant,
    )
    effect = Effect(found.mean, found.low, found.high, len(pooled), up, down, significant, noise=noise, aa=aa)
    return difference, effect
