"""Weights that move on signals instead of a clock.

An adaptive rule has the same place in the controller as a weight curve; it keeps one weight per population member.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]  # (M,)


class AdaptiveRule(Protocol):
    """A rule that moves one weight per member on what it observes."""

    members: int

    def advance(self, t: float) -> None:
        """Time has come to t (steps since the switch)."""
        ...

    def observe_episodes(self, member: int, returns: Sequence[float], lane: int = 0) -> None:
        """Undiscounted returns of episodes that one of a member's parallel environments has just finished."""
        ...

    def weights(self) -> Weights:
        """Current weights, (M,)."""
        ...

    def signals(self) -> dict[str, Weights]:
        """What the rule looks at, for the log, each (M,)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, as JSON types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class PerformanceGateConfig:
    """Settings of the performance gate."""

    ramp_steps: float = 5000.0
    """Steps from w = 0 to w = 1 if the gate never closes."""
    share: float = 0.85
    """The gate is open while the running return is at least this share of the return at the switch."""
    retreat: float = 2.0
    """A closed gate moves w back at this multiple of the speed of advance; 0 holds instead."""
    interval: float = 250.0
    """Steps between two decisions."""
    reference_episodes: int = 4
    """First episodes after the switch (w is 0 until they are finished) that define the return at the switch; with
    parallel environments, each contributes equally many, so that short episodes are not favoured."""
    window: int = 4
    """Episodes in the running return."""

    def __post_init__(self) -> None:
        for name in ("ramp_steps", "interval"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"performance_gate: {name} must be positive, got {value}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"performance_gate: share must be in (0, 1], got {self.share}")
        if not (math.isfinite(self.retreat) and self.retreat >= 0):
            raise ValueError(f"performance_gate: retreat must not be negative, got {self.retreat}")
        for name in ("reference_episodes", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"performance_gate: {name} must be at least 1, got {getattr(self, name)}")


class PerformanceGate:
    """w advances while the running return holds what it was at the switch, and retreats when it does not.

    The signal is the return of the episodes that are collected anyway, by the exploring policy, so the yardstick is the
    same policy's return in the first `reference_episodes` episodes after the switch, when w is still 0. Every
    `interval` steps, per member:

        w += interval / ramp_steps              if  Rbar >= R_random + share (R_switch - R_random)
        w -= retreat * interval / ramp_steps    otherwise

    Where no random return is known, or the policy at the switch is no better than it, the bar is
    R_switch - (1 - share) |R_switch|. A decision repeats the last one while no new episode has ended.

    Source: ours; one of several adaptive rules compared in a prototype study.
    """

    def __init__(
        self,
        config: PerformanceGateConfig | None = None,
        *,
        members: int = 1,
        lanes: int = 1,
        random_return: float | None = None,
    ) -> None:
        if lanes < 1:
            raise ValueError(f"performance_gate: lanes must be at least 1, got {lanes}")
        self.config = config or PerformanceGateConfig()
        self.members = members
        self.random_return = random_return
        self._progress = [0.0] * members  # w * ramp_steps: whole steps add up exactly, fractions of 1 do not
        self.lanes = lanes
        self._quota = -(-self.config.reference_episodes // lanes)  # first episodes of each lane
        self._reference: list[list[list[float]]] = [[[] for _ in range(lanes)] for _ in range(members)]
        self._recent: list[deque[float]] = [deque(maxlen=self.config.window) for _ in range(members)]
        self._decisions = 0

    def observe_episodes(self, member: int, returns: Sequence[float], lane: int = 0) -> None:
        """See `AdaptiveRule`; the first episodes of every lane set the yardstick."""
        for value in returns:
            if not math.isfinite(value):
                raise ValueError(f"performance_gate: episode return of member {member} is {value}")
        for value in returns:
            if len(self._reference[member][lane]) < self._quota:
                self._reference[member][lane].append(float(value))
            self._recent[member].append(float(value))

    def bar(self, member: int) -> float | None:
        """Return that keeps the gate open; None until the yardstick is known."""
        seen = [value for lane in self._reference[member] for value in lane]
        if len(seen) < self._quota * self.lanes:
            return None
        reference = float(np.mean(seen))
        if self.random_return is not None and reference > self.random_return:
            return reference - (1.0 - self.config.share) * (reference - self.random_return)
        return reference - (1.0 - self.config.share) * abs(reference)

    def advance(self, t: float) -> None:
        """See `AdaptiveRule`; several intervals may have passed since the last call."""
        due = int(t // self.config.interval)
        for _ in range(self._decisions, due):
            self._decide()
        self._decisions = max(self._decisions, due)

    def _decide(self) -> None:
        step = self.config.interval
        for member in range(self.members):
            bar = self.bar(member)
            if bar is None:
                continue
            is_open = float(np.mean(self._recent[member])) >= bar
            moved = self._progress[member] + (step if is_open else -self.config.retreat * step)
            self._progress[member] = min(max(moved, 0.0), self.config.ramp_steps)

    def weights(self) -> Weights:
        """See `AdaptiveRule`."""
        return np.array(self._progress) / self.config.ramp_steps

    def signals(self) -> dict[str, Weights]:
        """Running return and bar per member; NaN where not known yet."""
        nan = float("nan")
        bars = [self.bar(m) for m in range(self.members)]
        return {
            "gate/running_return": np.array([np.mean(r) if r else nan for r in self._recent]),
            "gate/bar": np.array([nan if b is None else b for b in bars]),
        }

    def state_dict(self) -> dict[str, Any]:
        """See `AdaptiveRule`."""
        return {
            "progress": list(self._progress),
            "reference": [[list(lane) for lane in r] for r in self._reference],
            "recent": [list(r) for r in self._recent],
            "decisions": self._decisions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AdaptiveRule`."""
        if len(state["progress"]) != self.members:
            raise ValueError(f"performance_gate: state of {len(state['progress'])} members, expected {self.members}")
        if len(state["reference"][0]) != self.lanes:
            raise ValueError(f"performance_gate: state of {len(state['reference'][0])} lanes, expected {self.lanes}")
        self._progress = [float(x) for x in state["progress"]]
        self._reference = [[[float(x) for x in lane] for lane in r] for r in state["reference"]]
        self._recent = [deque((float(x) for x in r), maxlen=self.config.window) for r in state["recent"]]
        self._decisions = int(state["decisions"])
