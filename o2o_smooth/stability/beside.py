"""Curves that others measured, behind ours: grey, thin, and named after their source."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from o2o_smooth.stability.lettering import GREY, INK, Label, amount

FloatArray = NDArray[np.float64]

_BAND = "#BDBDBD"
_DASHES = (0, (4, 1.5))
_LONGEST = 26  # letters of a source's name beside its line
_LETTERS = 22  # of a line of the key, in a narrow panel


@dataclass(frozen=True, eq=False)
class ReferenceCurve:
    """Published runs of one agent."""

    name: str
    """The source."""
    x: FloatArray
    """(N,) updates before the switch, or environment steps after it, rising."""
    scores: FloatArray
    """(runs, N), in the unit of the picture."""

    def until(self, last: float) -> ReferenceCurve:
        """What lies within an axis."""
        keep = self.x <= last
        return ReferenceCurve(self.name, self.x[keep], self.scores[:, keep])


def draw_behind(axes: Axes, curves: Sequence[ReferenceCurve], last: float) -> list[Label]:
    """Draw mean and range of each, as far as the axis goes; returns the names for its right border."""
    labels = []
    for curve in (one.until(last) for one in curves):
        if not len(curve.x):
            continue
        mean = curve.scores.mean(axis=0)
        if len(curve.scores) > 1:
            axes.fill_between(
                curve.x, curve.scores.min(0), curve.scores.max(0), color=_BAND, alpha=0.45, lw=0, zorder=1
            )
        axes.plot(curve.x, mean, color=GREY, ls=_DASHES, lw=1.1, marker="o", ms=2.0, zorder=1.7, label="_published")
        runs = len(curve.scores)
        name = textwrap.shorten(curve.name, _LONGEST, placeholder="...")
        words = f"{name} ({runs} run{'s' if runs > 1 else ''})  {amount(float(mean[-1]))}"
        labels.append(Label(float(mean[-1]), words, GREY, bold=False))
    return labels


def key(axes: Axes, curves: Sequence[ReferenceCurve], seeds: int) -> None:
    """Say in a narrow panel which line is whose."""
    handles = [Line2D([], [], color=INK, lw=2.3, label=f"ours (mean of {seeds})")]
    for curve in curves:
        runs = len(curve.scores)
        shown = "one run" if runs == 1 else f"mean and range of {runs}"
        words = textwrap.fill(f"{curve.name} ({shown})", _LETTERS)
        handles.append(Line2D([], [], color=GREY, ls=_DASHES, lw=1.1, marker="o", ms=2.0, label=words))
    axes.legend(handles=handles, loc="best", frameon=False, fontsize=6.8, handlelength=1.4, labelcolor="linecolor")
