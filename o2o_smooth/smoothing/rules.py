"""Every adaptive rule by its name, and the text form of curves and rules alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from o2o_smooth.smoothing.adaptive import (
    GradientAgreement,
    GradientAgreementConfig,
    KLGate,
    KLGateConfig,
    ReturnPD,
    ReturnPDConfig,
    TDGate,
    TDGateConfig,
)
from o2o_smooth.smoothing.gate import PerformanceGate, PerformanceGateConfig
from o2o_smooth.smoothing.schedules import Schedule, parse_schedule
from o2o_smooth.smoothing.signals import AdaptiveRule

ADAPTIVE_NAMES = ("performance_gate", "return_pd", "kl_gate", "td_gate", "gradient_agreement")
RETURN_RULES = ("performance_gate", "return_pd")  # that live on the returns of collected episodes


@dataclass(frozen=True)
class RuleSettings:
    """Further settings of all rules; ramp lengths are replaced by those asked for."""

    gate: PerformanceGateConfig = field(default_factory=PerformanceGateConfig)
    pd: ReturnPDConfig = field(default_factory=ReturnPDConfig)
    kl: KLGateConfig = field(default_factory=KLGateConfig)
    td: TDGateConfig = field(default_factory=TDGateConfig)
    agreement: GradientAgreementConfig = field(default_factory=GradientAgreementConfig)


def rule_name(text: str) -> str | None:
    """Which adaptive rule a text means; None for a curve."""
    name = text.partition(":")[0].strip()
    return name if name in ADAPTIVE_NAMES else None


def make_rule(
    text: str,
    ramp_steps: float | None = None,
    *,
    members: int = 1,
    lanes: int = 1,
    random_return: float | None = None,
    reference_return: float | None = None,
    settings: RuleSettings | None = None,
) -> Schedule | AdaptiveRule:
    """Read a curve or an adaptive rule from its text form: `linear:5000`, `performance_gate:5000`, `return_pd`.

    Args:
        text: See `parse_schedule`, or a name in `ADAPTIVE_NAMES`, with `:STEPS` except for return_pd.
        ramp_steps: Length for a text without one.
        members: M.
        lanes: Parallel environments per member.
        random_return: Return of a random policy, where known.
        reference_return: Return of the reference policy, where known.
        settings: Further settings of the rules.

    Raises:
        ValueError: The text cannot be read, or the rule needs returns that are not known.
    """
    name = rule_name(text)
    if name is None:
        try:
            return parse_schedule(text, ramp_steps)
        except ValueError as error:
            if "there is no curve" in str(error):
                rules = ", ".join(n if n == "return_pd" else f"{n}:STEPS" for n in ADAPTIVE_NAMES)
                raise ValueError(f"{error}; adaptive: {rules}") from None
            raise
    settings = settings or RuleSettings()
    if name == "return_pd":
        if ":" in text:
            raise ValueError(f"schedule '{text}': return_pd takes no length; its gains set the pace")
        return ReturnPD(settings.pd, members=members, random_return=random_return, reference_return=reference_return)
    steps = _length(text, name, ramp_steps)
    if name == "performance_gate":
        gate = replace(settings.gate, ramp_steps=steps)
        return PerformanceGate(gate, members=members, lanes=lanes, random_return=random_return)
    make, config = _MEASURED[name](settings)
    rule: AdaptiveRule = make(replace(config, ramp_steps=steps), members=members)
    return rule


_MEASURED: dict[str, Callable[[RuleSettings], tuple[Callable[..., Any], Any]]] = {
    "kl_gate": lambda s: (KLGate, s.kl),
    "td_gate": lambda s: (TDGate, s.td),
    "gradient_agreement": lambda s: (GradientAgreement, s.agreement),
}


def _length(text: str, name: str, ramp_steps: float | None) -> float:
    _, colon, number = text.partition(":")
    if colon:
        try:
            return float(number)
        except ValueError:
            raise ValueError(f"schedule '{text}': '{number}' is not a number") from None
    if ramp_steps is None:
        raise ValueError(f"schedule '{text}': how long? write {name}:STEPS or give the ramp length")
    return float(ramp_steps)
