"""The sheet that pictures are drawn on: its size, its colours, its axis of time, and how it is saved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from o2o_smooth.files import written_whole
from o2o_smooth.stability.lettering import INK, count, ticks

P = ParamSpec("P")
R = TypeVar("R")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart with every common colour blindness; after seven arms the line style changes."""

STYLES = ("-", "--", ":")
FAINT, AXIS, PAPER = "#E6E6E6", "#B0B0B0", "#FFFFFF"


def literal(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw texts as they are: a name with two dollar signs in it is a name, not a formula."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


def new_figure(*, height: float) -> Figure:
    """An empty sheet with room kept by the layout engine, so that nothing overlaps."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.02, wspace=0.0)
    figure = Figure(figsize=(7.6, height), dpi=170, layout=layout, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def arm_colours(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a line style by arm."""
    return {arm: (COLOURS[i % 7], STYLES[i // 7 % 3]) for i, arm in enumerate(arms)}


def log_time(axes: Axes, below: Axes, first: float, last: float, fraction: float, *, title: bool = True) -> None:
    """Time as log(1 + t / first): the first steps, where a jump falls, are as wide as the rest.

    Args:
        axes: What is to have it; `below` may share it.
        below: The lowest of the panels, which has the ticks.
        first: The first evaluation after the switch.
        last: The end of the axis.
        fraction: Of the axis, how far ticks are apart at least.
        title: Write what the axis is.
    """
    axes.set_xscale(
        "function",
        functions=(
            lambda t: np.log1p(np.maximum(np.asarray(t) / first, -0.99)),
            lambda u: np.expm1(np.asarray(u)) * first,
        ),
    )
    axes.set_xlim(-0.06 * first, last)
    below.xaxis.set_major_locator(FixedLocator(ticks(first, last, fraction)))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    if title:
        below.set_xlabel("environment steps since the switch")


def dress(axes: Axes) -> None:
    """Light grid, no box."""
    axes.set_facecolor(PAPER)
    axes.grid(axis="y", color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(AXIS)
    axes.tick_params(colors=INK, length=3, color=AXIS, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def save(figure: Figure, path: Path) -> Path:
    """Write the picture beside its place and move it there."""
    path = Path(path)
    with written_whole(path) as temporary, matplotlib.rc_context({"text.parse_math": False}):
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png")
    return path
