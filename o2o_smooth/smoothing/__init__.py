"""What is mixed, how much, and when: the heart of the package."""

from o2o_smooth.smoothing.adaptive import AdaptiveRule, PerformanceGate, PerformanceGateConfig
from o2o_smooth.smoothing.controller import OfflineShare, SmoothingController
from o2o_smooth.smoothing.joint import JointController
from o2o_smooth.smoothing.objective import COMPONENTS, Mix, Objective, Term, blend, effective_weight, raw_weight
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

__all__ = [
    "COMPONENTS",
    "SCHEDULE_NAMES",
    "AdaptiveRule",
    "Cosine",
    "Exponential",
    "Floor",
    "Hold",
    "JointController",
    "Jump",
    "Linear",
    "Mix",
    "Objective",
    "OfflineShare",
    "PerformanceGate",
    "PerformanceGateConfig",
    "Power",
    "Schedule",
    "Sigmoid",
    "SmoothingController",
    "Stay",
    "Steps",
    "Term",
    "blend",
    "effective_weight",
    "parse_schedule",
    "raw_weight",
]
