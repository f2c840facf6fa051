"""The picture of a score along a line between two policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from o2o_smooth.files import written_whole
from o2o_smooth.stability.lettering import GREY, INK, Label, amount, headings, label_right
from o2o_smooth.stability.path import interval
from o2o_smooth.stability.sheet import COLOURS, literal


@literal
def plot_path(shares: ArrayLike, scores: ArrayLike, path: Path, *, title: str, subtitle: str, unit: str) -> Path:
    """Draw a thin line a seed, a thick one for their mean with its 95 % interval, and the level of the lower end.

    Args:
        shares: (P,) from 0 to 1.
        scores: (P, S, E) as in `read_path`.
        path: Where the picture goes; it appears there whole or not at all.
        title: The heading.
        subtitle: Under it; broken into lines.
        unit: score or return.
    """
    at, values = np.asarray(shares, np.float64), np.asarray(scores, np.float64)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(7.6, 4.4), dpi=170, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    mean, half = values.mean(axis=(1, 2)), np.array([interval(point) for point in values])
    lower = float(min(mean[0], mean[-1]))
    axes.axhline(lower, color=INK, lw=0.9, ls=(0, (5, 3)), zorder=1.5)
    axes.fill_between(at, mean - half, mean + half, color=COLOURS[0], alpha=0.16, lw=0, zorder=1.6)
    for seed in range(values.shape[1]):
        axes.plot(at, values[:, seed].mean(axis=1), color=COLOURS[0], lw=0.8, alpha=0.4, zorder=2)
    axes.plot(at, mean, color=COLOURS[0], lw=2.3, marker="o", ms=4, mec="white", mew=0.6, zorder=3, clip_on=False)
    axes.set_xlim(0, 1)
    axes.margins(y=0.08)
    axes.set_xlabel("share of the second policy's parameters  (0: first checkpoint, 1: second)")
    axes.set_ylabel("score  (0 random, 100 reference)" if unit == "score" else "return of an episode")
    axes.grid(axis="y", color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    label_right(axes, [Label(lower, f"lower end  {amount(lower)}", INK, bold=False)])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, length=3, color=GREY, labelsize=9)
    headings(figure, title, subtitle)
    with written_whole(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".").lower() or "png")
    return Path(path)
