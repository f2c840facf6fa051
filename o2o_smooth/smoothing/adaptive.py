"""Rules that move w on signals other than a return that must hold: see `gate` for that one.

A rule has the same place in the controller as a weight curve and keeps one weight per population member. What it looks
at beyond returns (`needs`) is measured every `every` steps, and between two measurements it goes on as the last one
said; before the first one w stays 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from o2o_smooth.smoothing.schedules import Linear
from o2o_smooth.smoothing.signals import Ramp, Weights, check_positive, check_returns


@dataclass(frozen=True)
class ReturnPDConfig:
    """Settings of return_pd; the source's, which its authors used for locomotion."""

    kp: float = 3e-5
    """Gain per step on the distance of the mean return from the target: the weight of the offline objective falls."""
    kd: float = 1e-4
    """Gain per step on an episode's loss against the mean return: the weight of the offline objective rises."""
    target: float = 1.05
    """Return to reach; 0 is the random policy, 1 the reference policy."""
    decay: float = 0.95
    """Of the mean return, per episode."""
    start: float = 0.4
    """c0: the coefficient at the switch, and its largest value. w = 1 - coefficient / c0."""

    def __post_init__(self) -> None:
        check_positive("return_pd", start=self.start)
        for name in ("kp", "kd"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"return_pd: {name} must not be negative, got {getattr(self, name)}")
        if not math.isfinite(self.target):
            raise ValueError(f"return_pd: target must be a number, got {self.target}")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"return_pd: decay must be in [0, 1), got {self.decay}")


class ReturnPD(Ramp):
    """A PD controller on the return of collected episodes, in steps of whole episodes.

        c += length * (-kp (target - Rbar) + kd max(0, Rbar - R)),  clipped to [0, c0];  w = 1 - c / c0
        Rbar <- decay Rbar + (1 - decay) R                          after c has moved

    The source starts Rbar with an evaluation before the switch; here it starts with the first episode after it. Time is
    that of the episodes, so there is no ramp length.

    Args:
        config: Settings.
        members: M.
        random_return: Return of the random policy, which counts as 0.
        reference_return: Return of the reference policy, which counts as 1.

    Raises:
        ValueError: References are missing: without them a return has no scale.

    Source: github.com/zhaoyi11/adaptive_bc, main.py (Zhao et al. 2022, arXiv 2210.13846).
    """

    def __init__(
        self,
        config: ReturnPDConfig | None = None,
        *,
        members: int = 1,
        random_return: float | None,
        reference_return: float | None,
    ) -> None:
        if random_return is None or reference_return is None or random_return == reference_return:
            raise ValueError(
                "return_pd measures returns between those of a random and a reference policy, and the task has none: "
                "give it ref_random and ref_expert, or choose performance_gate"
            )
        super().__init__("return_pd", members, 1.0)
        self.config = config or ReturnPDConfig()
        self.random_return, self.reference_return = random_return, reference_return
        self._coefficient = np.full(members, self.config.start)
        self._mean = np.full(members, np.nan)
        self._latest = np.full(members, np.nan)

    def observe_episodes(
        self, member: int, returns: Sequence[float], lane: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """See `AdaptiveRule`.

        Raises:
            ValueError: Lengths are missing, or not one per return.
        """
        if lengths is None or len(lengths) != len(returns):
            raise ValueError("return_pd moves by the length of episodes; give one length per return")
        check_returns(self.name, member, returns)
        config, width = self.config, self.reference_return - self.random_return
        for raw, length in zip(returns, lengths, strict=True):
            value = (raw - self.random_return) / width
            mean = value if math.isnan(self._mean[member]) else float(self._mean[member])
            change = -config.kp * (config.target - mean) + config.kd * max(0.0, mean - value)
            if self.t > 0:  # in a warm-up, where the clock stands, episodes only tell where the mean is
                moved = self._coefficient[member] + length * change
                self._coefficient[member] = min(max(moved, 0.0), config.start)
            self._mean[member] = config.decay * mean + (1 - config.decay) * value
            self._latest[member] = value

    def weights(self) -> Weights:
        """See `AdaptiveRule`."""
        return 1.0 - self._coefficient / self.config.start

    def signals(self) -> dict[str, Weights]:
        """Mean and latest return per member, 0 random and 1 reference; NaN before the first episode."""
        return {"pd/mean_return": self._mean.copy(), "pd/return": self._latest.copy()}

    def state_dict(self) -> dict[str, Any]:
        """See `AdaptiveRule`."""
        known = [None if math.isnan(x) else float(x) for x in self._mean]  # JSON has no NaN
        latest = [None if math.isnan(x) else float(x) for x in self._latest]
        return super().state_dict() | {"coefficient": self._coefficient.tolist(), "mean": known, "latest": latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AdaptiveRule`."""
        super().load_state_dict(state)
        self._coefficient = np.array(state["coefficient"], np.float64)
        self._mean = np.array([math.nan if x is None else x for x in state["mean"]], np.float64)
        self._latest = np.array([math.nan if x is None else x for x in state["latest"]], np.float64)


class MeasuredRamp(Ramp):
    """A ramp whose rate is set by measurements.

    Args:
        name: The rule's name.
        needs: What must be measured.
        members: M.
        ramp_steps: N.
        every: Steps between measurements.
    """

    def __init__(self, name: str, needs: frozenset[str], members: int, ramp_steps: float, every: float) -> None:
        check_positive(name, ramp_steps=ramp_steps, every=every)
        super().__init__(name, members, ramp_steps)
        self.needs, self.every = needs, every
        self.seen: dict[str, Weights] = {name: np.full(members, np.nan) for name in sorted(needs)}

    def state_dict(self) -> dict[str, Any]:
        """See `AdaptiveRule`."""
        seen = {name: [None if math.isnan(x) else float(x) for x in v] for name, v in self.seen.items()}
        return super().state_dict() | {"seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AdaptiveRule`."""
        super().load_state_dict(state)
        seen = state["seen"]
        self.seen = {k: np.array([math.nan if x is None else x for x in v], np.float64) for k, v in seen.items()}


@dataclass(frozen=True)
class KLGateConfig:
    """Settings of kl_gate."""

    ramp_steps: float = 5000.0
    """N: steps from w = 0 to w = 1 if the policy never leaves the bound."""
    limit: float = 1.0
    """Largest KL divergence from the policy at the switch, nats per action dimension."""
    retreat: float = 2.0
    """Fastest retreat, as a multiple of the speed of advance."""
    every: float = 250.0
    """Steps between measurements."""

    def __post_init__(self) -> None:
        check_positive("kl_gate", ramp_steps=self.ramp_steps, limit=self.limit, every=self.every)
        if not (math.isfinite(self.retreat) and self.retreat >= 0):
            raise ValueError(f"kl_gate: retreat must not be negative, got {self.retreat}")


class KLGate(MeasuredRamp):
    """w advances while the policy is within a KL ball around the policy at the switch; outside, 1 - w is a multiplier.

        w += 1 / N                                   per step, while KL <= limit
        w -= min(KL / limit - 1, retreat) / N        otherwise: dual ascent of the constraint KL <= limit

    Source: ours.
    """

    def __init__(self, config: KLGateConfig | None = None, *, members: int = 1) -> None:
        self.config = config or KLGateConfig()
        super().__init__("kl_gate", frozenset({"kl"}), members, self.config.ramp_steps, self.config.every)

    def _observe(self, signals: Mapping[str, Weights]) -> None:
        self.seen["kl"] = kl = signals["kl"]
        self.rate = np.where(
            kl <= self.config.limit, 1.0, -np.minimum(kl / self.config.limit - 1.0, self.config.retreat)
        )

    def signals(self) -> dict[str, Weights]:
        """The latest divergence per member; NaN before the first measurement."""
        return {"kl_gate/kl": self.seen["kl"].copy()}


@dataclass(frozen=True)
class TDGateConfig:
    """Settings of td_gate."""

    ramp_steps: float = 5000.0
    """N: steps from w = 0 to w = 1 if the gate never closes; also the critics' own ramp."""
    factor: float = 2.0
    """c: the gate is open while the TD error on fresh online rows is at most c times that on offline rows."""
    every: float = 250.0
    """Steps between measurements."""

    def __post_init__(self) -> None:
        check_positive("td_gate", ramp_steps=self.ramp_steps, factor=self.factor, every=self.every)


class TDGate(MeasuredRamp):
    """w advances while the critics are about as right about what the policy now meets as about the data, else it holds.

        w += 1 / N    per step, while  td_online <= c td_offline

    Both are mean squared errors against the online objective's target. The critics and V follow a linear ramp of N
    steps of their own, unless given another curve: a critic that waits with the actor would see no online row, and the
    gate would never open.

    Source: ours, after the analysis of Zhou et al. 2024 (WSRL, arXiv 2412.07762): Q-values are wrong on fresh rows
    first.
    """

    def __init__(self, config: TDGateConfig | None = None, *, members: int = 1) -> None:
        self.config = config or TDGateConfig()
        needs = frozenset({"td_online", "td_offline"})
        super().__init__("td_gate", needs, members, self.config.ramp_steps, self.config.every)
        self.curves = {"critic": Linear(self.ramp_steps), "value": Linear(self.ramp_steps)}

    def _observe(self, signals: Mapping[str, Weights]) -> None:
        self.seen = dict(signals)
        self.rate = np.where(signals["td_online"] <= self.config.factor * signals["td_offline"], 1.0, 0.0)

    def signals(self) -> dict[str, Weights]:
        """The latest two errors per member; NaN before the first measurement."""
        return {f"td_gate/{name}": value.copy() for name, value in self.seen.items()}


@dataclass(frozen=True)
class GradientAgreementConfig:
    """Settings of gradient_agreement."""

    ramp_steps: float = 5000.0
    """N: steps from w = 0 to w = 1 while both objectives pull the same way."""
    decay: float = 0.9
    """Of the running cosine, per measurement."""
    every: float = 250.0
    """Steps between measurements."""

    def __post_init__(self) -> None:
        check_positive("gradient_agreement", ramp_steps=self.ramp_steps, every=self.every)
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"gradient_agreement: decay must be in [0, 1), got {self.decay}")


class GradientAgreement(MeasuredRamp):
    """w advances at a rate given by the cosine of the actor's two gradients.

        w += (1 + cos) / (2 N)    per step, cos a running mean

    Full speed where they agree, half where they are orthogonal, none where they are opposed. The projection of
    conflicting gradients (PCGrad) is a way to blend of its own, mode `projected`, and goes with any schedule.

    Source: ours.
    """

    def __init__(self, config: GradientAgreementConfig | None = None, *, members: int = 1) -> None:
        self.config = config or GradientAgreementConfig()
        needs = frozenset({"gradient_cosine"})
        super().__init__("gradient_agreement", needs, members, self.config.ramp_steps, self.config.every)

    def _observe(self, signals: Mapping[str, Weights]) -> None:
        old, new, decay = self.seen["gradient_cosine"], signals["gradient_cosine"], self.config.decay
        cosine = np.where(np.isnan(old), new, decay * old + (1 - decay) * new)
        self.seen["gradient_cosine"] = cosine
        self.rate = np.clip((1.0 + cosine) / 2.0, 0.0, 1.0)  # rounding may put a cosine beyond 1

    def signals(self) -> dict[str, Weights]:
        """The running cosine per member; NaN before the first measurement."""
        return {"gradient_agreement/cosine": self.seen["gradient_cosine"].copy()}
