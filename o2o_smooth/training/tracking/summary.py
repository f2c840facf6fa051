"""How the switch went, in one row a seed, for the sinks when a run ends; computed from the run's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.stability.curves import Curve, read_curves
from o2o_smooth.stability.report import measure

FIELDS = (
    "j0",
    "dip_depth",
    "dip_area",
    "dip_time",
    "recovery_steps",
    "late_collapse",
    "final",
    "auc",
    "regret",
    "null_dip",
)
"""What every run's summary holds, as in `StabilityMetrics`; scores in the run's unit, times in environment steps."""


def stability_rows(run_dir: Path, updates: int) -> list[dict[str, Any]]:
    """A row a seed of kind "summary": `FIELDS`, `recovered` (0 or 1) and `budget`, the steps that were seen.

    None stands for what has no number: `recovery_steps` of a seed that did not recover within the budget, `regret` of
    returns, `null_dip` where the spread of the episodes is not known, all of them where the curve holds NaN. There are
    no rows before the first evaluation after the switch.

    Args:
        run_dir: The run's folder.
        updates: Updates so far.

    Raises:
        O2OError: The run's evaluations cannot be read.
    """
    curves = [curve for curve in read_curves(run_dir) if len(curve.env_steps) > 1]
    budget = max((int(curve.env_steps[-1]) for curve in curves), default=0)
    return [
        {"phase": "online", "env_steps": budget, "updates": updates, "seed": curve.seed, **_measure(curve)}
        for curve in curves
    ]


def _measure(curve: Curve) -> dict[str, Any]:
    """The metrics of one seed, as the report has them."""
    if not np.isfinite(curve.scores).all():
        return dict.fromkeys((*FIELDS, "recovered", "budget"))
    found = measure(curve)
    values = {name: getattr(found.metrics, name) for name in FIELDS if name != "null_dip"}
    if curve.unit == "return":
        values["regret"] = None
    return {
        **values,
        "null_dip": found.null_dip,
        "recovered": float(found.metrics.recovery_steps is not None),
        "budget": float(curve.env_steps[-1]),
    }
