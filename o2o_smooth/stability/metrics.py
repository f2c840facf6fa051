"""What a curve of evaluations says about the switch. Needs numpy only, takes plain arrays, of any library.

A curve is the piecewise linear line through its evaluations (t, J): t counts environment steps since the switch, J0 is
the evaluation at t = 0 and T the online budget. Every integral below is exact on that line, including where it crosses
J0 (or 0 and 100) between two evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

RECOVERY_MARGIN = 5.0
"""A curve has recovered when it is back within this many points of J0: an A/A pair of arms differed by 4.9 points."""

RECOVERY_EVALUATIONS = 2
"""Evaluations in a row that must agree on it: a single one may be luck."""

REFERENCE_SCORE = 100.0
"""The score of the reference policy; regret counts what is missing to it."""

FORGETTING_WINDOW = 5
"""Evaluations in a window of windowed forgetting and plasticity: few enough to tell a fall from a slow decline."""


@dataclass(frozen=True)
class StabilityMetrics:
    """The switch in numbers; scores in the unit of the curve, times in environment steps since the switch."""

    j0: float
    """Score of the policy at the switch."""
    dip_depth: float
    """max(0, J0 - min J(t)) over 0 < t <= W."""
    dip_depth_relative: float | None
    """The depth as a share of J0 - random; None where J0 is no better than random, so that there is nothing to lose."""
    dip_area: float
    """(1/T) times the integral of max(0, J0 - J(t)): the mean loss a step, in points."""
    dip_time: float
    """When the minimum over 0 < t <= W was seen (the first of equals), also where it is no dip."""
    recovery_steps: float | None
    """First t after the minimum from which J >= J0 - margin for k evaluations in a row. None: never within the budget
    (censored). 0: the minimum is not below J0 - margin, so there was nothing to recover from."""
    late_collapse: float
    """The best score seen up to T (J0 included) minus the final one."""
    final: float
    """The last evaluation within the budget."""
    auc: float
    """(1/T) times the integral of J(t): the mean score over the budget."""
    regret: float
    """1 - (1/T) times the integral of clip(J(t)/100, 0, 1). Means something for normalised scores only."""
    recovery_censored: bool
    """It was lost and not seen to come back within the budget: the recovery time is more than that, not unknown."""
    windowed_forgetting: float
    """WF^w: the largest drop from one evaluation to a later one, both among w in a row (J0 is one of them); 0 where it
    never drops. Of evaluations, so it compares curves of one evaluation schedule only. Source: De Lange et al. 2023."""
    windowed_plasticity: float
    """WP^w: the largest gain, likewise."""
    worst_case: float
    """min J(t) over 0 < t <= T: what one may have had to live with. De Lange et al. 2023 average this minimum over the
    tasks learned before (min-ACC) and weigh it with the score on the newest one (WC-ACC). Here the task before and the
    newest are one, and its last score is `final`, so the minimum stands alone."""


def stability_metrics(
    env_steps: ArrayLike,
    scores: ArrayLike,
    *,
    budget: float | None = None,
    window: float | None = None,
    recovery_margin: float = RECOVERY_MARGIN,
    recovery_evaluations: int = RECOVERY_EVALUATIONS,
    random_score: float = 0.0,
    forgetting_window: int = FORGETTING_WINDOW,
) -> StabilityMetrics:
    """Measure one curve, as in `StabilityMetrics`.

    Args:
        env_steps: (N,) environment steps since the switch, strictly rising, the first 0.
        scores: (N,) the evaluation at each of them.
        budget: T. The curve is cut there (between two evaluations: on the line through them). The last evaluation
            where None; a budget beyond it is refused, for nobody saw what happened there.
        window: W, how long after the switch a minimum counts as the dip; the budget where None.
        recovery_margin: How far under J0 still counts as recovered, in points.
        recovery_evaluations: How many evaluations in a row must be there.
        random_score: Score of a random policy, for the relative depth.
        forgetting_window: w, evaluations in a window of forgetting and plasticity; all of them where there are fewer.

    Raises:
        ValueError: The curve is not one (fewer than two points, not starting at 0, not rising, NaN), or a setting
            does not fit it.
    """
    steps, values = _curve(env_steps, scores)
    if recovery_margin < 0 or recovery_evaluations < 1:
        raise ValueError(
            f"recovery_margin must not be negative and recovery_evaluations at least 1, "
            f"got {recovery_margin} and {recovery_evaluations}"
        )
    if forgetting_window < 2:
        raise ValueError(f"forgetting_window must hold at least 2 evaluations, got {forgetting_window}")
    total = float(steps[-1]) if budget is None else float(budget)
    if not 0 < total <= steps[-1]:
        raise ValueError(f"budget must lie in (0, {steps[-1]:g}], where the curve ends, got {total:g}")
    width = total if window is None else float(window)
    if not steps[1] <= width <= total:
        raise ValueError(f"window must lie between the first evaluation ({steps[1]:g}) and {total:g}, got {width:g}")

    seen = steps <= total
    line_steps = np.append(steps[seen], total)  # a repeated last step is a segment of no length
    line = np.append(values[seen], np.interp(total, steps, values))
    steps, values = steps[seen], values[seen]

    j0 = float(values[0])
    lowest = 1 + int(np.argmin(values[1:][steps[1:] <= width]))
    depth = max(0.0, j0 - float(values[lowest]))
    gain = j0 - random_score
    recovery = _recovery(steps, values, lowest, j0 - recovery_margin, recovery_evaluations)
    share = _positive_area(line_steps, line) - _positive_area(line_steps, line - REFERENCE_SCORE)
    return StabilityMetrics(
        j0=j0,
        dip_depth=depth,
        dip_depth_relative=depth / gain if gain > 0 else None,
        dip_area=_positive_area(line_steps, j0 - line) / total,
        dip_time=float(steps[lowest]),
        recovery_steps=recovery,
        late_collapse=float(values.max() - values[-1]),
        final=float(values[-1]),
        auc=float(np.trapezoid(line, line_steps)) / total,
        regret=1.0 - share / (REFERENCE_SCORE * total),
        recovery_censored=recovery is None,
        windowed_forgetting=_largest_gain(-values, forgetting_window),
        windowed_plasticity=_largest_gain(values, forgetting_window),
        worst_case=float(values[1:].min()),
    )


def null_dip(
    returns_at_switch: ArrayLike,
    *,
    evaluations: int,
    episodes: int,
    seed: int,
    resamples: int = 1000,
    switch_episodes: int | None = None,
) -> float:
    """The dip depth that evaluation noise alone is expected to give a policy that never changes.

    A bootstrap: J0 and each of the later evaluations are means of episodes drawn with replacement from those seen at
    the switch; the answer is the mean of `max(0, J0 - min)` over the resamples. A minimum of noisy means lies under
    their common mean, the more so the more there are, so a dip has to be read beside this number.

    Bias: it knows only K episodes, whose spread is short by sqrt((K - 1)/K) on average (3 % at K = 20), so it is a
    little low. It takes evaluations as independent: where every evaluation replays the same start states, a frozen
    deterministic policy in a deterministic task has no null dip at all and this number is too high, on the safe side.

    Args:
        returns_at_switch: (K,) per-episode scores of the policy at the switch.
        evaluations: How many evaluations follow the switch.
        episodes: Episodes in each of them.
        seed: Of the resampling.
        resamples: How many curves are drawn.
        switch_episodes: Episodes behind J0; all K where None.

    Raises:
        ValueError: No episodes, NaN among them, or a count under 1.
    """
    pool = np.asarray(returns_at_switch, dtype=np.float64)
    if pool.ndim != 1 or len(pool) == 0 or not np.isfinite(pool).all():
        raise ValueError(
            f"returns_at_switch must be a row of finite per-episode scores, got shape {pool.shape}"
            + ("" if np.isfinite(pool).all() else " with NaN or infinity")
        )
    at_switch = len(pool) if switch_episodes is None else switch_episodes
    _check_counts(evaluations=evaluations, episodes=episodes, resamples=resamples, switch_episodes=at_switch)
    rng = np.random.default_rng(seed)
    j0 = rng.choice(pool, size=(resamples, at_switch)).mean(axis=1)
    lowest = np.full(resamples, np.inf)
    for _ in range(evaluations):
        np.minimum(lowest, rng.choice(pool, size=(resamples, episodes)).mean(axis=1), out=lowest)
    return float(np.maximum(0.0, j0 - lowest).mean())


def null_dip_from_std(
    std: float,
    *,
    evaluations: int,
    episodes: int,
    switch_episodes: int | None = None,
    seed: int = 0,
    resamples: int = 4000,
) -> float:
    """`null_dip` where only the spread of the episodes is on record: their means are taken as normal.

    Args:
        std: Standard deviation of the per-episode scores at the switch.
        evaluations: How many evaluations follow the switch.
        episodes: Episodes in each of them.
        switch_episodes: Episodes behind J0; as many as in the others where None.
        seed: Of the draws.
        resamples: How many curves are drawn.

    Raises:
        ValueError: A negative or NaN spread, or a count under 1.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std must be finite and not negative, got {std}")
    at_switch = episodes if switch_episodes is None else switch_episodes
    _check_counts(evaluations=evaluations, episodes=episodes, resamples=resamples, switch_episodes=at_switch)
    rng = np.random.default_rng(seed)
    j0 = rng.standard_normal(resamples) / math.sqrt(at_switch)
    lowest = rng.standard_normal((resamples, evaluations)).min(axis=1) / math.sqrt(episodes)
    return std * float(np.maximum(0.0, j0 - lowest).mean())


def null_area_from_std(
    std: float,
    env_steps: ArrayLike,
    *,
    episodes: int,
    switch_episodes: int | None = None,
    seed: int = 0,
    resamples: int = 4000,
) -> float:
    """The dip *area* that evaluation noise alone is expected to give a policy that never changes.

    Half of all noisy evaluations lie under a noisy J0, so the area has a bias of its own, smaller than the depth's and
    not shrinking with more evaluations. Means of episodes are taken as normal, evaluations as independent.

    Args:
        std: Standard deviation of the per-episode scores at the switch.
        env_steps: (N,) the schedule: steps of the evaluations, the first 0.
        episodes: Episodes in each evaluation after the switch.
        switch_episodes: Episodes behind J0; as many as in the others where None.
        seed: Of the draws.
        resamples: How many curves are drawn.

    Raises:
        ValueError: A negative or NaN spread, steps that are no schedule, or a count under 1.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std must be finite and not negative, got {std}")
    at_switch = episodes if switch_episodes is None else switch_episodes
    _check_counts(episodes=episodes, resamples=resamples, switch_episodes=at_switch)
    steps, _ = _curve(env_steps, np.zeros(np.shape(env_steps)))
    noise = np.random.default_rng(seed).standard_normal((resamples, len(steps))) / math.sqrt(episodes)
    noise[:, 0] *= math.sqrt(episodes / at_switch)
    below = _positive_areas(steps, noise[:, :1] - noise)
    return std * float(below.mean()) / float(steps[-1])


def _curve(env_steps: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The two arrays of a curve, checked."""
    steps = np.asarray(env_steps, dtype=np.float64)
    values = np.asarray(scores, dtype=np.float64)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(
            f"env_steps and scores must be two rows of one length, got shapes {steps.shape} and {values.shape}"
        )
    if len(steps) < 2:
        raise ValueError(f"a curve needs the evaluation at the switch and one after it, got {len(steps)} point(s)")
    for name, array in (("env_steps", steps), ("scores", values)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is NaN or infinite")
    if steps[0] != 0:
        raise ValueError(f"the first evaluation must be the one at the switch, env_steps[0] == 0, got {steps[0]:g}")
    if not (np.diff(steps) > 0).all():
        at = 1 + int(np.argmax(np.diff(steps) <= 0))
        raise ValueError(f"env_steps must rise: [{at}] is {steps[at]:g} after {steps[at - 1]:g}")
    return steps, values


def _positive_area(steps: FloatArray, values: FloatArray) -> float:
    """The exact integral of max(0, f) for the piecewise linear f through (steps, values)."""
    return float(_positive_areas(steps, values))


def _positive_areas(steps: FloatArray, values: FloatArray) -> FloatArray:
    """The same for many f at once: values (..., N) to (...,)."""
    before, after = values[..., :-1], values[..., 1:]
    left, right = np.maximum(before, 0.0), np.maximum(after, 0.0)
    rise = np.abs(after - before)
    # One end under zero: a triangle, whose base is the share of the segment that lies above.
    share = np.divide(left + right, rise, out=np.ones_like(rise), where=before * after < 0)
    return np.asarray(np.sum(np.diff(steps) * share * (left + right) / 2, axis=-1))


def _recovery(steps: FloatArray, values: FloatArray, lowest: int, level: float, in_a_row: int) -> float | None:
    """The first step after the minimum from which `in_a_row` evaluations hold `level`; 0 where it was never lost."""
    if values[lowest] >= level:
        return 0.0
    good = values >= level
    for start in range(lowest + 1, len(values) - in_a_row + 1):
        if good[start : start + in_a_row].all():
            return float(steps[start])
    return None


def _largest_gain(values: FloatArray, window: int) -> float:
    """The largest rise from one value to a later one at most `window` - 1 places on; 0 where there is none."""
    lags = range(1, min(window, len(values)))
    return max(0.0, *(float((values[lag:] - values[:-lag]).max()) for lag in lags))


def _check_counts(**counts: int) -> None:
    """Raise for a count under 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
