"""What is mixed, how much, and when: the heart of the package."""

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
from o2o_smooth.smoothing.controller import OfflineShare, SmoothingController
from o2o_smooth.smoothing.gate import PerformanceGate, PerformanceGateConfig
from o2o_smooth.smoothing.joint import JointController
from o2o_smooth.smoothing.objective import COMPONENTS, Mix, Objective, Term, blend, effective_weight, raw_weight
from o2o_smooth.smoothing.rules import ADAPTIVE_NAMES, RuleSettings, make_rule, rule_name
from o2o_smooth.smoothing.schedules import (
    SCHEDULE_NAMES,
    Cosine,
    Exponential,
    Floor,
    Hold,
    Jump,
    Linear,
    Power,
    Schedule,
    Sigmoid,
    Stay,
    Steps,
    parse_schedule,
)
from o2o_smooth.smoothing.signals import SIGNALS, AdaptiveRule

__all__ = [
    "ADAPTIVE_NAMES",
    "COMPONENTS",
    "SCHEDULE_NAMES",
    "SIGNALS",
    "AdaptiveRule",
    "Cosine",
    "Exponential",
    "Floor",
    "GradientAgreement",
    "GradientAgreementConfig",
    "Hold",
    "JointController",
    "Jump",
    "KLGate",
    "KLGateConfig",
    "Linear",
    "Mix",
    "Objective",
    "OfflineShare",
    "PerformanceGate",
    "PerformanceGateConfig",
    "Power",
    "ReturnPD",
    "ReturnPDConfig",
    "RuleSettings",
    "Schedule",
    "Sigmoid",
    "SmoothingController",
    "Stay",
    "Steps",
    "TDGate",
    "TDGateConfig",
    "Term",
    "blend",
    "effective_weight",
    "make_rule",
    "parse_schedule",
    "raw_weight",
    "rule_name",
]
