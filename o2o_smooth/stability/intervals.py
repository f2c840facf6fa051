"""How sure a mean over few seeds is, and whether one arm differs from another. Needs numpy only.

Three ways to an interval, for one sample and for paired differences (arms forked from the same pretrainings):

* `bootstrap`: percentiles of the means of resamples. Known everywhere, and too narrow for a handful of seeds: a
  resample has the spread of n values about their own mean, which is short by sqrt((n - 1)/n), and no heavy tails.
* `studentised` (bootstrap-t): each resample's mean counts in its own standard errors, which puts the tails back.
* `sign_flip`: if the true mean were theta and the values lay symmetrically about it, every pattern of signs of
  (value - theta) would be equally likely. Exact at any n; the interval holds the theta that this test does not reject.

Source: Efron & Tibshirani 1993, chapters 12 and 13; Hartigan 1969 (the means of all subsets are "typical values").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from o2o_smooth.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
Method = Literal["auto", "bootstrap", "studentised", "sign_flip"]

FEW_SEEDS = 8
"""Up to here a percentile bootstrap carries a warning, and `auto` flips signs."""

EXACT_SEEDS = 16
"""Up to here all 2^n sign patterns are counted; beyond, as many of them are drawn as there are resamples."""

RESAMPLES = 9_999
"""Draws behind an interval; with the sample itself a round number."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds (or another statistic), and where the true one may lie."""

    mean: float
    """The mean of the sample, or the statistic that was asked for."""
    low: float
    """Lower end; -inf where the sample cannot bound it."""
    high: float
    """Upper end; inf where the sample cannot bound it."""
    n: int
    """Values behind it."""
    method: str
    """`bootstrap`, `studentised` or `sign_flip`: what was used, never `auto`."""
    warning: str | None = None
    """Why the interval must not be taken at its word; None where nothing speaks against it."""
    confidence: float = 0.95
    """What the interval holds: as asked for, or less where so few seeds cannot give that."""


@dataclass(frozen=True)
class PairedDifference:
    """How much one arm exceeds another over the same pretraining seeds."""

    mean: float
    """Mean of a - b."""
    low: float
    """Lower end of the interval for it; -inf where the sample cannot bound it."""
    high: float
    """Upper end; inf where the sample cannot bound it."""
    n: int
    """Pairs."""
    better: int
    """In how many pairs a is strictly better than b (k of n)."""
    p_value: float
    """Two-sided, for a true mean difference of 0."""
    method: str
    """`bootstrap`, `studentised` or `sign_flip`: what was used, never `auto`."""
    warning: str | None = None
    """Why the interval must not be taken at its word; None where nothing speaks against it."""
    confidence: float = 0.95
    """What the interval holds: as asked for, or less where so few seeds cannot give that."""
    significant: bool = False
    """Whether the p-value is at most 1 - the confidence *asked for*. Few seeds can leave 0 outside an interval of
    their smaller confidence and yet decide nothing, so read this and not the ends."""


class _Bounds(NamedTuple):
    """An interval for the mean and the p-value of 0."""

    low: float
    high: float
    p_value: float
    method: str
    warning: str | None
    confidence: float


def interval(
    values: ArrayLike,
    *,
    seed: int = 0,
    method: Method = "auto",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """An interval for the mean of one sample.

    Args:
        values: (n,) one value a seed.
        seed: Of the resampling; the same seed gives the same interval.
        method: `auto` flips signs for up to `FEW_SEEDS` values, and studentises above unless the interval would go
            beyond all of the values.
        confidence: Wanted share of such intervals that hold the true mean.
        resamples: Draws, where not all cases are counted.

    Raises:
        DataError: No values, or NaN or infinity among them.
        ConfigError: An unknown method, or a setting out of range.
    """
    sample = finite_row("values", values)
    found = _bounds(sample, seed, method, confidence, resamples)
    return Interval(
        float(sample.mean()), found.low, found.high, len(sample), found.method, found.warning, found.confidence
    )


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int = 0,
    method: Method = "auto",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    higher_is_better: bool = True,
) -> PairedDifference:
    """The mean of a - b over pretraining seeds, with an interval and a test of no difference.

    Args:
        a: (n,) one value a seed.
        b: (n,) the other arm's value of the same seed in the same place.
        seed: Of the resampling; the same seed gives the same answer.
        method: As in `interval`.
        confidence: As in `interval`.
        resamples: As in `interval`.
        higher_is_better: False for what should be small (a dip, a regret): `better` then counts a < b. The sign of
            the difference stays that of a - b.

    Raises:
        DataError: No values, rows of different lengths, or NaN or infinity among them.
        ConfigError: An unknown method, or a setting out of range.
    """
    first, second = finite_row("a", a), finite_row("b", b)
    if len(first) != len(second):
        raise DataError(
            f"a and b must hold the same seeds in the same order, got {len(first)} and {len(second)} values: "
            "keep the seeds that both arms have"
        )
    difference = first - second
    found = _bounds(difference, seed, method, confidence, resamples)
    return PairedDifference(
        mean=float(difference.mean()),
        low=found.low,
        high=found.high,
        n=len(difference),
        better=int(((difference > 0) if higher_is_better else (difference < 0)).sum()),
        p_value=found.p_value,
        method=found.method,
        warning=found.warning,
        confidence=found.confidence,
        significant=found.p_value <= 1 - confidence + 1e-12,
    )


def finite_row(name: str, values: ArrayLike) -> FloatArray:
    """The values as a row of float64.

    Raises:
        DataError: It is no row, empty, or holds NaN or infinity.
    """
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or len(row) == 0:
        raise DataError(f"{name} must be a row of at least one value, got shape {row.shape}")
    if not np.isfinite(row).all():
        raise DataError(
            f"{name}[{int(np.argmin(np.isfinite(row)))}] is NaN or infinite: leave that seed out and say so"
        )
    return row


def check_settings(confidence: float, resamples: int) -> None:
    """Raise a ConfigError for a confidence or a number of resamples out of range."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
    if resamples < (least := max(100, math.ceil(2 / (1 - confidence)))):
        raise ConfigError(f"resamples must be at least {least} for a confidence of {confidence}, got {resamples}")


def percentile_warning(n: int) -> str | None:
    """What has to be said beside a percentile bootstrap of n seeds."""
    if n > FEW_SEEDS:
        return None
    return (
        f"percentile bootstrap of {n} seed{'s' if n > 1 else ''}: with {FEW_SEEDS} or fewer the interval is too "
        "narrow; for a mean, sign_flip and studentised intervals hold better"
    )


def central(draws: FloatArray, confidence: float) -> tuple[float, float]:
    """The ends between which the middle share of the draws lies, as order statistics; infinite draws are welcome."""
    count = len(draws)
    tail = max(1, math.floor((count + 1) * (1 - confidence) / 2 + 1e-9))
    ordered = np.partition(draws, (tail - 1, count - tail))
    return float(ordered[tail - 1]), float(ordered[count - tail])


def _bounds(sample: FloatArray, seed: int, method: Method, confidence: float, resamples: int) -> _Bounds:
    """The interval of the mean by the method asked for."""
    check_settings(confidence, resamples)
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if len(sample) == 1:
        name = "sign_flip" if method == "auto" else method
        return _Bounds(-math.inf, math.inf, 1.0, name, "one seed has no interval: run more", confidence)
    ways: dict[str, Callable[[FloatArray, int, float, int], _Bounds]] = {
        "bootstrap": _bootstrap,
        "studentised": _studentised,
        "sign_flip": _sign_flip,
    }
    if method != "auto":
        found = ways[method](sample, seed, confidence, resamples)
    elif len(sample) <= FEW_SEEDS:
        found = _sign_flip(sample, seed, confidence, resamples)
    else:
        found = _studentised(sample, seed, confidence, resamples)
        # So many equal values that resamples are flat, or so few others that they alone make the spread: t has no hold.
        if found.low < sample.min() or found.high > sample.max():
            found = _sign_flip(sample, seed, confidence, resamples)
    if _equal(sample):
        equal = f"all {len(sample)} values are equal: the interval knows of no spread"
        found = found._replace(warning="; ".join(filter(None, (equal, found.warning))))
    return found


def _bootstrap(sample: FloatArray, seed: int, confidence: float, resamples: int) -> _Bounds:
    """Percentiles of the resamples' means."""
    means = _resampled(sample, seed, resamples).mean(axis=1)
    low, high = central(means, confidence)
    tolerance = _rounding(sample)
    return _Bounds(
        low,
        high,
        _two_sided(int((means <= tolerance).sum()), int((means >= -tolerance).sum()), resamples),
        "bootstrap",
        percentile_warning(len(sample)),
        confidence,
    )


def _studentised(sample: FloatArray, seed: int, confidence: float, resamples: int) -> _Bounds:
    """Bootstrap-t: the sample's mean less the quantiles of the resamples' t, in standard errors."""
    if _equal(sample):
        mean = float(sample.mean())
        return _sign_flip(sample, seed, confidence, resamples)._replace(low=mean, high=mean, method="studentised")
    unit = float(np.abs(sample).max())  # squares of tiny values would be 0
    n, sample = len(sample), sample / unit
    mean, error, tolerance = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(n), _rounding(sample)
    drawn = _resampled(sample, seed, resamples)
    off = drawn.mean(axis=1) - mean
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    flat = errors <= tolerance  # all values drawn are equal: infinitely many standard errors away
    t = np.where(flat, np.copysign(np.inf, off), off / np.where(flat, 1.0, errors))
    t[flat & (np.abs(off) <= tolerance)] = 0.0
    low_t, high_t = central(t, confidence)
    p_value = _two_sided(int((t >= mean / error).sum()), int((t <= mean / error).sum()), resamples)
    unbounded = not (math.isfinite(low_t) and math.isfinite(high_t))
    warning = "so many values are equal, or so few there, that resamples have no spread: no bound on a side"
    return _Bounds(
        (mean - high_t * error) * unit,
        (mean - low_t * error) * unit,
        p_value,
        "studentised",
        warning if unbounded else None,
        confidence,
    )


def _sign_flip(sample: FloatArray, seed: int, confidence: float, resamples: int) -> _Bounds:
    """All theta that the sign flips of (value - theta) do not reject, and the test of theta = 0.

    A pattern that flips the values of a subset S makes the sum of the rest at least as large as the whole sum where
    mean(S) <= theta. So the one-sided p-value of theta counts the subsets whose mean is at most theta (and the empty
    one), and the interval's ends are order statistics of the means of all subsets.
    """
    n, tolerance = len(sample), _rounding(sample)
    means = _subset_means(sample) if n <= EXACT_SEEDS else _drawn_subset_means(sample, seed, resamples)
    patterns = len(means) + 1  # with the one that flips nothing
    p_value = _two_sided(int((means <= tolerance).sum()), int((means >= -tolerance).sum()), len(means))
    tail = math.floor(patterns * (1 - confidence) / 2 + 1e-9)
    if tail >= 1:
        low, high = central(means, confidence)
        return _Bounds(low, high, p_value, "sign_flip", None, confidence)
    holds = 1 - 2 / patterns
    warning = (
        f"{n} seeds are too few for {100 * confidence:.4g} % confidence: sign flips cannot reach "
        f"p < {2 / patterns:.3g}; the interval, from the least to the greatest value, holds {100 * holds:.4g} % only"
    )
    return _Bounds(float(sample.min()), float(sample.max()), p_value, "sign_flip", warning, holds)


def _resampled(sample: FloatArray, seed: int, resamples: int) -> FloatArray:
    """(resamples, n) values drawn with replacement."""
    rng = np.random.default_rng(seed)
    return sample[rng.integers(0, len(sample), size=(resamples, len(sample)))]


def _subset_means(sample: FloatArray) -> FloatArray:
    """(2^n - 1,) the mean of every subset but the empty one."""
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in sample:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    return sums[1:] / sizes[1:]


def _drawn_subset_means(sample: FloatArray, seed: int, resamples: int) -> FloatArray:
    """(about resamples,) means of subsets drawn at random; empty ones, which flip nothing, are left out."""
    chosen = np.random.default_rng(seed).integers(0, 2, size=(resamples, len(sample)), dtype=np.int8)
    sizes = chosen.sum(axis=1)
    return np.asarray((chosen @ sample)[sizes > 0] / sizes[sizes > 0])


def _two_sided(at_most: int, at_least: int, draws: int) -> float:
    """Twice the smaller tail, the sample itself counted in both."""
    return min(1.0, 2 * (1 + min(at_most, at_least)) / (draws + 1))


def _equal(sample: FloatArray) -> bool:
    """Whether nothing but rounding tells the values apart."""
    return float(np.ptp(sample)) <= _rounding(sample)


def _rounding(sample: FloatArray) -> float:
    """What a sum of such values may be off by, so that ties count as ties."""
    return 8 * len(sample) * float(np.finfo(np.float64).eps) * float(np.abs(sample).max())
