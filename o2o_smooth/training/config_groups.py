"""Groups of settings of a run: how objectives are smoothed, and when the policy is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing import OfflineShare, RuleSettings, SmoothingController, make_rule, parse_schedule

Regime = Literal["retain", "mixed", "discard"]
REGIME_SHARE: dict[str, float] = {"retain": 0.0, "mixed": 0.5, "discard": 0.0}


@dataclass(frozen=True)
class SmoothingConfig:
    """How the offline objective gives way to the online one after the switch."""

    schedule: str = "linear"
    """Weight of the online objective over time: jump | stay | linear | cosine | exponential | sigmoid | power | steps,
    each with its own length (linear:5000) or --ramp-steps, with modifiers in front (hold:1000+linear,
    floor:0.2+linear). Or a rule that moves on signals: performance_gate, which advances while the return holds and
    retreats when it does not; return_pd, kl_gate, td_gate, gradient_agreement."""
    ramp_steps: int = 5000
    """Length of the ramp, in --ramp-unit."""
    ramp_unit: Literal["env_steps", "updates"] = "env_steps"
    """What the ramp counts, per seed."""
    actor_schedule: str | None = None
    """The actor's own curve; default: --schedule."""
    critic_schedule: str | None = None
    """The critics' own curve; V follows it unless it has its own."""
    value_schedule: str | None = None
    """V's own curve (IQL)."""
    temperature_schedule: str | None = None
    """The temperature's own curve."""
    weight_in: Literal["raw", "effective"] = "raw"
    """raw: the curve is the weight w. effective: the curve is the share of the online gradient in the step."""
    mode: Literal["loss", "target", "matched", "projected"] = "loss"
    """loss: blend the losses. target: blend the TD targets. matched: bring both gradients to one norm first. projected:
    take from each gradient what conflicts with the other first (PCGrad)."""
    regime: Regime = "retain"
    """retain: offline loss on offline rows, online loss on online rows. mixed: both on one batch of both kinds of rows.
    discard: the offline rows are gone at the switch."""
    offline_fraction: float | None = None
    """Share of offline rows in the online objective's batch; default: 0.5 with mixed, otherwise 0."""
    offline_fraction_end: float | None = None
    """Where that share is annealed to; default: it stays."""
    offline_fraction_schedule: str = "linear"
    """The curve along which the share is annealed."""

    def __post_init__(self) -> None:
        if self.ramp_steps < 1:
            raise ConfigError(f"ramp_steps must be at least 1, got {self.ramp_steps}")
        if self.regime not in REGIME_SHARE:
            raise ConfigError(f"regime must be one of {', '.join(REGIME_SHARE)}, got '{self.regime}'")
        for name in ("offline_fraction", "offline_fraction_end"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must lie in [0, 1], got {value}")
        share = REGIME_SHARE[self.regime] if self.offline_fraction is None else self.offline_fraction
        if self.regime == "discard" and (share or self.offline_fraction_end):
            raise ConfigError("regime discard has no offline rows: offline_fraction must be 0 (or choose regime mixed)")
        if self.offline_fraction_end is None and self.offline_fraction_schedule != "linear":
            raise ConfigError("offline_fraction_schedule has no effect without offline_fraction_end")
        # Every text must be readable now, not at the switch; whether the task has references is asked once it is known.
        self.controller(members=1, random_return=0.0, reference_return=1.0)

    def controller(
        self,
        *,
        members: int,
        lanes: int = 1,
        random_return: float | None = None,
        reference_return: float | None = None,
        rules: RuleSettings | None = None,
    ) -> SmoothingController:
        """The controller these settings describe, for `members` with `lanes` parallel environments each.

        Raises:
            ConfigError: A schedule that cannot be read, or a rule that needs returns the task does not have.
        """
        share = REGIME_SHARE[self.regime] if self.offline_fraction is None else self.offline_fraction
        overrides = {
            name: text
            for name in ("actor", "critic", "value", "temperature")
            if (text := getattr(self, f"{name}_schedule")) is not None
        }
        try:
            return SmoothingController(
                make_rule(
                    self.schedule,
                    self.ramp_steps,
                    members=members,
                    lanes=lanes,
                    random_return=random_return,
                    reference_return=reference_return,
                    settings=rules,
                ),
                ramp_steps=self.ramp_steps,
                overrides=overrides,
                offline_share=OfflineShare(
                    share, self.offline_fraction_end, parse_schedule(self.offline_fraction_schedule, self.ramp_steps)
                ),
                members=members,
                unit=self.ramp_unit,
                weight_in=self.weight_in,
                mode=self.mode,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class EvaluationConfig:
    """When and how the policy is evaluated, on environments and seeds of its own."""

    eval_episodes: int = 20
    """Episodes per evaluation and seed."""
    switch_episodes: int = 40
    """Episodes of the evaluation at the switch (J0), which everything is compared with."""
    eval_envs: int = 10
    """Parallel evaluation environments per seed; each runs the same number of episodes."""
    eval_every: int | None = None
    """Online steps per seed between evaluations, after the dense first ones (250, 500, 1000, ...); default: a
    twentieth of --online-steps."""
    offline_eval_every: int | None = None
    """Offline updates between evaluations; default: a quarter of --offline-updates; 0: only at the switch."""

    def __post_init__(self) -> None:
        for name in ("eval_episodes", "switch_episodes", "eval_envs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_every is not None and self.eval_every < 1:
            raise ConfigError(f"eval_every must be at least 1, got {self.eval_every}")
        if self.offline_eval_every is not None and self.offline_eval_every < 0:
            raise ConfigError(f"offline_eval_every must not be negative, got {self.offline_eval_every}")

    def online_steps(self, budget: int) -> list[int]:
        """Evaluation points after the switch: log-spaced from 250, then regular, and the end of the budget."""
        every = self.eval_every or max(1, budget // 20)
        points = {budget, *range(every, budget + 1, every)}
        step = 250
        while step < min(every, budget):
            points.add(step)
            step *= 2
        return sorted(points)
