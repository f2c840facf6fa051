"""The signals under the curve: weights and rules along environment steps, audits along updates since the switch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, ScalarFormatter

from o2o_smooth.stability.compared import Comparison
from o2o_smooth.stability.lettering import INK, LABEL_SIZE, headings
from o2o_smooth.stability.plots import FloatArray
from o2o_smooth.stability.sheet import arm_colours, dress, log_time, new_figure
from o2o_smooth.stability.signal_names import by_question, signal_title
from o2o_smooth.stability.signals import STEPS, SignalLines, mean_line

_FEW_ARMS = 3
_COLUMNS = 2
"""Actor and critic side by side."""
_WIDE = 100.0
"""A positive signal whose values span more than this factor gets a logarithmic axis."""


def signals_figure(
    comparison: Comparison,
    signals: Mapping[str, Mapping[str, SignalLines]],
    *,
    title: str,
    subtitle: str = "",
) -> Figure:
    """The mean curves and, under them on the same axis of time, a panel for each signal: a line an arm, mean of seeds.

    Args:
        comparison: Whose arms are drawn.
        signals: By name, then by arm, then by seed, along environment steps.
        title: The heading.
        subtitle: A line under it.

    Raises:
        ValueError: No signals.
    """
    curves = {c.arm.name: {one.seed: (one.env_steps, one.scores) for one in c.arm.curves} for c in comparison.columns}
    first = min(float(column.arm.curves[0].env_steps[1]) for column in comparison.columns)
    figure = _figure(comparison, curves, signals, (first, comparison.budget), "environment steps since the switch")
    headings(figure, title, subtitle)
    return figure


def audits_figure(
    comparison: Comparison,
    audits: Mapping[str, Mapping[str, SignalLines]],
    *,
    title: str,
    subtitle: str = "",
) -> Figure:
    """The same of what was audited, along updates since the switch, where the first ones are wide.

    Args:
        comparison: Whose arms are drawn.
        audits: By name, then by arm, then by seed, along updates; `STEPS` places the curves beside them.
        title: The heading.
        subtitle: A line under it.

    Raises:
        ValueError: No signals.
    """
    steps = audits.get(STEPS, {})
    curves = {
        c.arm.name: {
            one.seed: _along_updates(one.env_steps, one.scores, steps[c.arm.name][one.seed])
            for one in c.arm.curves
            if one.seed in steps.get(c.arm.name, {})
        }
        for c in comparison.columns
    }
    signals = {name: arms for name, arms in audits.items() if name != STEPS}
    last = max((x[-1] for arms in signals.values() for lines in arms.values() for x, _ in lines.values()), default=0.0)
    span = (1.0, max(float(last), 2.0))
    figure = _figure(comparison, curves, signals, span, "updates since the switch")
    headings(figure, title, subtitle)
    return figure


def _along_updates(
    env_steps: FloatArray, scores: FloatArray, known: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """A curve along updates: between audits by the environment steps of both; of several before the first, J0."""
    updates, steps = known
    place = {step: update for update, step in zip(updates, steps, strict=True)}  # of a step, the last update
    xs = np.array(sorted(place))
    found = np.interp(env_steps, xs, np.array([place[x] for x in xs]), left=0.0)
    found, kept = np.unique(found, return_index=True)
    return found, scores[kept]


def _figure(
    comparison: Comparison,
    curves: Mapping[str, SignalLines],
    signals: Mapping[str, Mapping[str, SignalLines]],
    span: tuple[float, float],
    along: str,
) -> Figure:
    """The curves and the signals, a block of panels for each question."""
    if not signals:
        raise ValueError("there is nothing to draw: no signals")
    groups = by_question(signals)
    columns = min(_COLUMNS, max(len(own) for own in groups.values()))
    rows = 1 + sum(math.ceil(len(own) / columns) for own in groups.values())
    figure = new_figure(height=1.7 + 1.05 * rows + 0.25 * len(groups))
    grid = figure.add_gridspec(rows, columns, height_ratios=[1.3, *[1.0] * (rows - 1)])
    colours = arm_colours(column.arm.name for column in comparison.columns)
    top = figure.add_subplot(grid[0, 0])
    lowest = {0: top}
    for column in range(columns):
        axes = top if column == 0 else figure.add_subplot(grid[0, column], sharex=top, sharey=top)
        _draw_curves(axes, curves, colours, "score" if comparison.unit == "score" else "return")
        lowest[column] = axes
    row = 1
    for question, own in groups.items():
        for i, (name, arms) in enumerate(own.items()):
            axes = figure.add_subplot(grid[row + i // columns, i % columns], sharex=top)
            _draw_signal(axes, signal_title(name), arms, colours)
            lowest[i % columns] = axes
            if i == 0:
                _ask(axes, question)
        row += math.ceil(len(own) / columns)
    for axes in figure.axes:
        axes.tick_params(labelbottom=False)
    for below in lowest.values():
        log_time(top, below, *span, 0.2)
        below.set_xlabel(along, fontsize=LABEL_SIZE - 1)
        below.tick_params(labelbottom=True)
    _legend(figure, {arm: look for arm, look in colours.items() if _drawn(arm, curves, signals.values())})
    return figure


def _drawn(arm: str, curves: Mapping[str, SignalLines], signals: Any) -> bool:
    return bool(curves.get(arm)) or any(arm in arms for arms in signals)


def _ask(axes: Axes, question: str) -> None:
    """The question of a block, above its first panel."""
    axes.annotate(
        question,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-22, 20),
        textcoords="offset points",
        fontsize=LABEL_SIZE + 1,
        fontweight="bold",
        color=INK,
        annotation_clip=False,
    )


def _draw_curves(
    axes: Axes, curves: Mapping[str, SignalLines], colours: Mapping[str, tuple[str, str]], title: str
) -> None:
    """The mean curve of each arm."""
    for arm, lines in curves.items():
        if lines:
            colour, style = colours[arm]
            axes.plot(*mean_line(lines), color=colour, ls=style, lw=1.8)
    _dress(axes, title)


def _draw_signal(
    axes: Axes, title: str, arms: Mapping[str, SignalLines], colours: Mapping[str, tuple[str, str]]
) -> None:
    """One signal: a thick line an arm for the mean; thin ones for seeds where there are few arms."""
    values: list[FloatArray] = []
    for arm, lines in arms.items():
        colour, style = colours[arm]
        for steps, seen in lines.values():
            if len(arms) <= _FEW_ARMS:
                axes.plot(steps, seen, color=colour, ls=style, lw=0.5, alpha=0.3, zorder=2)
            values.append(seen)
        axes.plot(*mean_line(lines), color=colour, ls=style, lw=1.6, zorder=3)
    _dress(axes, title)
    every = np.concatenate(values)
    if len(every) and every.min() > 0 and every.max() > _WIDE * every.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()


def _dress(axes: Axes, title: str) -> None:
    """Numbers as they are: an offset beside the axis is read by nobody."""
    dress(axes)
    axes.tick_params(labelsize=LABEL_SIZE - 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axes.yaxis.set_major_formatter(formatter)
    axes.set_title(title, fontsize=LABEL_SIZE, color=INK, loc="left", pad=3.0)


def _legend(figure: Figure, colours: Mapping[str, tuple[str, str]]) -> None:
    handles: Sequence[Line2D] = [
        Line2D([], [], color=colour, ls=style, lw=2.3, label=name) for name, (colour, style) in colours.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(4, len(handles))),
        frameon=False,
        fontsize=LABEL_SIZE,
        labelcolor=INK,
    )
