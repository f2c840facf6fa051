"""The score along the straight line between two policies: is there a valley, and is a point between them the best?

All points are evaluated on the same episodes, so differences between points are paired. A valley is a point that is
below *both* ends, a peak one above both; the tests pay for having looked at every point in between (Bonferroni). Needs
numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from o2o_smooth.stability.student import t_at_tail, t_tail

FloatArray = NDArray[np.float64]
LEVEL = 0.05
"""Of the tests, over all points together."""


@dataclass(frozen=True)
class Extreme:
    """The lowest or highest point between the ends."""

    at: float
    """Where it is on the way, in (0, 1)."""
    score: float
    """Its score, mean over seeds."""
    beyond: float
    """How far it is below the lower end (a valley) or above the higher end (a peak); negative where it is not."""
    error: float
    """Standard error of that, over episodes."""
    p: float
    """Probability of as much by chance, had no point between been beyond both ends."""
    seeds: int
    """Seeds for which this point is beyond both ends."""

    @property
    def significant(self) -> bool:
        """Whether it is more than evaluation noise."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Path:
    """What was seen on the way."""

    shares: tuple[float, ...]
    """(P,) shares of the second policy, rising from 0 to 1."""
    scores: tuple[float, ...]
    """(P,) means over seeds and episodes."""
    errors: tuple[float, ...]
    """(P,) standard errors of these, over episodes."""
    valley: Extreme
    """The lowest point between the ends."""
    peak: Extreme
    """The highest point between the ends."""
    seeds: int
    """How many."""
    own_valleys: int
    """Seeds whose own line has a valley, by the same test on their episodes alone."""

    def sentence(self) -> str:
        """Whether there is a valley, in plain words."""
        if self.valley.significant or self.seeds == 1:
            return self._of_all()
        return f"{self._of_all()}; of the seeds alone, {self.own_valleys} of {self.seeds} have one"

    def _of_all(self) -> str:
        low, noise = self.valley, _amount(2 * self.valley.error)
        where = f"at {low.at:g} of the way the score is {_amount(low.score)}"
        ends = f"the ends have {_amount(self.scores[0])} and {_amount(self.scores[-1])}"
        if low.significant:
            return (
                f"there is a valley: {where}, {_amount(low.beyond)} below the lower end ({ends}; noise ±{noise}, p = "
                f"{low.p:.2g}); so it is for {low.seeds} of {self.seeds} seeds"
            )
        if low.beyond <= 0:
            return f"there is no valley: no point between is below both ends ({ends})"
        return (
            f"there is no valley beyond evaluation noise: {where}, {_amount(low.beyond)} below the lower end ({ends}; "
            f"noise ±{noise}, p = {low.p:.2g})"
        )

    def best(self) -> str:
        """Whether a point between is worth taking (WiSE-FT), in plain words."""
        high = self.peak
        if high.beyond <= 0:
            return (
                f"no point between is better than both ends; the better end is {int(self.scores[-1] > self.scores[0])}"
            )
        rest = f"{_amount(high.score)} at {high.at:g} of the way, {_amount(high.beyond)} above the better end"
        if high.significant:
            return f"the best is between the ends: {rest} (p = {high.p:.2g}), for {high.seeds} of {self.seeds} seeds"
        return f"the best point between the ends is no more than evaluation noise: {rest} (p = {high.p:.2g})"


def read_path(shares: ArrayLike, scores: ArrayLike) -> Path:
    """Look for a valley and for a peak.

    Args:
        shares: (P,) shares of the second policy, rising from 0 to 1, three at least.
        scores: (P, S, E) scores: every point on the same E episodes of each of S seeds.

    Raises:
        ValueError: Another shape, fewer than two episodes, or NaN.
    """
    at, values = np.asarray(shares, np.float64), np.asarray(scores, np.float64)
    if at.ndim != 1 or len(at) < 3 or at[0] != 0.0 or at[-1] != 1.0 or not (np.diff(at) > 0).all():
        raise ValueError(f"shares must rise from 0 to 1 in three points or more, got {at}")
    if values.ndim != 3 or len(values) != len(at) or values.shape[1] < 1 or values.shape[2] < 2:
        raise ValueError(f"scores must be ({len(at)}, seeds, two episodes or more), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite")
    return Path(
        shares=tuple(at.tolist()),
        scores=tuple(values.mean(axis=(1, 2)).tolist()),
        errors=tuple(_test(point)[1] for point in values),
        valley=_extreme(at, values, sign=-1.0),
        own_valleys=sum(_extreme(at, values[:, [s]], sign=-1.0).significant for s in range(values.shape[1])),
        peak=_extreme(at, values, sign=1.0),
        seeds=values.shape[1],
    )


def _extreme(at: FloatArray, values: FloatArray, *, sign: float) -> Extreme:
    """The point between the ends that goes farthest to one side."""
    means = sign * values.mean(axis=(1, 2))
    inner = range(1, len(at) - 1)
    # By its own test, not by its mean: the farthest point may be the noisiest.
    tests = {i: max(_p(sign * (values[i] - values[end])) for end in (0, -1)) for i in inner}
    farthest = max(inner, key=lambda i: means[i])
    chosen = min(inner, key=lambda i: (tests[i], -means[i])) if min(tests.values()) < LEVEL / len(inner) else farthest
    end = 0 if means[0] >= means[-1] else -1
    per_seed = sign * values.mean(axis=2)
    return Extreme(
        at=float(at[chosen]),
        score=float(values[chosen].mean()),
        beyond=float(means[chosen] - means[end]),
        error=_test(values[chosen] - values[end])[1],
        p=min(1.0, len(inner) * tests[chosen]),
        seeds=int((per_seed[chosen] > np.maximum(per_seed[0], per_seed[-1])).sum()),
    )


def _test(values: FloatArray) -> tuple[float, float, float]:
    """Mean of (S, E) values, its standard error over episodes with the seeds as strata, and degrees of freedom."""
    seeds, episodes = values.shape
    parts = values.var(axis=1, ddof=1) / (episodes * seeds**2)
    total, spread = float(parts.sum()), float((parts**2).sum()) / (episodes - 1)
    return float(values.mean()), math.sqrt(total), total**2 / spread if spread > 0 else math.inf


def _p(values: FloatArray) -> float:
    """P of a mean this far above 0 by chance."""
    mean, error, df = _test(values)
    if error == 0.0:
        return 0.0 if mean > 0 else 1.0
    return t_tail(mean / error, df)


def interval(values: ArrayLike, level: float = LEVEL) -> float:
    """Half the width of the interval of a mean over (S, E) values, of coverage 1 - level."""
    _, error, df = _test(np.asarray(values, np.float64))
    return t_at_tail(level / 2, df) * error


def _amount(value: float) -> str:
    """A score or a return for people."""
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{0 if abs(value) >= 1000 else 1}f}"
