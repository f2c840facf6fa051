"""What happened at the switch: metrics, tables and pictures of plain curves. Imports neither torch nor our agents.

The pictures are in `o2o_smooth.stability.plots`, apart from this list so that the numbers need no matplotlib.
"""

from o2o_smooth.stability.metrics import StabilityMetrics, null_dip, null_dip_from_std, stability_metrics
from o2o_smooth.stability.report import (
    Curve,
    PretrainCurve,
    arm_table,
    read_curves,
    read_pretraining,
    render_table,
    rich_table,
)

__all__ = [
    "Curve",
    "PretrainCurve",
    "StabilityMetrics",
    "arm_table",
    "null_dip",
    "null_dip_from_std",
    "read_curves",
    "read_pretraining",
    "render_table",
    "rich_table",
    "stability_metrics",
]
