"""What an adaptive rule is, which signals there are, and the ramp that all rules move along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.smoothing.schedules import Schedule

Weights = NDArray[np.float64]  # (M,)

SIGNALS: dict[str, str] = {
    "kl": "KL divergence of the policy from that at the switch on recent online states, nats per action dimension",
    "td_online": "mean squared TD error of the online objective on fresh online rows",
    "td_offline": "mean squared TD error of the online objective on a fixed sample of offline rows",
    "gradient_cosine": "cosine of the actor's gradients under the two objectives",
}
"""What can be measured for a rule, each (M,). Returns of episodes are no measurement: they come when they come."""


class AdaptiveRule(Protocol):
    """A rule that moves one weight per member on what it observes."""

    members: int
    needs: frozenset[str]
    """Names in `SIGNALS` that must be measured for it; empty where returns are enough."""
    every: float
    """Steps between two measurements, in the controller's unit."""
    curves: Mapping[str, Schedule]
    """Components that follow a curve of their own under this rule, unless the user gives another."""

    def advance(self, t: float) -> None:
        """Time has come to t (steps since the switch)."""
        ...

    def observe_episodes(
        self, member: int, returns: Sequence[float], lane: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """Undiscounted returns of episodes that one of a member's parallel environments has just finished."""
        ...

    def observe(self, signals: Mapping[str, Weights]) -> None:
        """Measurements of what it needs, (M,) each."""
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


def check_positive(rule: str, **values: float) -> None:
    """Check settings that must be positive and finite.

    Raises:
        ValueError: One is not; the text names it.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{rule}: {name} must be positive, got {value}")


def check_returns(rule: str, member: int, returns: Sequence[float]) -> None:
    """Refuse returns that are not finite.

    Raises:
        ValueError: One is not.
    """
    for value in returns:
        if not math.isfinite(value):
            raise ValueError(f"{rule}: episode return of member {member} is {value}")


class Ramp:
    """Progress along a ramp of N steps per member, w = progress / N, at a rate that the rule sets.

    Whole steps add up exactly, fractions of 1 would not; so at rate 1 the ramp ends at exactly 1 after N steps.

    Args:
        name: The rule's name, for messages.
        members: M.
        ramp_steps: N.
    """

    needs: frozenset[str] = frozenset()
    every = math.inf

    def __init__(self, name: str, members: int, ramp_steps: float) -> None:
        if members < 1:
            raise ValueError(f"{name}: members must be at least 1, got {members}")
        self.name, self.members, self.ramp_steps = name, members, ramp_steps
        self.curves: Mapping[str, Schedule] = {}
        self.progress = np.zeros(members)
        self.rate = np.zeros(members)  # steps of progress per step of time; 0 until something is known
        self.t = 0.0

    def advance(self, t: float) -> None:
        """See `AdaptiveRule`; an earlier time than before moves nothing."""
        steps = t - self.t
        if steps > 0:
            self.t = t
            self.progress = np.clip(self.progress + self._moved(steps), 0.0, self.ramp_steps)

    def _moved(self, steps: float) -> Weights:
        return steps * self.rate

    def observe_episodes(
        self, member: int, returns: Sequence[float], lane: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """See `AdaptiveRule`; most rules do not look at returns."""

    def observe(self, signals: Mapping[str, Weights]) -> None:
        """See `AdaptiveRule`."""
        values = {}
        for name in sorted(self.needs):
            if name not in signals:
                raise ValueError(f"{self.name} needs {name} ({SIGNALS[name]}), got {', '.join(signals) or 'nothing'}")
            value = np.asarray(signals[name], np.float64)
            if value.shape != (self.members,):
                raise ValueError(f"{self.name}: {name} has shape {value.shape}, expected ({self.members},)")
            if not np.isfinite(value).all():
                bad = int(np.argmin(np.isfinite(value)))
                raise ValueError(f"{self.name}: {name} of member {bad} is {value[bad]}; the training has diverged")
            values[name] = value
        if values:
            self._observe(values)

    def _observe(self, signals: Mapping[str, Weights]) -> None:
        """Set the rate."""

    def weights(self) -> Weights:
        """See `AdaptiveRule`."""
        return self.progress / self.ramp_steps

    def state_dict(self) -> dict[str, Any]:
        """See `AdaptiveRule`."""
        return {"name": self.name, "t": self.t, "progress": self.progress.tolist(), "rate": self.rate.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AdaptiveRule`.

        Raises:
            ValueError: The state is another rule's, or of another population.
        """
        if state.get("name") != self.name:
            raise ValueError(f"{self.name}: the state was taken from {state.get('name', 'another rule')}")
        if len(state["progress"]) != self.members:
            raise ValueError(f"{self.name}: state of {len(state['progress'])} members, expected {self.members}")
        self.t = float(state["t"])
        self.progress = np.array(state["progress"], np.float64)
        self.rate = np.array(state["rate"], np.float64)
