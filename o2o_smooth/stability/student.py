"""Student's t distribution in plain Python: what a test over few episodes needs, without scipy."""

from __future__ import annotations

import math
from statistics import NormalDist

_TINY = 1e-300
_STEPS = 500  # the fraction below needs about sqrt(max(a, b)) of them
_NORMAL = 1e7  # degrees of freedom from which the two distributions agree to eight digits


def t_tail(t: float, df: float) -> float:
    """P(T > t) for `df` degrees of freedom, which may be infinite.

    Source: T's tail as a regularised incomplete beta function, Abramowitz & Stegun 26.7.1 and 26.5.8.
    """
    if not df > 0 or math.isnan(t):
        raise ValueError(f"the t distribution needs a number and positive degrees of freedom, got {t} and {df}")
    if math.isinf(t) or df > _NORMAL:
        return NormalDist().cdf(-t)
    half = 0.5 * _beta_share(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t))
    return half if t >= 0 else 1.0 - half


def t_at_tail(tail: float, df: float) -> float:
    """The t with P(T > t) = `tail`, in (0, 1): 0.025 gives the upper end of a two-sided 95 %."""
    if not 0.0 < tail < 1.0:
        raise ValueError(f"a tail of the distribution lies between 0 and 1, got {tail}")
    if tail > 0.5:
        return -t_at_tail(1.0 - tail, df)
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, df) > tail else (low, middle)
    return high


def _beta_share(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b); `rest` is 1 - x, which x near 1 would not tell exactly."""
    if x <= 0.0 or rest <= 0.0:
        return float(rest <= 0.0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly, and its mirror image fast
        return 1.0 - math.exp(log_front) * _fraction(b, a, rest) / b
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1.0 / _away(1.0 + numerator * d), _away(1.0 + numerator / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _away(value: float) -> float:
    """Keep a divisor away from zero."""
    return value if abs(value) > _TINY else _TINY
