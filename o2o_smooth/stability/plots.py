"""Pictures of the switch, drawn with matplotlib's object interface: no global state, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike, NDArray

from o2o_smooth.stability import sheet
from o2o_smooth.stability.beside import ReferenceCurve, draw_behind, key
from o2o_smooth.stability.curves import Curve, PretrainCurve, Unit
from o2o_smooth.stability.lettering import GREY, INK, LABEL_SIZE, Label, amount, count, headings, label_right
from o2o_smooth.stability.origin import Origin, check_comparable, offline_data, provenances
from o2o_smooth.stability.sheet import arm_colours, dress, literal, log_time, new_figure

FloatArray = NDArray[np.float64]
Weights = Mapping[str, tuple[ArrayLike, ArrayLike]]
Bands = Mapping[str, tuple[FloatArray, FloatArray, FloatArray]]

_FEW_ARMS = 3  # beside bands, the lines of more arms' seeds would be a thicket
_Y_LABEL: dict[Unit, str] = {
    "score": "score  (0 random, 100 reference)",
    "return": "return of an episode",
}


@literal
def plot_switch(
    arms: Mapping[str, Sequence[Curve]],
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    reference: Mapping[str, float] | None = None,
    weights: Weights | None = None,
    unit: Unit = "score",
    ramp_end: float | None = None,
    mix_provenance: bool = False,
) -> Path:
    """Draw the arms of a comparison into a file, as `switch_figure` does; it appears there whole or not at all.

    Returns:
        `path`.
    """
    figure = switch_figure(
        arms,
        title=title,
        subtitle=subtitle,
        reference=reference,
        weights=weights,
        unit=unit,
        ramp_end=ramp_end,
        mix_provenance=mix_provenance,
    )
    return _save(figure, path)


@literal
def switch_figure(
    arms: Mapping[str, Sequence[Curve]],
    *,
    title: str,
    subtitle: str = "",
    reference: Mapping[str, float] | None = None,
    weights: Weights | None = None,
    unit: Unit = "score",
    ramp_end: float | None = None,
    mix_provenance: bool = False,
    bands: Bands | None = None,
    pretraining: Sequence[PretrainCurve] = (),
    published: Sequence[ReferenceCurve] = (),
    published_before: Sequence[ReferenceCurve] = (),
) -> Figure:
    """Draw the arms of a comparison from the switch on: a thin line a seed, a thick one for their mean.

    The time axis is log(1 + t / first evaluation): the first steps, where a jump falls, are as wide as the rest. The
    offline data's own mean return is a dotted line, one for each set of data that the curves know of.

    Args:
        arms: Curves by the name of their arm, in the order of their colours.
        title: The heading.
        subtitle: A line under it: task, seeds, budget.
        reference: More horizontal lines by name, such as another policy's score.
        weights: By arm, (env steps, w) of the online objective, drawn in a thin panel below.
        unit: What the curves are in.
        ramp_end: Where the ramp ends, in environment steps.
        mix_provenance: Draw scores from data of different provenance all the same; the subtitle says so then.
        bands: By arm, (env steps, low, high) of the interval of its mean; NaN leaves a gap. Beside the bands of more
            than three arms the seeds' own lines are left out.
        pretraining: Evaluations before the switch, in the same unit; drawn to the left with `published_before`.
        published: What others measured after the switch, drawn behind the arms.
        published_before: What others measured before it; without `pretraining` it is not drawn.

    Raises:
        ValueError: No arm, or an arm without curves.
        DataError: Curves of different provenance or references, as in `arm_table`.
    """
    _check(arms)
    check_comparable(arms, mix_provenance=mix_provenance)
    figure = new_figure(height=5.6 if weights else 4.6)
    beside = bool(pretraining) and bool(published_before)
    rows = figure.subplots(
        2 if weights else 1,
        2 if beside else 1,
        sharex="col",
        sharey="row" if beside else False,
        squeeze=False,
        height_ratios=[4.6, 1] if weights else [1],
        width_ratios=[1, 2.2] if beside else [1],
    )
    axes = [row[-1] for row in rows]
    colours = arm_colours(arms)
    last = max(float(curve.env_steps[-1]) for curves in arms.values() for curve in curves)
    theirs = draw_behind(axes[0], published, last)
    if beside:
        _draw_pretraining(rows[0][0], pretraining, INK)
        draw_behind(rows[0][0], published_before, max(float(curve.updates[-1]) for curve in pretraining))
        key(rows[0][0], published_before, len(pretraining))
    for arm, (steps, low, high) in (bands or {}).items():
        axes[0].fill_between(steps, low, high, color=colours[arm][0], alpha=0.12, lw=0, zorder=1.8)
    _draw_arms(axes[0], arms, colours, reference or {}, seeds=not bands or len(arms) <= _FEW_ARMS, more=theirs)
    _finish_switch_axes(axes, arms, colours, weights, ramp_end, fraction=0.1 if beside else 0.075)
    rows[0][0].set_ylabel(_Y_LABEL[unit])
    if beside:
        _join_at_switch(rows[0][0], axes)
        if ramp_end is not None:  # which is written there
            axes[0].set_title("", loc="left")
        for row in rows[1:]:
            row[0].set_visible(False)
    headings(figure, title, _warned(arms, subtitle))
    return figure


@literal
def plot_run(
    curves: Sequence[Curve],
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    pretraining: Sequence[PretrainCurve] = (),
    reference: Mapping[str, float] | None = None,
    weights: tuple[ArrayLike, ArrayLike] | None = None,
    unit: Unit = "score",
    ramp_end: float | None = None,
    mix_provenance: bool = False,
) -> Path:
    """Draw one run: its seeds from the switch on and, left of it, the evaluations of offline pretraining.

    Args:
        curves: One a seed, all of one arm; none where only the pretraining is to be seen.
        path: Where the picture goes; it appears there whole or not at all.
        title: The heading.
        subtitle: A line under it.
        pretraining: Evaluations before the switch, in the same unit; their axis counts updates.
        reference: More horizontal lines by name, such as another policy's score.
        weights: (env steps, w) of the online objective, drawn in a thin panel below.
        unit: What the curves are in.
        ramp_end: Where the ramp ends, in environment steps.
        mix_provenance: As in `plot_switch`.

    Returns:
        `path`.

    Raises:
        ValueError: Neither curves nor pretraining.
        DataError: Curves of different provenance or references, as in `arm_table`.
    """
    if not curves and not pretraining:
        raise ValueError("there is nothing to draw: neither curves nor pretraining")
    figure = new_figure(height=5.0 if weights and curves else 4.1)
    both = bool(curves) and bool(pretraining)
    grid = figure.add_gridspec(
        2 if weights and curves else 1,
        2 if both else 1,
        width_ratios=[1, 2.6] if both else [1],
        height_ratios=[4.6, 1] if weights and curves else [1],
    )
    arms = {f"mean of {len(curves)}" if len(curves) > 1 else f"seed {curves[0].seed}": list(curves)} if curves else {}
    check_comparable({"this run": [*curves, *pretraining]}, mix_provenance=mix_provenance)
    colours = arm_colours(arms)
    left: Axes | None = None
    if pretraining:
        left = figure.add_subplot(grid[0, 0])
        _draw_pretraining(left, pretraining)
        left.set_ylabel(_Y_LABEL[unit])
        if not curves:
            _show_zero(left, pretraining)
            label_right(left, _draw_data(left, {"": pretraining}))
    if curves:
        main = figure.add_subplot(grid[0, -1], sharey=left)
        axes = [main]
        if weights:
            axes.append(figure.add_subplot(grid[1, -1], sharex=main))
        _draw_arms(main, arms, colours, reference or {})
        by_arm = dict.fromkeys(arms, weights) if weights else None
        _finish_switch_axes(axes, arms, colours, by_arm, ramp_end, fraction=0.1)
        if left is None:
            main.set_ylabel(_Y_LABEL[unit])
        else:
            _join_at_switch(left, axes)
    headings(figure, title, _warned(arms, subtitle))
    return _save(figure, path)


def _warned(arms: Mapping[str, Sequence[Origin]], subtitle: str) -> str:
    """The subtitle, after a warning where provenances are mixed."""
    mixed = provenances(arms)
    return f"MIXED PROVENANCE ({', '.join(mixed)}); {subtitle}" if len(mixed) > 1 else subtitle


def _draw_arms(
    axes: Axes,
    arms: Mapping[str, Sequence[Curve]],
    colours: Mapping[str, tuple[str, str]],
    reference: Mapping[str, float],
    *,
    seeds: bool = True,
    more: Sequence[Label] = (),
) -> None:
    """Curves, the line of J0, reference lines, and the name of each at its right end."""
    labels = []
    j0 = float(np.mean([curve.scores[0] for curves in arms.values() for curve in curves]))
    axes.axhline(j0, color=INK, lw=0.9, ls=(0, (5, 3)), zorder=1.5)
    labels.append(Label(j0, f"at the switch  {amount(j0)}", INK, bold=False))
    for name, value in reference.items():
        axes.axhline(value, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1.5)
        labels.append(Label(value, f"{name}  {amount(value)}", GREY, bold=False))
    for arm, curves in arms.items():
        colour, style = colours[arm]
        for curve in curves if seeds else ():
            axes.plot(curve.env_steps, curve.scores, color=colour, ls=style, lw=0.7, alpha=0.32, zorder=2)
        steps, mean = _mean([(curve.env_steps, curve.scores) for curve in curves])
        axes.plot(steps, mean, color=colour, ls=style, lw=2.3, zorder=3, solid_capstyle="round", clip_on=False)
        few = len(steps) <= 40
        axes.plot(
            steps,
            mean,
            ls="",
            marker="o",
            ms=3.2 if few else 0,
            color=colour,
            mec="white",
            mew=0.5,
            zorder=3.1,
            clip_on=False,
        )
        seen = mean[np.isfinite(mean)]  # a seed that came to NaN leaves a gap; the label says so
        labels.append(Label(float(seen[-1]) if len(seen) else np.nan, f"{arm}  {amount(mean[-1])}", colour, bold=True))
    dress(axes)
    axes.margins(y=0.06)
    _show_zero(axes, [curve for curves in arms.values() for curve in curves])
    label_right(axes, [*labels, *more, *_draw_data(axes, arms)])


def _show_zero(axes: Axes, curves: Sequence[Curve | PretrainCurve]) -> None:
    """Scores, and a dip in them, are judged against 0, the random policy."""
    if all(curve.unit == "score" for curve in curves):
        axes.set_ylim(bottom=min(axes.get_ylim()[0], -3.0))


def _draw_data(axes: Axes, arms: Mapping[str, Sequence[Origin]]) -> list[Label]:
    """The offline data's own mean, a line for each set of data; one that would flatten the curves is only named."""
    data = [(one, one.behaviour) for one in offline_data(arms) if one.behaviour is not None]
    low, high = axes.get_ylim()
    room = high - low
    near = [value for _, value in data if low - room <= value <= high + room]
    pad = 0.06 * (high - low)
    low, high = min([low, *(value - pad for value in near)]), max([high, *(value + pad for value in near)])
    axes.set_ylim(low, high)
    labels = []
    for one, value in data:
        name = "offline data" if len(data) == 1 else f"data of {_first_of(one.arms)}"
        if value in near:
            axes.axhline(value, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1.5)
            labels.append(Label(value, f"{name}  {amount(value)}", GREY, bold=False))
        else:
            where, edge = ("above", high) if value > high else ("below", low)
            labels.append(Label(edge, f"{name}  {amount(value)} ({where} the axis)", GREY, bold=False))
    return labels


def _first_of(arms: Sequence[str]) -> str:
    """Names as they fit beside a line."""
    return arms[0] if len(arms) == 1 else f"{arms[0]} and {len(arms) - 1} more"


def _draw_pretraining(axes: Axes, curves: Sequence[PretrainCurve], colour: str = GREY) -> None:
    """The evaluations before the switch, in grey: they are the way here, not the matter."""
    for curve in curves:
        axes.plot(curve.updates, curve.scores, color=colour, lw=0.7, alpha=0.45, zorder=2)
    updates, mean = _mean([(curve.updates, curve.scores) for curve in curves])
    axes.plot(updates, mean, color=colour, lw=2.3, zorder=3, marker="o", ms=3.2, mec="white", mew=0.5)
    dress(axes)
    axes.margins(x=0.03, y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.set_title("offline updates", fontsize=LABEL_SIZE, color=GREY, loc="left")


def _finish_switch_axes(
    axes: Sequence[Axes],
    arms: Mapping[str, Sequence[Curve]],
    colours: Mapping[str, tuple[str, str]],
    weights: Weights | None,
    ramp_end: float | None,
    *,
    fraction: float,
) -> None:
    """The time axis, the panel of the weights and the end of the ramp."""
    steps = np.concatenate([curve.env_steps for curves in arms.values() for curve in curves])
    positive = steps[steps > 0]
    first, last = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    main, below = axes[0], axes[-1]
    log_time(main, below, first, last, fraction)
    if weights:
        _draw_weights(below, weights, colours)
        main.tick_params(axis="x", labelbottom=False)
    if ramp_end is not None and ramp_end <= last:
        for one in axes:
            one.axvline(ramp_end, color=GREY, lw=0.8, zorder=1.4)
        main.annotate(
            "ramp ends",
            (ramp_end, 1.0),
            xycoords=main.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=LABEL_SIZE,
            color=GREY,
        )


def _draw_weights(axes: Axes, weights: Weights, colours: Mapping[str, tuple[str, str]]) -> None:
    """The weight of the online objective by arm; arms that share one are drawn side by side."""
    drawn: list[tuple[FloatArray, FloatArray]] = []
    for arm, pair in weights.items():
        steps, weight = (np.asarray(part, dtype=np.float64) for part in pair)
        same = sum(np.array_equal(steps, x) and np.array_equal(weight, y) for x, y in drawn)
        drawn.append((steps, weight))
        colour, style = colours.get(arm, (GREY, "-"))
        aside = ScaledTranslation(0, -1.7 * same / 72, axes.figure.dpi_scale_trans)
        axes.plot(steps, weight, color=colour, ls=style, lw=1.7, zorder=3 - same / 10, transform=axes.transData + aside)
    dress(axes)
    axes.set_ylim(-0.2, 1.2)
    axes.set_yticks([0, 1])
    axes.set_ylabel("online\nweight", fontsize=LABEL_SIZE)


def _join_at_switch(left: Axes, right: Sequence[Axes]) -> None:
    """Make the panels before and after the switch one picture: one scale, and nothing between them."""
    right[0].set_title("online", fontsize=LABEL_SIZE, color=GREY, loc="left")
    right[0].tick_params(axis="y", labelleft=False, length=0)
    for one in right:
        one.spines["left"].set_color(INK)
    for one in right[1:]:
        one.yaxis.tick_right()
        one.yaxis.set_label_position("right")
        one.yaxis.label.set(rotation=0, ha="left", va="center")


def _mean(lines: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """The mean line over the range that all have, on every step any of them has."""
    first, last = max(float(x[0]) for x, _ in lines), min(float(x[-1]) for x, _ in lines)
    steps = np.unique(np.concatenate([x for x, _ in lines]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.mean([np.interp(steps, x, y) for x, y in lines], axis=0)


def _save(figure: Figure, path: Path) -> Path:
    """Write the picture."""
    return sheet.save(figure, path)


def _check(arms: Mapping[str, Sequence[Curve]]) -> None:
    """Raise where there is nothing to draw."""
    if not arms:
        raise ValueError("there is nothing to draw: no arms")
    for arm, curves in arms.items():
        if not curves:
            raise ValueError(f"arm {arm!r} has no curves")
