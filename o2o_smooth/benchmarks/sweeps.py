"""Sweeps: any setting over a grid or over seeded samples, as more arms of a suite.

[[sweep]]
arm = "linear"                                  # the arm that is varied; default: the first
count = 8                                       # samples; without distributions there are none, and the grid counts
seed = 0
ramp_steps = [500, 1000, 2000]                  # a list: an axis of the grid
actor_lr = {log_uniform = [1e-5, 1e-3]}         # a distribution: sampled
pretraining = {expectile = [0.7, 0.9]}          # varied for the whole run, with a pretraining for each value

Every point is an arm with a name that says what differs.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import unknown

DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform", "int_log_uniform", "choice")
_OWN = ("arm", "count", "seed", "pretraining")


@dataclass(frozen=True)
class Point:
    """One combination of a sweep."""

    settings: Mapping[str, Any]
    pretraining: Mapping[str, Any]

    @property
    def text(self) -> str:
        """For a name: what differs from other points."""
        values = {**self.settings, **self.pretraining}
        return " ".join(f"{key.replace('_', '-')}={_short(value)}" for key, value in values.items())


@dataclass(frozen=True)
class Distribution:
    """Where samples of a setting come from."""

    kind: str
    arguments: tuple[Any, ...]

    def sample(self, rng: np.random.Generator) -> Any:
        """One value, with three significant digits where it is real, so that names and files agree."""
        low, high = self.arguments[0], self.arguments[-1]
        if self.kind == "choice":
            return self.arguments[int(rng.integers(len(self.arguments)))]
        if self.kind == "int_uniform":
            return int(rng.integers(low, high + 1))
        if self.kind == "uniform":
            return _rounded(rng.uniform(low, high))
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        return round(value) if self.kind == "int_log_uniform" else _rounded(value)


@dataclass(frozen=True)
class Sweep:
    """A grid, or so many samples, or samples for each point of a grid."""

    arm: str | None
    """The arm that is varied; None: the suite's first."""
    grid: Mapping[str, tuple[Any, ...]]
    """Values by dotted name: `pretraining.` in front where they hold for the whole run."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    """The same of samples."""
    count: int = 0
    """Samples."""
    seed: int = 0
    """Of the samples."""

    def points(self) -> Iterator[Point]:
        """All combinations; the same for the same file."""
        rng = np.random.default_rng(self.seed)
        names = list(self.distributions)
        samples = [
            {name: self.distributions[name].sample(rng) for name in names} for _ in range(self.count if names else 1)
        ]
        for sample in samples:
            for values in itertools.product(*self.grid.values()):
                yield _point({**dict(zip(self.grid, values, strict=True)), **sample})


def _point(values: Mapping[str, Any]) -> Point:
    before = {k.removeprefix("pretraining."): v for k, v in values.items() if k.startswith("pretraining.")}
    return Point({k: v for k, v in values.items() if not k.startswith("pretraining.")}, before)


def read_sweeps(content: Any, where: str) -> list[Sweep]:
    """The sweeps of a suite's file.

    Raises:
        ConfigError: An axis that cannot be read; the text names it.
    """
    rows = [content] if isinstance(content, Mapping) else content
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError(f"{where}: 'sweep' is a table, write [sweep] or [[sweep]]")
    return [_sweep(row, f"{where}: [sweep]") for row in rows]


def _sweep(row: Mapping[str, Any], where: str) -> Sweep:
    before = row.get("pretraining", {})
    if not isinstance(before, Mapping):
        raise ConfigError(f"{where}: 'pretraining' is a table of axes: pretraining = {{expectile = [0.7, 0.9]}}")
    axes = {key.replace("-", "_"): value for key, value in row.items() if key not in _OWN}
    axes |= {f"pretraining.{key.replace('-', '_')}": value for key, value in before.items()}
    if not axes:
        raise ConfigError(f"{where}: nothing is varied; write ramp_steps = [500, 1000]")
    grid: dict[str, tuple[Any, ...]] = {}
    distributions: dict[str, Distribution] = {}
    for key, value in axes.items():
        if isinstance(value, Mapping):
            distributions[key] = _distribution(value, f"{where} {key}")
        elif isinstance(value, list) and value:
            grid[key] = tuple(value)
        else:
            raise ConfigError(f"{where}: {key} needs a list of values or a distribution, got {value!r}")
    arm, count, seed = row.get("arm"), row.get("count", 0), row.get("seed", 0)
    if arm is not None and not isinstance(arm, str):
        raise ConfigError(f"{where}: arm is the name of an arm, got {arm!r}")
    for name, number in (("count", count), ("seed", seed)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{where}: {name} must be an integer, not negative, got {number!r}")
    if distributions and not count:
        raise ConfigError(f"{where}: how many samples of {', '.join(distributions)}? write count = 10")
    if count and not distributions:
        raise ConfigError(f"{where}: count is the number of samples, and nothing is sampled; leave it out")
    return Sweep(arm, grid, distributions, count, seed)


def _distribution(value: Mapping[str, Any], where: str) -> Distribution:
    if len(value) != 1:
        raise ConfigError(f"{where}: one distribution, for example {{log_uniform = [1e-5, 1e-3]}}")
    ((kind, arguments),) = value.items()
    if kind not in DISTRIBUTIONS:
        raise ConfigError(f"{where}: " + unknown("distribution", kind, dict.fromkeys(DISTRIBUTIONS)))
    if not isinstance(arguments, list) or not arguments:
        raise ConfigError(f"{where}: {kind} takes a list, got {arguments!r}")
    if kind != "choice":
        _check_range(kind, arguments, where)
    return Distribution(kind, tuple(arguments))


def _check_range(kind: str, arguments: Sequence[Any], where: str) -> None:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in arguments)
    if not numbers or len(arguments) != 2 or not arguments[0] < arguments[1]:
        raise ConfigError(f"{where}: {kind} takes [low, high] with low below high, got {arguments!r}")
    if kind.startswith("int") and not all(isinstance(x, int) for x in arguments):
        raise ConfigError(f"{where}: {kind} takes integers, got {arguments!r}")
    if kind.endswith("log_uniform") and arguments[0] <= 0:
        raise ConfigError(f"{where}: {kind} takes positive numbers, got {arguments!r}")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
