"""Pictures of what `speed` measured: rates beside their limits, or how costs grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from o2o_smooth.files import written_whole
from o2o_smooth.stability.sheet import COLOURS

OWN_COLOURS = {"fp32": COLOURS[0], "bf16": COLOURS[2]}
PEER_COLOURS = {"d3rlpy": COLOURS[4], "jax": COLOURS[3]}


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Draw the rates (or the growth) to a file; returns whether there was anything to draw."""
    if result.get("growth"):
        figure = _draw_growth(result["growth"])
    elif result.get("rows"):
        figure = _draw_rates(result)
    else:
        return False
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."))
    return True


def _draw_rates(result: Mapping[str, Any]) -> Figure:
    """A panel an agent: member-updates per second with ranges, the limit as a mark."""
    agents = list(dict.fromkeys((row["agent"], row["depth"]) for row in result["rows"]))
    most = max(sum((r["agent"], r["depth"]) == a for r in [*result["rows"], *result["peers"]]) for a in agents)
    figure = Figure(figsize=(4.2 * len(agents), 1.4 + 0.38 * most), layout="constrained")
    axes = figure.subplots(1, len(agents), squeeze=False)[0]
    for ax, (agent, depth) in zip(axes, agents, strict=True):
        rows = [r for r in [*result["peers"], *result["rows"]] if (r["agent"], r["depth"]) == (agent, depth)]
        for y, row in enumerate(rows):
            own = row["implementation"] == "o2o_smooth"
            value, members = row["member_updates_per_s"], row["members"]
            color = OWN_COLOURS[row["precision"]] if own else PEER_COLOURS.get(row["implementation"], "0.5")
            low, high = members * row["lowest"], members * row["highest"]
            ax.barh(y, value, color=color, xerr=[[value - low], [high - value]], ecolor="0.25", capsize=2)
            if row["limit_updates_per_s"] is not None:
                ax.plot([members * row["limit_updates_per_s"]] * 2, [y - 0.4, y + 0.4], color="0.1", lw=1.6)
        ax.set_yticks(range(len(rows)), [_bar_name(row) for row in rows], fontsize=8)
        ax.set_title(f"{agent}, {depth} x {rows[0]['width']}", fontsize=10)
        ax.set_xlabel("updates/s x members", fontsize=9)
        ax.set_xlim(left=0)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['machine']['cpu']}: bars are medians, black marks the limit of the matmuls", fontsize=9)
    return figure


def _bar_name(row: Mapping[str, Any]) -> str:
    name = "" if row["implementation"] == "o2o_smooth" else f"{row['implementation']} "
    return f"{name}{row['precision']}, {row['members']} member{'s' * (row['members'] > 1)}, {row['threads']} thr."


def _draw_growth(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel an axis: cost against value, with the line that grows as the work does."""
    shown = list(dict.fromkeys(curve["axis"] for curve in curves))
    figure = Figure(figsize=(4.2 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, axis in zip(axes, shown, strict=True):
        for i, curve in enumerate(c for c in curves if c["axis"] == axis):
            points = curve["points"]
            x = [p["value"] for p in points]
            y = [1e3 * p["cost_s"] for p in points]
            errors = [
                [1e3 * (p["cost_s"] - p["lowest"]) for p in points],
                [1e3 * (p["highest"] - p["cost_s"]) for p in points],
            ]
            name = f"{curve['agent']} {curve['precision']}"
            ax.errorbar(
                x, y, yerr=errors, color=COLOURS[i % len(COLOURS)], marker="o", ms=3.5, lw=1.3, capsize=2, label=name
            )
            linear = [y[-1] * p["work"] / points[-1]["work"] for p in points]
            ax.plot(x, linear, color=COLOURS[i % len(COLOURS)], ls=":", lw=1.0, label="as the work" if i == 0 else None)
        ax.set_xscale("log")
        if axis == "buffer":  # flat: on a log scale only the noise would show
            ax.set_ylim(bottom=0)
        else:
            ax.set_yscale("log")
        values = sorted({p["value"] for c in curves if c["axis"] == axis for p in c["points"]})
        ax.set_xticks(values, [_short(value) for value in values])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(axis if axis != "buffer" else "rows in the buffer")
        ax.set_ylabel("ms per environment step" if axis == "utd" else "ms per update")
        ax.legend(fontsize=7, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _short(value: int) -> str:
    """A number for an axis: 4096, 10k, 1M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= 10_000 and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)
