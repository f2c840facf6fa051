"""Aggregates over runs and tasks with stratified bootstrap intervals; means and differences over seeds: `intervals`.

Scores come by task: a mapping from task to its runs' scores, a sequence of such rows, or one (tasks, runs) array; a
plain row is a single task. Tasks may differ in their number of runs. Needs numpy only.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from o2o_smooth.errors import DataError
from o2o_smooth.stability.intervals import (
    Interval,
    Method,
    PairedDifference,
    central,
    check_settings,
    finite_row,
    interval,
    paired_difference,
    percentile_warning,
)

__all__ = [
    "Interval",
    "Method",
    "PairedDifference",
    "PerformanceProfile",
    "Scores",
    "improvement_interval",
    "interval",
    "iqm",
    "optimality_gap",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "stratified_bootstrap",
    "task_mean",
]

FloatArray = NDArray[np.float64]
Scores = Mapping[str, ArrayLike] | Sequence[ArrayLike] | ArrayLike
Statistic = Callable[[list[FloatArray]], float]

RESAMPLES = 1_999
"""Draws behind a stratified interval."""

TRIMMED = 0.25
"""Share of the runs that the interquartile mean leaves out at each end."""


@dataclass(frozen=True, eq=False)
class PerformanceProfile:
    """Which share of the runs exceeds each threshold."""

    thresholds: FloatArray
    """(K,) scores, as given."""
    share: FloatArray
    """(K,) share of a task's runs above each of them, averaged over tasks."""
    low: FloatArray
    """(K,) lower end of the interval at each threshold on its own (not a band for the whole curve)."""
    high: FloatArray
    """(K,) upper end."""
    n: int
    """Runs, over all tasks."""
    warning: str | None
    """As in `Interval`."""


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean of runs x tasks without the lowest and the highest quarter.

    Less at the mercy of one run than the mean, and less wasteful than the median.
    """
    return float(_iqm(by_task(scores)))


def optimality_gap(scores: Scores, *, target: float = 100.0) -> float:
    """How much is missing to the target, what lies beyond it not counted: the mean of max(0, target - score).

    Args:
        scores: By task; every task weighs the same.
        target: The score that is enough, here that of the reference policy.
    """
    return float(_gap(by_task(scores), target))


def task_mean(scores: Scores) -> float:
    """The mean over tasks of each task's mean over its runs: every task weighs the same."""
    return float(_task_mean(by_task(scores)))


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """How likely a run of x is to beat one of y on the same task, ties half, averaged over tasks.

    The Mann-Whitney U statistic over the number of pairs. x and y may differ in their numbers of runs.

    Raises:
        DataError: x and y do not hold the same tasks.
    """
    return float(np.mean([_wins(a, b).mean() for a, b in _same_tasks(x, y)]))


def improvement_interval(
    x: Scores,
    y: Scores,
    *,
    seed: int = 0,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """A stratified percentile bootstrap around `probability_of_improvement`.

    Args:
        x: By task.
        y: By task, the same tasks.
        seed: Of the resampling.
        paired: The k-th run of x and of y share their pretraining: they are drawn together.
        confidence: Wanted share of such intervals that hold the true probability.
        resamples: How often to draw.

    Raises:
        DataError: x and y do not hold the same tasks, or pairs are wanted of different numbers of runs.
    """
    check_settings(confidence, resamples)
    tasks = _same_tasks(x, y)
    if paired and any(len(a) != len(b) for a, b in tasks):
        raise DataError("paired runs must come in equal numbers on every task: keep the seeds that both arms have")
    rng = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for a, b in tasks:
        rows = _counts(rng, resamples, len(a))
        columns = rows if paired else _counts(rng, resamples, len(b))
        drawn += ((rows @ _wins(a, b)) * columns).sum(axis=1) / (len(a) * len(b))
    low, high = central(drawn / len(tasks), confidence)
    fewest = min(min(len(a), len(b)) for a, b in tasks)
    return Interval(
        mean=probability_of_improvement(x, y),
        low=low,
        high=high,
        n=sum(len(a) + len(b) for a, b in tasks),
        method="bootstrap",
        warning=percentile_warning(fewest),
        confidence=confidence,
    )


def performance_profile(
    scores: Scores,
    thresholds: ArrayLike,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> PerformanceProfile:
    """The share of runs that score above each threshold, averaged over tasks, with an interval at each.

    Raises:
        DataError: No scores or no thresholds, or NaN or infinity among them.
    """
    check_settings(confidence, resamples)
    tasks, levels = by_task(scores), finite_row("thresholds", thresholds)
    rng = np.random.default_rng(seed)
    drawn, share = np.zeros((resamples, len(levels))), np.zeros(len(levels))
    for runs in tasks:
        above = (runs[:, None] > levels).astype(np.float64)  # (runs, K)
        share += above.mean(axis=0)
        drawn += _counts(rng, resamples, len(runs)) @ above / len(runs)
    drawn /= len(tasks)
    ends = np.array([central(drawn[:, k], confidence) for k in range(len(levels))])
    return PerformanceProfile(
        thresholds=levels,
        share=share / len(tasks),
        low=ends[:, 0],
        high=ends[:, 1],
        n=sum(map(len, tasks)),
        warning=percentile_warning(min(map(len, tasks))),
    )


def stratified_bootstrap(
    scores_by_task: Scores,
    statistic: Statistic | Callable[[Scores], float] = iqm,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """A percentile bootstrap of a statistic over runs and tasks; runs are drawn within their task.

    Args:
        scores_by_task: By task.
        statistic: From a list with a row of scores a task to a number: `iqm`, `optimality_gap`, `task_mean` (these are
            fast) or any.
        seed: Of the resampling.
        confidence: Wanted share of such intervals that hold the true value.
        resamples: How often to draw.

    Raises:
        DataError: No scores, or NaN or infinity among them, or the statistic gives NaN.
    """
    check_settings(confidence, resamples)
    tasks = by_task(scores_by_task)
    rng = np.random.default_rng(seed)
    drawn = [runs[rng.integers(0, len(runs), size=(resamples, len(runs)))] for runs in tasks]
    fast = _FAST.get(statistic)
    values = (
        fast(drawn)
        if fast is not None
        else np.array([float(statistic([rows[k] for rows in drawn])) for k in range(resamples)])
    )
    estimate = float(statistic(tasks))
    if np.isnan(values).any() or np.isnan(estimate):
        raise DataError("the statistic gives NaN on these scores, or on a resample of them")
    low, high = central(values, confidence)
    return Interval(
        mean=estimate,
        low=low,
        high=high,
        n=sum(map(len, tasks)),
        method="bootstrap",
        warning=percentile_warning(min(map(len, tasks))),
        confidence=confidence,
    )


def by_task(scores: Scores) -> list[FloatArray]:
    """The scores as a list of rows, one a task.

    Raises:
        DataError: There are none, or NaN or infinity among them.
    """
    if isinstance(scores, Mapping):
        rows = [finite_row(f"scores of {task}", runs) for task, runs in scores.items()]
    elif isinstance(scores, Sequence | np.ndarray) and len(scores) > 0 and np.ndim(scores[0]) > 0:
        rows = [finite_row(f"scores of task {k}", runs) for k, runs in enumerate(scores)]
    else:
        rows = [finite_row("scores", scores)]  # type: ignore[arg-type]
    if not rows:
        raise DataError("there are no tasks: give the scores of one at least")
    return rows


def _iqm(tasks: Sequence[FloatArray]) -> FloatArray:
    """Over the last axis of all tasks together; leading axes are resamples."""
    runs = np.concatenate(tasks, axis=-1)
    cut = int(TRIMMED * runs.shape[-1])
    kept: FloatArray = np.sort(runs, axis=-1)[..., cut : runs.shape[-1] - cut]
    return np.asarray(kept.mean(axis=-1))


def _gap(tasks: Sequence[FloatArray], target: float = 100.0) -> FloatArray:
    """Over the last axis, then over tasks; leading axes are resamples."""
    return np.asarray(np.mean([np.maximum(0.0, target - runs).mean(axis=-1) for runs in tasks], axis=0))


def _task_mean(tasks: Sequence[FloatArray]) -> FloatArray:
    """Over the last axis, then over tasks; leading axes are resamples."""
    return np.asarray(np.mean([runs.mean(axis=-1) for runs in tasks], axis=0))


_FAST: dict[object, Callable[[Sequence[FloatArray]], FloatArray]] = {
    iqm: _iqm,
    optimality_gap: _gap,
    task_mean: _task_mean,
}
"""What computes all resamples at once."""


def _wins(a: FloatArray, b: FloatArray) -> FloatArray:
    """(runs of a, runs of b) 1 where a is higher, a half where they tie."""
    return np.asarray((a[:, None] > b) + 0.5 * (a[:, None] == b))


def _counts(rng: np.random.Generator, resamples: int, runs: int) -> FloatArray:
    """(resamples, runs) how often each run is in each resample."""
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(np.float64)


def _same_tasks(x: Scores, y: Scores) -> list[tuple[FloatArray, FloatArray]]:
    """The rows of both, task by task."""
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        if lone := sorted(x.keys() ^ y.keys()):
            raise DataError(f"x and y must hold the same tasks; only one of them has {', '.join(lone)}")
        y = {task: y[task] for task in x}
    first, second = by_task(x), by_task(y)
    if len(first) != len(second):
        raise DataError(f"x and y must hold the same tasks, got {len(first)} and {len(second)} of them")
    return list(zip(first, second, strict=True))
