"""Leaderboards of an agent over tasks whose scores may stand in one table: normalised, and of one provenance.

The level is the interquartile mean of runs x tasks and the difference the mean over tasks of the paired differences,
both with a stratified percentile bootstrap. Since that is too narrow for few seeds, a difference is significant only
where flipping the signs of all pairs says so too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.benchmarks.results_boards import (
    BOARDS,
    BY_KEY,
    ON_DIPS,
    Board,
    BySeed,
    GroupResult,
    Line,
    improvement,
    null_of,
    ranked,
    values_of,
)
from o2o_smooth.stability.compared import Column, Metric
from o2o_smooth.stability.intervals import PairedDifference, paired_difference
from o2o_smooth.stability.report import DROP_MARGIN
from o2o_smooth.stability.statistics import iqm, stratified_bootstrap, task_mean
from o2o_smooth.stability.verdict import Effect, word

FloatArray = NDArray[np.float64]
_WITH_MARGIN = ("dip_depth", "final")  # of single evaluations: the margin stands in for a missing A/A pair


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
        name: {task: np.array(list(values_of(own[name], BY_KEY["final"]).values())) for task, own in columns.items()}
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
        nulls = [null_of(column, metric) for column in own]
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
                improvement=improvement(levels[name], levels[baseline], metric) if effect else None,
                null=float(np.mean(known)) if known and len(known) == len(nulls) else None,
                says=word(effect, higher_is_better=metric.higher_is_better, judged=judged) if effect else "",
                censored=sum(row.measured.metrics.recovery_censored for column in own for row in column.rows),
            )
        )
    return Board(metric, baseline, ranked(lines, metric), aa)


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
    noise = max(aa if aa is not None else DROP_MARGIN if metric.key in _WITH_MARGIN else 0.0, metric.negligible)
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
