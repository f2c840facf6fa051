"""From rows (one a seed) to named scalars (a mean, and one a seed) on an axis of our own, for W&B and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PRETRAIN = "pretrain/"
"""Before the switch a metric counts updates and after it environment steps: two axes, so two names. `offline/` would
not do: after the switch that is the offline objective's side of the ramp."""

SUMMARY = "summary"
"""The kind of rows that come once, when a run ends: a mean over seeds needs every seed there, for a seed that never
recovered has no number, and the mean of the others would flatter."""

PREFIXES = {"evaluation": "eval/", "metrics": "", "audit": "", SUMMARY: "stability/"}
"""What names begin with, by the kind of their rows."""

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
    unknown: tuple[str, ...] = ()
    """Names that a summary has and that have no number."""

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
        prefix = (PRETRAIN if phase == "offline" else "") + PREFIXES[kind]
        found: dict[str, dict[int, float]] = {}
        unknown: list[str] = []
        for seed, row in sorted(rows.items()):
            for key, value in row.items():
                number = _number(value)
                if key not in _KEYS and number is not None:
                    found.setdefault(prefix + key, {})[seed] = number
                elif kind == SUMMARY and value is None:
                    unknown += [prefix + key, *self._of_seed(prefix + key, seed)]
        values: dict[str, float] = {}
        for name, by_seed in found.items():
            if name not in unknown:
                values[name] = math.fsum(by_seed.values()) / len(by_seed) if _finite(by_seed) else math.nan
            values |= {own: value for seed, value in by_seed.items() for own in self._of_seed(name, seed)}
        return Scalars(phase, env_steps, updates, values, tuple(dict.fromkeys(unknown)))

    def _of_seed(self, name: str, seed: int) -> list[str]:
        """The name of one seed's value; none where it is the mean at the same time."""
        return [f"{name}/seed_{seed}"] if len(self._seeds) > 1 else []


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
