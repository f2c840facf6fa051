"""Pictures beside the curves: intervals around them, and how dips and recoveries are distributed over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from o2o_smooth.stability.compared import Column, Comparison
from o2o_smooth.stability.lettering import GREY, LABEL_SIZE, headings
from o2o_smooth.stability.plots import Bands
from o2o_smooth.stability.sheet import FAINT, PAPER, arm_colours, dress, log_time, new_figure
from o2o_smooth.stability.statistics import interval


def bands(comparison: Comparison) -> Bands:
    """By arm, the interval of the mean at every evaluation; none for a single seed."""
    found = {}
    for column in comparison.columns:
        curves = column.arm.curves
        if len(curves) < 2:
            continue
        steps = np.unique(np.concatenate([curve.env_steps for curve in curves]))
        steps = steps[steps <= min(float(curve.env_steps[-1]) for curve in curves)]
        values = np.array([np.interp(steps, curve.env_steps, curve.scores) for curve in curves])
        ends = [interval(v, method=comparison.method, confidence=comparison.confidence) for v in values.T]
        low, high = (np.array([getattr(one, end) for one in ends]) for end in ("low", "high"))
        bounded = np.isfinite(low) & np.isfinite(high)
        found[column.arm.name] = (steps, np.where(bounded, low, np.nan), np.where(bounded, high, np.nan))
    return found


def spread_figure(comparison: Comparison, *, title: str, subtitle: str = "") -> Figure:
    """A dot a seed: dip depth, dip area and recovery, with each arm's mean, its interval and its null dip."""
    columns = comparison.columns
    figure = new_figure(height=1.9 + 0.36 * len(columns))
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[1.25, 1, 1.25])
    colours = arm_colours(column.arm.name for column in columns)
    for axes, key in ((left, "dip_depth"), (middle, "dip_area")):
        for at, column in enumerate(columns):
            _draw_spread(axes, at, column, key, colours[column.arm.name][0])
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    unit = "points" if comparison.unit == "score" else "return"
    left.set_xlabel(f"dip depth, {unit}")
    middle.set_xlabel(f"dip area, {unit} a step")
    _draw_recovery(right, comparison, colours)
    left.set_yticks(range(len(columns)), [column.arm.name for column in columns])
    left.set_ylim(len(columns) - 0.4, -0.6)
    for axes in (left, middle, right):
        dress(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT, lw=0.7)
        axes.xaxis.label.set_size(LABEL_SIZE)
        axes.tick_params(axis="y", length=0)
    for label, column in zip(left.get_yticklabels(), columns, strict=True):
        label.set_color(colours[column.arm.name][0])
        label.set_fontweight("bold")
    headings(figure, title, subtitle)
    return figure


def _draw_spread(axes: Axes, at: int, column: Column, key: str, colour: str) -> None:
    """One arm's seeds, their mean and its interval; and the null dip where dips are drawn."""
    values = [float(row.values()[key]) for row in column.rows]
    offsets = at + 0.16 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.array([at])
    axes.plot(values, offsets, ls="", marker="o", ms=4, color=colour, alpha=0.55, mew=0)
    mean = column.means[key]
    if mean is not None:
        if math.isfinite(mean.low) and math.isfinite(mean.high) and mean.n > 1:
            axes.plot([mean.low, mean.high], [at, at], color=colour, lw=2.0, solid_capstyle="round", zorder=3)
        axes.plot([mean.mean], [at], ls="", marker="D", ms=6, color=colour, mec=PAPER, mew=0.8, zorder=4)
    if key == "dip_depth" and column.outcome.null_dip is not None:
        null = column.outcome.null_dip
        axes.plot([null, null], [at - 0.3, at + 0.3], color=GREY, lw=1.4, zorder=2)


def _draw_recovery(axes: Axes, comparison: Comparison, colours: Mapping[str, tuple[str, str]]) -> None:
    """When each seed came back; on the right border those that were never seen to, hollow those that lost nothing."""
    first = min(float(column.arm.curves[0].env_steps[1]) for column in comparison.columns)
    for at, column in enumerate(comparison.columns):
        colour = colours[column.arm.name][0]
        offsets = at + 0.2 * np.linspace(-1, 1, len(column.rows)) if len(column.rows) > 1 else np.array([at])
        for y, row in zip(offsets, column.rows, strict=True):
            back = row.measured.metrics.recovery_steps
            look = {"ls": "", "color": colour, "ms": 5.0, "clip_on": False, "zorder": 3, "mew": 1.0}
            if back is None:
                axes.plot([comparison.budget], [y], marker=">", **look)  # type: ignore[arg-type]
            elif back == 0:
                axes.plot([0.0], [y], marker="o", mfc=PAPER, **look)  # type: ignore[arg-type]
            else:
                axes.plot([back], [y], marker="o", **look)  # type: ignore[arg-type]
    log_time(axes, axes, first, comparison.budget, 0.2)
    axes.set_xlabel("back after, env steps (>: never)")
