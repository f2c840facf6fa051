"""Settings of the adaptive rules, by the name of the rule in --schedule; the ramp's length is --ramp-steps."""

from __future__ import annotations

from dataclasses import dataclass

from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing import (
    GradientAgreementConfig,
    KLGateConfig,
    PerformanceGateConfig,
    ReturnPDConfig,
    RuleSettings,
    TDGateConfig,
)


@dataclass(frozen=True)
class AdaptiveConfig:
    """Settings of rules that move the weight on signals; each matters with its rule alone, and none has to be set."""

    signal_every: float = 250.0
    """kl_gate, td_gate, gradient_agreement: steps between measurements, in --ramp-unit."""
    gate_share: float = 0.85
    """performance_gate: a drop is tolerated while this share of the return at the switch is left, measured from the
    random policy's return where known."""
    gate_retreat: float = 2.0
    """performance_gate: speed of retreat relative to advance; 0 holds instead."""
    gate_confidence: float = 0.975
    """performance_gate: of the bound that must lie below the return at the switch before the weight retreats."""
    gate_window: int = 8
    """performance_gate: episodes in the running return."""
    gate_yardstick: int = 32
    """performance_gate: most episodes at weight 0 that define the return at the switch; fewer where they agree (4 at
    least) or half a ramp has passed (8 at least)."""
    gate_ramp_episodes: int = 20
    """performance_gate: a ramp takes at least so many episodes, however short it is in steps."""
    pd_kp: float = 3e-5
    """return_pd: gain per step on the distance of the mean return from --pd-target."""
    pd_kd: float = 1e-4
    """return_pd: gain per step on an episode's loss against the mean return."""
    pd_target: float = 1.05
    """return_pd: return to reach; 0 is the random policy, 1 the reference policy."""
    pd_start: float = 0.4
    """return_pd: coefficient of the offline objective at the switch; the weight is 1 - coefficient / this."""
    kl_limit: float = 1.0
    """kl_gate: largest KL divergence from the policy at the switch, nats per action dimension."""
    kl_retreat: float = 2.0
    """kl_gate: fastest retreat relative to advance; 0 holds instead."""
    td_factor: float = 2.0
    """td_gate: open while the TD error on fresh online rows is at most this multiple of that on offline rows."""
    agreement_decay: float = 0.9
    """gradient_agreement: of the running cosine, per measurement."""

    def __post_init__(self) -> None:
        self.rules()  # every number must be in range now, not at the switch

    def rules(self) -> RuleSettings:
        """The settings as the rules take them.

        Raises:
            ConfigError: A number out of range.
        """
        try:
            return RuleSettings(
                PerformanceGateConfig(
                    share=self.gate_share,
                    retreat=self.gate_retreat,
                    confidence=self.gate_confidence,
                    window=self.gate_window,
                    yardstick=self.gate_yardstick,
                    ramp_episodes=self.gate_ramp_episodes,
                ),
                ReturnPDConfig(kp=self.pd_kp, kd=self.pd_kd, target=self.pd_target, start=self.pd_start),
                KLGateConfig(limit=self.kl_limit, retreat=self.kl_retreat, every=self.signal_every),
                TDGateConfig(factor=self.td_factor, every=self.signal_every),
                GradientAgreementConfig(decay=self.agreement_decay, every=self.signal_every),
            )
        except ValueError as error:
            rule, _, text = str(error).partition(": ")
            raise ConfigError(f"{_FLAGS[rule]}{text}" if not text.startswith("every") else f"signal_{text}") from None


_FLAGS = {
    "performance_gate": "gate_",
    "return_pd": "pd_",
    "kl_gate": "kl_",
    "td_gate": "td_",
    "gradient_agreement": "agreement_",
}
