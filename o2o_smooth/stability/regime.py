"""Which is worth more at the switch: the pretrained policy, or the data it learned from? Needs numpy only.

    policy better    J(policy) - J(data) > margin         by a one-sided Welch test over episodes
    data better      J(data) - J(policy) > margin         by the mirror image
    comparable       neither; `certain` where the difference is shown to be within the margin

The three regimes and what they mean for the time after the switch: Li, Ni, Sun & Bacon, arXiv 2510.01460. The margin
and the levels are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from o2o_smooth.stability.student import t_at_tail, t_tail

Regime = Literal["policy better", "data better", "comparable"]
LEVEL = 0.05
"""Of each one-sided test."""


@dataclass(frozen=True)
class Episodes:
    """A group of episodes by what a test needs of it."""

    mean: float
    """Mean return or score."""
    std: float | None
    """Standard deviation over the episodes, by their number; None where nobody wrote it down."""
    count: int
    """How many."""

    def __post_init__(self) -> None:
        if self.count < 1 or not math.isfinite(self.mean):
            raise ValueError(f"a group of episodes has a finite mean and at least one, got {self.mean}, {self.count}")
        if self.std is not None and not (math.isfinite(self.std) and self.std >= 0.0):
            raise ValueError(f"std must be finite and not negative, got {self.std}")

    @property
    def variance_of_mean(self) -> float:
        """Squared standard error; 0 where the spread is not known."""
        return 0.0 if self.std is None or self.count < 2 else self.std**2 / (self.count - 1)


@dataclass(frozen=True)
class Comparison:
    """The policy at the switch against the data."""

    regime: Regime
    """What the test says."""
    certain: bool
    """Whether it says so at `LEVEL`; a difference that is neither shown to be large nor small is "comparable", too."""
    policy: float
    """J of the policy, mean over seeds."""
    data: float
    """J of the data."""
    difference: float
    """policy - data."""
    low: float
    """Lower end of the difference's interval, of coverage 1 - 2 `LEVEL`: above the margin means policy better."""
    high: float
    """Upper end: below -margin means data better."""
    margin: float
    """Differences up to this do not matter."""
    p_policy_better: float
    """Of the test against "at most the margin better"."""
    p_data_better: float
    """Of the test against "at most the margin worse"."""
    df: float
    """Degrees of freedom (Welch and Satterthwaite)."""
    seeds: tuple[Regime, ...]
    """The same test for each seed's own episodes."""
    exact_data: bool
    """Whether the data's mean was taken as exact, because their spread is not known."""


def compare_with_data(policy: ArrayLike, data: Episodes, *, margin: float) -> Comparison:
    """Compare the policy at the switch with the data it learned from.

    The noise is that of episodes: the seeds at hand are what is judged, not seeds in general.

    Args:
        policy: (M, E) returns or scores of the evaluation at the switch: M seeds, E episodes each, at least two.
        data: The data's episodes, in the same unit.
        margin: Differences up to this do not matter.

    Raises:
        ValueError: Fewer than two episodes a seed, NaN, or a negative margin.
    """
    episodes = np.asarray(policy, dtype=np.float64)
    if episodes.ndim != 2 or episodes.shape[0] < 1 or episodes.shape[1] < 2:
        raise ValueError(f"policy must be (seeds, episodes) with two episodes at least, got shape {episodes.shape}")
    if not np.isfinite(episodes).all():
        raise ValueError("policy has an episode of NaN or infinity")
    if not (math.isfinite(margin) and margin >= 0.0):
        raise ValueError(f"margin must be finite and not negative, got {margin}")
    each = [Episodes(float(row.mean()), float(row.std()), len(row)) for row in episodes]
    difference, variance, df = _difference(each, data)
    error = math.sqrt(variance)
    width = t_at_tail(LEVEL, df) * error
    return Comparison(
        regime=_regime(difference, error, df, margin),
        certain=_certain(difference, error, df, margin),
        policy=float(episodes.mean()),
        data=data.mean,
        difference=difference,
        low=difference - width,
        high=difference + width,
        margin=margin,
        p_policy_better=_p(difference - margin, error, df),
        p_data_better=_p(-difference - margin, error, df),
        df=df,
        seeds=tuple(_seed_regime(one, data, margin) for one in each),
        exact_data=data.std is None or data.count < 2,
    )


def above(policy: ArrayLike, level: float) -> bool:
    """Whether the mean of (M, E) episodes is above a level, by the same test."""
    episodes = np.asarray(policy, dtype=np.float64)
    each = [Episodes(float(row.mean()), float(row.std()), len(row)) for row in episodes]
    difference, variance, df = _difference(each, Episodes(level, None, 1))
    return _p(difference, math.sqrt(variance), df) < LEVEL


def _difference(each: list[Episodes], data: Episodes) -> tuple[float, float, float]:
    """Mean over seeds minus the data's, its squared standard error, and the degrees of freedom."""
    parts = [(one.variance_of_mean / len(each) ** 2, one.count - 1) for one in each]
    parts.append((data.variance_of_mean, data.count - 1))
    parts = [(variance, own) for variance, own in parts if variance > 0.0]
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / own for variance, own in parts)
    mean = sum(one.mean for one in each) / len(each)
    return mean - data.mean, total, total**2 / spread if spread > 0.0 else math.inf


def _p(excess: float, error: float, df: float) -> float:
    """P of a difference this far above its bound, if the bound were true."""
    if error == 0.0:
        return 0.0 if excess > 0.0 else 1.0
    return t_tail(excess / error, df)


def _regime(difference: float, error: float, df: float, margin: float) -> Regime:
    if _p(difference - margin, error, df) < LEVEL:
        return "policy better"
    return "data better" if _p(-difference - margin, error, df) < LEVEL else "comparable"


def _certain(difference: float, error: float, df: float, margin: float) -> bool:
    """Whether a regime is shown: by its own test, or for "comparable" by both tests of equivalence."""
    if _regime(difference, error, df, margin) != "comparable":
        return True
    return max(_p(margin - difference, error, df), _p(margin + difference, error, df)) < LEVEL


def _seed_regime(one: Episodes, data: Episodes, margin: float) -> Regime:
    difference, variance, df = _difference([one], data)
    return _regime(difference, math.sqrt(variance), df, margin)
