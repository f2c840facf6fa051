"""Weight curves w(t): how far the online objective has taken over, t steps after the switch.

Every curve is a frozen dataclass that maps a step count (environment steps or updates: the controller says which) to a
weight in [0, 1]; 0 is the pure offline objective, 1 the pure online one. Nothing here imports torch or anything of
ours.

`parse_schedule` reads the short text form used on the command line and in config files:

    jump | stay | linear:5000 | cosine:5000 | exponential:5000 | sigmoid:5000 | power:5000:2 | steps:5000:4

with modifiers in front, applied from right to left: `hold:1000+linear:5000`, `floor:0.2+linear:5000`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

CUT = 1e-3  # the exponential curve is cut to 1 where it passes 1 - CUT, so that the offline objective can be dropped


@runtime_checkable
class Schedule(Protocol):
    """A weight curve: step count since the switch in, weight in [0, 1] out."""

    def __call__(self, t: float) -> float:
        """Weight of the online objective, t steps after the switch."""
        ...

    def __str__(self) -> str:
        """Text form that `parse_schedule` reads back."""
        ...


def _fraction(t: float, steps: float) -> float:
    return min(max(t / steps, 0.0), 1.0)


def _text(number: float) -> str:
    """A number as text that reads back as the same number."""
    return f"{number:.0f}" if number == int(number) and abs(number) < 1e15 else repr(float(number))


def _check_steps(name: str, steps: float) -> None:
    if not (math.isfinite(steps) and steps > 0):
        raise ValueError(f"{name}: the ramp length must be a positive number of steps, got {steps}")


@dataclass(frozen=True)
class Jump:
    """w = 1 at once: what every pipeline without smoothing does."""

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return 1.0

    def __str__(self) -> str:
        return "jump"


@dataclass(frozen=True)
class Stay:
    """w = 0 for ever: the offline objective goes on (a control)."""

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return 0.0

    def __str__(self) -> str:
        return "stay"


@dataclass(frozen=True)
class Linear:
    """w = t / N, clipped."""

    steps: float

    def __post_init__(self) -> None:
        _check_steps("linear", self.steps)

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return _fraction(t, self.steps)

    def __str__(self) -> str:
        return f"linear:{_text(self.steps)}"


@dataclass(frozen=True)
class Cosine:
    """w = (1 - cos(pi t / N)) / 2: flat at both ends."""

    steps: float

    def __post_init__(self) -> None:
        _check_steps("cosine", self.steps)

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        x = _fraction(t, self.steps)
        return x if x in (0.0, 1.0) else (1.0 - math.cos(math.pi * x)) / 2.0

    def __str__(self) -> str:
        return f"cosine:{_text(self.steps)}"


@dataclass(frozen=True)
class Exponential:
    """w = 1 - exp(-t / N'), cut to 1 where it passes 1 - 1e-3.

    `steps` is the step count N at which the cut falls, so ramps of different shape compare by length; the time constant
    is N' = N / ln(1000).
    """

    steps: float

    def __post_init__(self) -> None:
        _check_steps("exponential", self.steps)

    @property
    def time_constant(self) -> float:
        """N' in steps."""
        return self.steps / math.log(1.0 / CUT)

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return 1.0 if t >= self.steps else -math.expm1(-max(t, 0.0) / self.time_constant)

    def __str__(self) -> str:
        return f"exponential:{_text(self.steps)}"


@dataclass(frozen=True)
class Sigmoid:
    """Logistic curve in k (t / N - 1/2), rescaled to hit 0 and 1 exactly."""

    steps: float
    k: float = 10.0

    def __post_init__(self) -> None:
        _check_steps("sigmoid", self.steps)
        if not (math.isfinite(self.k) and self.k > 0):
            raise ValueError(f"sigmoid: the steepness k must be positive, got {self.k}")

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        x = _fraction(t, self.steps)
        if x in (0.0, 1.0):
            return x
        low, high = math.tanh(-self.k / 4), math.tanh(self.k / 4)  # logistic(z) = (1 + tanh(z / 2)) / 2
        return (math.tanh(self.k * (x - 0.5) / 2) - low) / (high - low)

    def __str__(self) -> str:
        return f"sigmoid:{_text(self.steps)}:{_text(self.k)}"


@dataclass(frozen=True)
class Power:
    """1 - w = (1 - t / N) ** p: the weight of the offline objective decays as a power (MT2ST's "diminish")."""

    steps: float
    p: float = 2.0

    def __post_init__(self) -> None:
        _check_steps("power", self.steps)
        if not (math.isfinite(self.p) and self.p > 0):
            raise ValueError(f"power: the exponent must be positive, got {self.p}")

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return 1.0 - math.pow(1.0 - _fraction(t, self.steps), self.p)

    def __str__(self) -> str:
        return f"power:{_text(self.steps)}:{_text(self.p)}"


@dataclass(frozen=True)
class Steps:
    """Staircase of n equal steps, the last one to 1 at N; n = 1 is a jump delayed to N (MT2ST's "switch")."""

    steps: float
    n: int = 4

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)
        if self.n < 1:
            raise ValueError(f"steps: at least one stair is needed, got {self.n}")

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        if t >= self.steps:
            return 1.0
        return math.floor(max(t, 0.0) * self.n / self.steps) / self.n  # t / N * n would round some stairs down

    def __str__(self) -> str:
        return f"steps:{_text(self.steps)}:{self.n}"


@dataclass(frozen=True)
class Hold:
    """w = 0 for K steps, then any other curve from its start."""

    hold: float
    then: Schedule

    def __post_init__(self) -> None:
        if not (math.isfinite(self.hold) and self.hold >= 0):
            raise ValueError(f"hold: the number of steps must not be negative, got {self.hold}")

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return 0.0 if t < self.hold else self.then(t - self.hold)

    def __str__(self) -> str:
        return f"hold:{_text(self.hold)}+{self.then}"


@dataclass(frozen=True)
class Floor:
    """Any curve, but the offline objective keeps at least the share f: w <= 1 - f."""

    floor: float
    curve: Schedule

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor: the share kept must be between 0 and 1, got {self.floor}")

    def __call__(self, t: float) -> float:
        """See `Schedule`."""
        return min(self.curve(t), 1.0 - self.floor)

    def __str__(self) -> str:
        return f"floor:{_text(self.floor)}+{self.curve}"


_CURVES: dict[str, tuple[Callable[..., Schedule], int]] = {  # constructor, number of optional further arguments
    "linear": (Linear, 0),
    "cosine": (Cosine, 0),
    "exponential": (Exponential, 0),
    "sigmoid": (Sigmoid, 1),
    "power": (Power, 1),
    "steps": (Steps, 1),
}
SCHEDULE_NAMES = ("jump", "stay", *_CURVES)


def parse_schedule(text: str, ramp_steps: float | None = None) -> Schedule:
    """Read a schedule from its text form.

    Args:
        text: For example `linear:5000`, or `linear` with `ramp_steps` given; see the module docstring.
        ramp_steps: Length used where the text names none.

    Raises:
        ValueError: The text cannot be read; the message names the part and lists what exists.
    """
    *modifiers, last = [part.strip() for part in re.split(r"(?<![\d.][eE])\+", text)]  # not the plus sign of 1e+5
    curve = _parse_curve(last, text, ramp_steps)
    for part in reversed(modifiers):
        name, *args = part.split(":")
        if name not in ("hold", "floor") or len(args) != 1:
            raise ValueError(f"schedule '{text}': '{part}' is not a modifier; there are hold:STEPS and floor:SHARE")
        number = _number(args[0], text)
        curve = Hold(number, curve) if name == "hold" else Floor(number, curve)
    return curve


def _parse_curve(part: str, text: str, ramp_steps: float | None) -> Schedule:
    name, *args = part.split(":")
    if name in ("jump", "stay"):
        if args:
            raise ValueError(f"schedule '{text}': {name} takes no number")
        return Jump() if name == "jump" else Stay()
    if name not in _CURVES:
        raise ValueError(
            f"schedule '{text}': there is no curve '{name}'; there are {', '.join(SCHEDULE_NAMES)} "
            f"(and hold:STEPS+..., floor:SHARE+... in front of one)"
        )
    make, extra = _CURVES[name]
    numbers = [_number(arg, text) for arg in args]
    if not numbers:
        if ramp_steps is None:
            raise ValueError(f"schedule '{text}': how long? write {name}:STEPS or give the ramp length")
        numbers = [float(ramp_steps)]
    if len(numbers) > 1 + extra:
        raise ValueError(f"schedule '{text}': {name} takes at most {1 + extra} numbers, got {len(numbers)}")
    if make is Steps and len(numbers) == 2:
        if not numbers[1].is_integer():
            raise ValueError(f"schedule '{text}': the number of stairs must be whole, got {numbers[1]:g}")
        return Steps(numbers[0], int(numbers[1]))
    return make(*numbers)


def _number(arg: str, text: str) -> float:
    try:
        return float(arg)
    except ValueError:
        raise ValueError(f"schedule '{text}': '{arg}' is not a number") from None
