"""What happened at the switch: metrics, tables and pictures of plain curves. Imports neither torch nor our agents.

The pictures are in `o2o_smooth.stability.plots`, apart from this list so that the numbers need no matplotlib.
"""

from o2o_smooth.stability.metrics import (
    StabilityMetrics,
    null_area_from_std,
    null_dip,
    null_dip_from_std,
    stability_metrics,
)
from o2o_smooth.stability.report import (
    Curve,
    PretrainCurve,
    arm_table,
    read_curves,
    read_pretraining,
    render_table,
    rich_table,
)
from o2o_smooth.stability.statistics import (
    Interval,
    PairedDifference,
    improvement_interval,
    interval,
    iqm,
    optimality_gap,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

__all__ = [
    "Curve",
    "Interval",
    "PairedDifference",
    "PretrainCurve",
    "StabilityMetrics",
    "arm_table",
    "improvement_interval",
    "interval",
    "iqm",
    "null_area_from_std",
    "null_dip",
    "null_dip_from_std",
    "optimality_gap",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "read_curves",
    "read_pretraining",
    "render_table",
    "rich_table",
    "stability_metrics",
    "stratified_bootstrap",
]
