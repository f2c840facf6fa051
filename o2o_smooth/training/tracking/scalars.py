"""From rows (one a seed) to named scalars (a mean, and one a seed) on an axis of our own, for W&B and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OFFLINE = "offline/"
"""Before the switch a metric counts updates and after it environment steps: two axes, so two names."""

_KEYS = frozenset({"phase", "env_steps", "updates", "seed"})


@dataclass(frozen=True)
class Scalars:
    """The scalars of one moment of a run."""

    phase: str
    """"offline", "switch" or "online"."""
    env_steps: int
    """Environment steps since the switch."""
    updates: int
    """Updates in total."""
    values: Mapping[str, float]
    """`critic/loss`: the mean over seeds; `critic/loss/seed_3`: one seed's, where there are several."""

    @property
    def axis(self) -> str:
        """The field these values are drawn against."""
        return "updates" if self.phase == "offline" else "env_steps"

    @property
    def step(self) -> int:
        """The value of that field."""
        return self.updates if self.phase == "offline" else self.env_steps


class SeedGroups:
    """Gathers the rows of one moment until every seed is in, so that their mean can be told.

    Args:
        seeds: The seeds of the run.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = frozenset(int(seed) for seed in seeds)
        self._open: dict[str, tuple[tuple[Any, ...], dict[int, Mapping[str, Any]]]] = {}

    def add(self, kind: str, row: Mapping[str, Any]) -> list[Scalars]:
        """Take one row; what is now complete comes back: another moment's rows, if it lacked a seed, and this one's."""
        moment = (str(row.get("phase", "online")), int(row.get("env_steps", 0)), int(row.get("updates", 0)))
        seed = int(row.get("seed", 0))
        done = []
        held = self._open.get(kind)
        if held is not None and (held[0] != moment or seed in held[1]):
            done.append(self._take(kind))
        self._open.setdefault(kind, (moment, {}))[1][seed] = row
        if self._seeds <= self._open[kind][1].keys():
            done.append(self._take(kind))
        return done

    def flush(self) -> list[Scalars]:
        """What is still waiting for a seed."""
        return [self._take(kind) for kind in list(self._open)]

    def _take(self, kind: str) -> Scalars:
        """Close the moment of a kind."""
        (phase, env_steps, updates), rows = self._open.pop(kind)
        prefix = (OFFLINE if phase == "offline" else "") + ("eval/" if kind == "evaluation" else "")
        found: dict[str, dict[int, float]] = {}
        for seed, row in sorted(rows.items()):
            for key, value in row.items():
                number = _number(value)
                if key not in _KEYS and number is not None:
                    found.setdefault(prefix + key, {})[seed] = number
        values: dict[str, float] = {}
        for name, by_seed in found.items():
            values[name] = math.fsum(by_seed.values()) / len(by_seed) if _finite(by_seed) else math.nan
            if len(self._seeds) > 1:
                values |= {f"{name}/seed_{seed}": value for seed, value in by_seed.items()}
        return Scalars(phase, env_steps, updates, values)


def _number(value: Any) -> float | None:
    """A scalar as a float; None for what is no number (null, text, lists)."""
    if value is None or isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _finite(by_seed: Mapping[int, float]) -> bool:
    """Whether a mean can be told; fsum raises where infinities meet."""
    return all(math.isfinite(value) for value in by_seed.values())
