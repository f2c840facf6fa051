"""Pictures of a study: curves, profiles, dips against final scores, leaderboards.

Many tasks, agents and arms are spread over files, so that each can be read at the width of a page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from o2o_smooth.benchmarks.results_across import Across
from o2o_smooth.benchmarks.results_beside import Beside
from o2o_smooth.benchmarks.results_boards import Board, GroupResult, Line
from o2o_smooth.stability.compared import Comparison
from o2o_smooth.stability.lettering import GREY, INK, LABEL_SIZE, headings
from o2o_smooth.stability.panels import bands, spread_figure
from o2o_smooth.stability.plots import switch_figure
from o2o_smooth.stability.report_files import ramp_end
from o2o_smooth.stability.sheet import FAINT, PAPER, arm_colours, dress, literal, log_time, new_figure, save
from o2o_smooth.stability.statistics import performance_profile
from o2o_smooth.training.pictures import describe_arms

PANELS = 9
"""Panels of one file of curves, in three columns."""

_COLUMNS = 3
_LEGEND_LINE = 0.21  # inches
_FROM_ZERO = ("dip_depth", "dip_area", "recovery", "late_collapse")  # never negative
Colours = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A picture that was written."""

    path: Path
    """Where."""
    caption: str
    """What it shows."""
    kind: str
    """`overview`, `curves`, `dips`, `board`, `profile` or `scatter`."""
    about: str
    """The label of its group, or agent and provenance over tasks; empty for all."""


def file_name(*parts: str) -> str:
    """Names as a file name: letters, digits, points and dashes."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") or "x" for part in parts)


@literal
def draw_all(
    results: Sequence[GroupResult],
    across: Sequence[Across],
    folder: Path,
    beside: Mapping[str, Beside] | None = None,
) -> list[Picture]:
    """Draw everything into a folder.

    Args:
        results: What can be compared.
        across: Over tasks.
        folder: Where the pictures go.
        beside: By the label of a group, the published curves that may stand behind ours.

    Raises:
        O2OError: The folder cannot be written.
    """
    colours = arm_colours(dict.fromkeys(c.arm.name for result in results for c in result.comparison.columns))
    drawn: list[Picture] = []
    taken: set[str] = set()

    def put(figure: Figure, kind: str, about: str, caption: str, *parts: str) -> None:
        stem = name = file_name(kind, *parts)
        while name.lower() in taken:
            name = f"{stem}-{len(taken)}"
        taken.add(name.lower())
        drawn.append(Picture(save(figure, folder / f"{name}.png"), caption, kind, about))

    if len(results) > 1:
        for k, part in enumerate(batches(results, PANELS)):
            put(
                overview_figure(part, colours),
                "overview",
                "",
                "Mean curves of every task and agent from the switch on (logarithmic time), with their intervals.",
                str(k + 1),
            )
    for one in across:
        words = f"{one.agent}, {len(one.tasks)} tasks, {one.provenance} data"
        parts = (one.agent, one.provenance)
        put(
            board_figure(one.boards, colours, title=f"{one.agent} over {len(one.tasks)} tasks", iqm=True),
            "board",
            f"{one.agent}, {one.provenance}",
            f"Leaderboards over tasks ({words}): interquartile means with 95 % stratified bootstraps.",
            *parts,
        )
        put(
            profile_figure(one, colours),
            "profile",
            f"{one.agent}, {one.provenance}",
            f"Share of runs whose final score exceeds a threshold ({words}), with intervals at each threshold.",
            *parts,
        )
    for k, part in enumerate(batches(results, PANELS)):
        put(
            scatter_figure(part, colours),
            "scatter",
            "",
            "Dip against final score, an arm a mark, means with their intervals: best is top left.",
            str(k + 1),
        )
    for result in results:
        label, comparison = result.group.label, result.comparison
        parts = (result.group.task, result.group.agent)
        theirs = (beside or {}).get(label, Beside())
        put(
            curves_figure(result, theirs), "curves", label, f"{label}: curves from the switch on.{theirs.words}", *parts
        )
        subtitle = _subtitle(comparison)
        title = f"{label}: dips and recoveries"
        figure = spread_figure(comparison, title=title, subtitle=subtitle)
        put(figure, "dips", label, f"{label}: a dot a seed; the grey mark is the null dip.", *parts)
        if len(comparison.columns) > 1:
            title = f"{label}: leaderboards"
            figure = board_figure(result.boards, colours, title=title, iqm=False)
            put(figure, "board", label, f"{label}: means over seeds with their intervals.", *parts)
    return drawn


def batches(results: Sequence[GroupResult], size: int) -> Iterator[Sequence[GroupResult]]:
    """The results in parts of about one size, none larger."""
    count = math.ceil(len(results) / size)
    each = math.ceil(len(results) / count) if count else 1
    for start in range(0, len(results), each):
        yield results[start : start + each]


def curves_figure(result: GroupResult, beside: Beside | None = None) -> Figure:
    """All curves of one task and agent around the switch, as the report draws them, with published ones behind."""
    theirs = beside or Beside()
    comparison = result.comparison
    return switch_figure(
        {column.arm.name: column.arm.curves for column in comparison.columns},
        title=result.group.label,
        subtitle=_subtitle(comparison),
        unit=comparison.unit,
        ramp_end=ramp_end(comparison),
        bands=dict(bands(comparison)),
        pretraining=theirs.pretraining,
        published=theirs.after,
        published_before=theirs.before,
    )


def _subtitle(comparison: Comparison) -> str:
    arms = {column.arm.name: column.arm.curves for column in comparison.columns}
    return f"{describe_arms(arms)}; {comparison.budget:,.0f} online steps"


def overview_figure(results: Sequence[GroupResult], colours: Colours) -> Figure:
    """Small mean curves side by side, a panel a task and agent."""
    figure, panels = _grid(len(results), 2.0, colours, _shown(results), "Every task and agent from the switch on")
    for axes, result in zip(panels, results, strict=True):
        comparison = result.comparison
        found = bands(comparison)
        first = min(float(c.arm.curves[0].env_steps[1]) for c in comparison.columns)
        for column in comparison.columns:
            colour, style = colours[column.arm.name]
            steps = column.arm.curves[0].env_steps
            steps = steps[steps <= comparison.budget]
            mean = np.mean([np.interp(steps, c.env_steps, c.scores) for c in column.arm.curves], axis=0)
            axes.plot(steps, mean, color=colour, ls=style, lw=1.5, solid_capstyle="round")
            if column.arm.name in found:
                x, low, high = found[column.arm.name]
                axes.fill_between(x, low, high, color=colour, alpha=0.1, lw=0)
        j0 = float(np.mean([curve.scores[0] for c in comparison.columns for curve in c.arm.curves]))
        axes.axhline(j0, color=INK, lw=0.8, ls=(0, (5, 3)), zorder=1.5)
        log_time(axes, axes, first, comparison.budget, 0.3, title=False)
        _panel(axes, result)
        if comparison.unit == "score":
            axes.set_ylim(bottom=min(axes.get_ylim()[0], -3.0))
    figure.supxlabel("environment steps since the switch (dashed: the score at the switch)", size=LABEL_SIZE, color=INK)
    figure.supylabel("score", size=LABEL_SIZE, color=INK)
    return figure


def scatter_figure(results: Sequence[GroupResult], colours: Colours) -> Figure:
    """The dip against the final score, a panel a task and agent."""
    height = 2.3 if len(results) > 1 else 3.4
    figure, panels = _grid(len(results), height, colours, _shown(results), "What an arm loses, and where it ends")
    for axes, result in zip(panels, results, strict=True):
        for column in result.comparison.columns:
            dip, final = column.means["dip_depth"], column.means["final"]
            if dip is None or final is None:
                continue
            colour, _ = colours[column.arm.name]
            for one, other, across in ((dip, final, True), (final, dip, False)):
                if one.n > 1 and math.isfinite(one.low) and math.isfinite(one.high):
                    x, y = (
                        ([one.low, one.high], [other.mean] * 2) if across else ([other.mean] * 2, [one.low, one.high])
                    )
                    axes.plot(x, y, color=colour, lw=1.1, alpha=0.7, zorder=2)
            marker = "s" if column.arm.control else "o"
            face = PAPER if column.arm.role == "twin" else colour
            axes.plot([dip.mean], [final.mean], ls="", marker=marker, ms=6, color=colour, mfc=face, mew=1.0, zorder=3)
        null = result.comparison.baseline.outcome.null_dip
        if null is not None:
            axes.axvline(null, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1.5)
        low, right = axes.get_xlim()
        right = max(right, 1.0)  # where nobody has lost anything
        axes.set_xlim(min(low, -0.03 * right), right)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _panel(axes, result)
    figure.supxlabel("dip depth (dotted: null dip; squares: controls; hollow: A/A)", size=LABEL_SIZE, color=INK)
    figure.supylabel("final", size=LABEL_SIZE, color=INK)
    return figure


def profile_figure(across: Across, colours: Colours) -> Figure:
    """Which share of an arm's runs ends above each score."""
    arms = list(across.finals)
    figure, (axes,) = _grid(1, 3.0, colours, arms, f"{across.agent} over {len(across.tasks)} tasks: final scores")
    every = np.concatenate([runs for tasks in across.finals.values() for runs in tasks.values()])
    low, high = min(0.0, float(every.min())), max(100.0, float(every.max()))
    thresholds = np.linspace(low - 0.01 * (high - low), high, 101)  # below all of them, so that lines begin at 1
    for arm, tasks in across.finals.items():
        colour, style = colours[arm]
        profile = performance_profile(tasks, thresholds)
        axes.plot(thresholds, profile.share, color=colour, ls=style, lw=1.7)
        axes.fill_between(thresholds, profile.low, profile.high, color=colour, alpha=0.1, lw=0)
    dress(axes)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(float(thresholds[0]), float(thresholds[-1]))
    axes.set_xlabel("final score", size=LABEL_SIZE)
    axes.set_ylabel("share of runs above it", size=LABEL_SIZE)
    return figure


def board_figure(boards: Sequence[Board], colours: Colours, *, title: str, iqm: bool) -> Figure:
    """Leaderboards as intervals: a row an arm, in the order of the first board; a panel a metric."""
    arms = [line.arm for line in boards[0].lines]
    columns = min(_COLUMNS, len(boards))
    rows = math.ceil(len(boards) / columns)
    figure = new_figure(height=0.75 + rows * (0.75 + 0.23 * len(arms)))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(boards) :]:
        axes.set_visible(False)
    for axes, board in zip(grid.flat, boards, strict=False):
        lines = {line.arm: line for line in board.lines}
        for at, arm in enumerate(arms):
            if arm in lines:
                _interval_row(axes, at, lines[arm], colours[arm][0], iqm=iqm)
        dress(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT, lw=0.7)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        if board.metric.key in _FROM_ZERO:
            right = axes.get_xlim()[1] if any(line.iqm.high > 0 for line in lines.values()) else 1.0
            axes.set_xlim(-0.03 * right, right)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(_board_title(board), fontsize=LABEL_SIZE, color=INK, loc="left")
    for axes in grid[:, 0]:
        for label, arm in zip(axes.get_yticklabels(), arms, strict=True):
            label.set_color(colours[arm][0])
            label.set_fontweight("bold")
    counts = sorted({line.n for board in boards for line in board.lines})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    what = "interquartile means over runs and tasks" if iqm else "means over seeds"
    says = f"{what} ({runs} runs an arm); grey: null dip; arrows: which side is better"
    headings(figure, title, says)
    return figure


def _board_title(board: Board) -> str:
    arrow = "" if board.metric.higher_is_better is None else " →" if board.metric.higher_is_better else " ←"
    unit = ", share of budget" if board.metric.key == "recovery" else ""
    return f"{board.metric.label}{unit}{arrow}"


def _interval_row(axes: Axes, at: int, line: Line, colour: str, *, iqm: bool) -> None:
    one = line.iqm if iqm or line.mean is None else line.mean
    if one.n > 1 and math.isfinite(one.low) and math.isfinite(one.high):
        axes.plot([one.low, one.high], [at, at], color=colour, lw=2.0, solid_capstyle="round", zorder=3)
    axes.plot([one.mean], [at], ls="", marker="D", ms=5, color=colour, mec=PAPER, mew=0.7, zorder=4)
    if line.null is not None:
        axes.plot([line.null] * 2, [at - 0.28, at + 0.28], color=GREY, lw=1.3, zorder=2)


def _shown(results: Sequence[GroupResult]) -> list[str]:
    """The arms of some groups, each once."""
    return list(dict.fromkeys(column.arm.name for result in results for column in result.comparison.columns))


def _grid(
    count: int, height: float, colours: Colours, arms: Sequence[str], title: str
) -> tuple[Figure, Sequence[Axes]]:
    """Panels in up to three columns under a title and a legend of the arms."""
    columns = 2 if count == 4 else min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    per_line = 4
    lines = math.ceil(len(arms) / per_line)
    legend = _LEGEND_LINE * lines + 0.1
    total = rows * height + legend + 0.75
    figure = new_figure(height=total)
    grid = figure.subplots(rows, columns, squeeze=False)
    headings(figure, title, "")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    x, y, width, high = engine.get()["rect"]
    engine.set(rect=(x, y, width, high - legend / total))
    handles = [Line2D([], [], color=colours[arm][0], ls=colours[arm][1], lw=2.3, label=arm) for arm in arms]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.004, y + high),
        ncols=per_line,
        frameon=False,
        fontsize=LABEL_SIZE,
        handlelength=2.2,
        borderaxespad=0.0,
        columnspacing=1.4,
    ).set_in_layout(False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def _panel(axes: Axes, result: GroupResult) -> None:
    """Dress a small panel and say what it shows, in two lines that fit its width."""
    dress(axes)
    axes.tick_params(labelsize=7.5)
    note = " (return)" if result.comparison.unit == "return" else ""
    words = f"{short(result.group.task)}\n{short(result.group.agent)}{note}"
    axes.set_title(words, fontsize=7.4, color=INK, loc="left", fontweight="bold")


def short(name: str, most: int = 34) -> str:
    """A name that fits over a panel: its middle is left out where it is long."""
    if len(name) <= most:
        return name
    head = most // 2
    return f"{name[:head]}…{name[-(most - head - 1) :]}"
