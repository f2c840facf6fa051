"""The performance gate: w advances while episodes return what they did at the switch, and retreats when they do not.

The signal is the return of the episodes that are collected anyway, by the exploring policy. So the yardstick is that
policy's own return in its first episodes after the switch, while w is still 0.

    J, s, n     mean, standard deviation and number of the yardstick's episodes
    tolerance   max((1 - share) (J - J_random), s / sqrt(n)): a drop that matters, and that the yardstick can show
    bar         J - tolerance
    R_k         mean of the last k episodes since the yardstick, k = 1, 2, 4, ... up to four windows
    bound_k     R_k + t sigma sqrt(1/k + 1/n): upper confidence bound, sigma pooled over the yardstick and all these

Each finished episode brings a verdict, per member:

    retreat     for some k the bound_k is below J and R_k below the bar, and the last two episodes are below it too
    advance     otherwise, if the running return (over the window, at first filled up with the yardstick) is at the bar
    hold        otherwise: a drop that may be chance

A verdict to advance is good for N / `ramp_episodes` steps: with long episodes w waits for the next one rather than run
ahead of what is known. Short and long means side by side let a collapse show within two episodes, and a small drop in
as many as its size needs.

Returns that take two values (success or not) have no spread when the yardstick was lucky, so their rate p is drawn
towards one half by Laplace's rule, (successes + 1) / (n + 2), and their deviation is that of a coin.

Source: ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from o2o_smooth.smoothing.bounds import t_at_confidence
from o2o_smooth.smoothing.signals import Ramp, Weights, check_positive, check_returns

FEWEST = 4  # episodes in a yardstick: with fewer a deviation is a guess
LATE = 8  # episodes that are enough once half a ramp has passed
MEMORY = 4  # windows that are remembered


@dataclass(frozen=True)
class PerformanceGateConfig:
    """Settings of the performance gate; only the ramp's length is meant to be chosen."""

    ramp_steps: float = 5000.0
    """Steps from w = 0 to w = 1 if the gate never closes."""
    share: float = 0.85
    """A running return of at least this share of the return at the switch, measured from the random policy's, is none
    that matters to lose."""
    retreat: float = 2.0
    """A closed gate moves w back at this multiple of the speed of advance; 0 holds instead."""
    confidence: float = 0.975
    """Of the bound that must lie below the return at the switch before w retreats, per episode and window."""
    window: int = 8
    """Episodes in the running return; four times as many are remembered for the bounds."""
    yardstick: int = 32
    """Most episodes in the yardstick. It ends sooner: once its standard error is at most half of the drop that matters
    (with 4 episodes or more), or half a ramp has passed (with 8)."""
    ramp_episodes: int = 20
    """A ramp takes at least so many episodes."""

    def __post_init__(self) -> None:
        check_positive("performance_gate", ramp_steps=self.ramp_steps)
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"performance_gate: share must be in (0, 1], got {self.share}")
        if not (math.isfinite(self.retreat) and self.retreat >= 0):
            raise ValueError(f"performance_gate: retreat must not be negative, got {self.retreat}")
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"performance_gate: confidence must be in [0.5, 1), got {self.confidence}")
        if self.yardstick < FEWEST:
            raise ValueError(f"performance_gate: yardstick must be at least {FEWEST} episodes, got {self.yardstick}")
        for name in ("window", "ramp_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"performance_gate: {name} must be at least 1, got {getattr(self, name)}")


class Yardstick(NamedTuple):
    """What is known of the return at the switch."""

    mean: float
    deviation: float
    episodes: int
    tolerance: float

    @property
    def bar(self) -> float:
        """Return that keeps the gate open."""
        return self.mean - self.tolerance

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.episodes)


class _Member:
    """What one member's gate remembers."""

    def __init__(self, config: PerformanceGateConfig, lanes: int) -> None:
        self.first: list[list[float]] = [[] for _ in range(lanes)]  # the yardstick's episodes, per lane
        self.rounds = 0  # episodes of each lane that count for it; 0 while it is being taken
        self.recent: deque[float] = deque(maxlen=MEMORY * config.window)
        self.fresh = 0  # of them, those since the yardstick
        self.values: list[float] = []  # distinct returns so far, three at most
        self.verdict = 0
        self.allowance = 0.0  # steps that w may still advance before the next episode
        self.evidence = 0.0


class PerformanceGate(Ramp):
    """See the module docstring.

    Args:
        config: Settings.
        members: M.
        lanes: Parallel environments per member; each contributes equally many episodes to the yardstick, so that short
            episodes are not favoured.
        random_return: Return of a random policy, where known. Where it is not, or the policy at the switch is no
            better, a drop that matters is (1 - share) |J|.
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
        super().__init__("performance_gate", members, self.config.ramp_steps)
        self.lanes, self.random_return = lanes, random_return
        self._own = [_Member(self.config, lanes) for _ in range(members)]

    # Signals

    def observe_episodes(
        self, member: int, returns: Sequence[float], lane: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """See `AdaptiveRule`; the first episodes of every lane are the yardstick, later ones are held against it."""
        check_returns(self.name, member, returns)
        if not 0 <= lane < self.lanes:
            raise ValueError(f"performance_gate: an episode of lane {lane}, but it was made for lanes={self.lanes}")
        own = self._own[member]
        for value in map(float, returns):
            if value not in own.values and len(own.values) < 3:
                own.values.append(value)
            own.recent.append(value)
            if own.rounds:
                own.fresh = min(own.fresh + 1, MEMORY * self.config.window)
                self._judge(member)
            else:
                own.first[lane].append(value)
                self._end_yardstick(member)

    def _end_yardstick(self, member: int) -> None:
        """Is the yardstick good enough, with as many episodes as every lane has finished?"""
        own, config = self._own[member], self.config
        rounds = min(map(len, own.first))
        n = rounds * self.lanes
        if n < FEWEST:
            return
        found = self._measure(own, rounds)
        allowed = self._mattering(found.mean)
        late = 2 * self.t >= config.ramp_steps and n >= LATE
        if n >= config.yardstick or late or 2 * found.error <= allowed:
            own.rounds = rounds
            own.first = [lane[:rounds] for lane in own.first]
            self._set(member, 1)

    def _judge(self, member: int) -> None:
        own, config = self._own[member], self.config
        stick = self._measure(own, own.rounds)
        recent = np.array(own.recent)
        fresh = recent[len(recent) - own.fresh :]
        n, k = stick.episodes, len(fresh)
        squares = (n - 1) * stick.deviation**2 + float(((fresh - fresh.mean()) ** 2).sum())
        sigma = max(math.sqrt(squares / (n + k - 2)) if k > 1 else stick.deviation, self._coin(own, stick))
        t = t_at_confidence(config.confidence, n + max(k, 1) - 2)
        own.evidence, closed, size = 0.0, False, 1
        while size <= k:
            mean = float(fresh[k - size :].mean())
            margin = t * sigma * math.sqrt(1.0 / size + 1.0 / n)
            lost = stick.mean - mean
            own.evidence = max(own.evidence, lost / margin if margin > 0 else math.inf if lost > 0 else 0.0)
            closed |= mean < stick.bar and mean + margin < stick.mean
            size *= 2
        if closed and fresh[-2:].mean() < stick.bar:
            self._set(member, -1)
        else:
            # A mean of equal numbers can differ from them in the last digit.
            slack = 1e-9 * max(abs(stick.mean), stick.deviation)
            self._set(member, 1 if self._running(own) >= stick.bar - slack else 0)

    def _running(self, own: _Member) -> float:
        return float(np.mean(list(own.recent)[-self.config.window :]))

    def _set(self, member: int, verdict: int) -> None:
        own = self._own[member]
        own.verdict, own.allowance = verdict, self.config.ramp_steps / self.config.ramp_episodes

    # The yardstick

    def yardstick(self, member: int) -> Yardstick | None:
        """The return at the switch as far as it is known; None while it is being taken."""
        own = self._own[member]
        return self._measure(own, own.rounds) if own.rounds else None

    def _measure(self, own: _Member, rounds: int) -> Yardstick:
        seen = [value for lane in own.first for value in lane[:rounds]]
        n = len(seen)
        if len(own.values) > 2:
            mean, deviation = float(np.mean(seen)), float(np.std(seen, ddof=1))
        else:
            low, high = self._two_values(own)
            rate = (sum(value == high for value in seen) + 1) / (n + 2)
            mean, deviation = low + rate * (high - low), math.sqrt(rate * (1 - rate)) * (high - low)
        return Yardstick(mean, deviation, n, max(self._mattering(mean), deviation / math.sqrt(n)))

    def _two_values(self, own: _Member) -> tuple[float, float]:
        """Failure and success; where all returns were the same, failing is what a random policy does."""
        low, high = min(own.values), max(own.values)
        if low == high:
            low = min(low, 0.0 if self.random_return is None else self.random_return)
        return low, high

    def _coin(self, own: _Member, stick: Yardstick) -> float:
        return stick.deviation if len(own.values) <= 2 else 0.0

    def _mattering(self, mean: float) -> float:
        """The smallest drop from a mean return that matters."""
        above = mean - self.random_return if self.random_return is not None else -1.0
        return (1.0 - self.config.share) * (above if above > 0 else abs(mean))

    # Movement

    def _moved(self, steps: float) -> Weights:
        moved = np.zeros(self.members)
        for member, own in enumerate(self._own):
            if own.verdict > 0:
                moved[member] = min(steps, own.allowance)
                own.allowance -= moved[member]
            elif own.verdict < 0:
                moved[member] = -self.config.retreat * steps
        return moved

    def signals(self) -> dict[str, Weights]:
        """Per member: running return, bar, return at the switch, evidence (w retreats above 1), verdict (-1, 0, 1).

        NaN where not known yet.
        """
        sticks = [self.yardstick(m) for m in range(self.members)]
        nan = float("nan")
        return {
            "gate/running_return": np.array([self._running(o) if o.recent else nan for o in self._own]),
            "gate/bar": np.array([nan if s is None else s.bar for s in sticks]),
            "gate/switch_return": np.array([nan if s is None else s.mean for s in sticks]),
            "gate/evidence": np.array(
                [nan if s is None else o.evidence for o, s in zip(self._own, sticks, strict=True)]
            ),
            "gate/verdict": np.array([float(o.verdict) for o in self._own]),
        }

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        """See `AdaptiveRule`."""
        own = [
            {
                "first": [list(lane) for lane in o.first],
                "rounds": o.rounds,
                "recent": list(o.recent),
                "fresh": o.fresh,
                "values": list(o.values),
                "verdict": o.verdict,
                "allowance": o.allowance,
                "evidence": o.evidence,
            }
            for o in self._own
        ]
        return super().state_dict() | {"own": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AdaptiveRule`."""
        found = [len(o["first"]) for o in state.get("own", ())]
        if any(lanes != self.lanes for lanes in found):
            raise ValueError(f"performance_gate: state of {found[0]} lanes, expected {self.lanes}")
        super().load_state_dict(state)
        for own, kept in zip(self._own, state["own"], strict=True):
            own.first = [[float(x) for x in lane] for lane in kept["first"]]
            own.recent = deque((float(x) for x in kept["recent"]), maxlen=own.recent.maxlen)
            own.values = [float(x) for x in kept["values"]]
            own.rounds, own.fresh, own.verdict = int(kept["rounds"]), int(kept["fresh"]), int(kept["verdict"])
            own.allowance, own.evidence = float(kept["allowance"]), float(kept["evidence"])
