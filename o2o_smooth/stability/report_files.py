"""Writing a report: the page, the pictures and `stability.json`, each whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from o2o_smooth.errors import O2OError
from o2o_smooth.files import written_whole
from o2o_smooth.reading import read_json
from o2o_smooth.stability.compared import Comparison
from o2o_smooth.stability.origin import offline_data
from o2o_smooth.stability.page import About, arm_sentences, interval_words, render_page, sentences
from o2o_smooth.stability.panels import bands, spread_figure
from o2o_smooth.stability.plots import switch_figure
from o2o_smooth.stability.sheet import literal, save
from o2o_smooth.stability.signal_names import told_elsewhere
from o2o_smooth.stability.signal_panels import audits_figure, signals_figure
from o2o_smooth.stability.signals import STEPS, SignalLines, distinct, mean_line
from o2o_smooth.stability.themed import figure_svg

MADE_BY = "o2o-smooth report"
PAGE, NUMBERS = "report.html", "stability.json"
PICTURES = ("curves.png", "dips.png", "signals.png", "audits.png")

UNITS = {
    "j0, dip_depth, late_collapse, final, auc, null_dip": "score (auc: mean over the budget)",
    "dip_area, null_area": "score; mean over the budget of max(0, J0 - J)",
    "dip_time": "fraction of the online budget; dip_time_steps: environment steps",
    "recovery_steps": "environment steps; null where censored (never within the budget), 0 where nothing was lost; "
    "recovery_fraction: of the budget",
    "regret": "share of the reference that is missing on average; null where scores are returns",
    "drop_steps": "environment steps to the first evaluation under J0 by more than noise; null where there is none",
}
"""What the columns of `stability.json` are in."""


def check_free(out: Path) -> None:
    """Refuse a folder in which another program's files would be lost.

    Raises:
        O2OError: `out` is a file, or holds a `report.html` or `stability.json` that no report wrote.
    """
    if out.exists() and not out.is_dir():
        raise O2OError(f"--out {out} is a file; give a folder")
    there = [name for name in (PAGE, NUMBERS) if (out / name).exists()]
    if there and not _ours(out):
        raise O2OError(
            f"{out / there[0]} is there already and was not made by {MADE_BY}: give another folder with --out"
        )


def write_report(
    comparison: Comparison,
    signals: Mapping[str, Mapping[str, SignalLines]],
    out: Path,
    about: About,
    audits: Mapping[str, Mapping[str, SignalLines]] | None = None,
) -> list[Path]:
    """Write `report.html`, the PNGs and `stability.json` into a folder; an earlier report there is replaced.

    Args:
        comparison: What is reported.
        signals: By name, arm and seed; those that say nothing are left out, and the panel where none is left.
        out: The folder; made where it is not there.
        about: What stands around the numbers.
        audits: Likewise what was audited, along updates since the switch.

    Returns:
        The files.

    Raises:
        O2OError: The folder cannot be written or holds what no report wrote.
    """
    check_free(out)
    figures = make_figures(comparison, signals, about, audits)
    written = [save(figure, out / name) for name, (_, figure) in figures.items()]
    drawn = {caption: figure_svg(figure, caption) for caption, figure in figures.values()}
    for stale in set(PICTURES) - set(figures):  # of an earlier report, which knew signals
        if _ours(out):
            (out / stale).unlink(missing_ok=True)
    texts = {PAGE: render_page(comparison, drawn, about), NUMBERS: _json(stability_json(comparison, about))}
    for name, text in texts.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(out / name)
    return written


def ramp_end(comparison: Comparison) -> float | None:
    """Where all ramps end, if they end together; after a warm-up a jump has a length too, but no ramp."""
    arms = [column.arm for column in comparison.columns]
    ends = {arm.ramp_steps for arm in arms if arm.ramp_steps and arm.role == "smoothed"}
    return ends.pop() if len(ends) == 1 else None


@literal
def make_figures(
    comparison: Comparison,
    signals: Mapping[str, Mapping[str, SignalLines]],
    about: About,
    audits: Mapping[str, Mapping[str, SignalLines]] | None = None,
) -> dict[str, tuple[str, Figure]]:
    """The pictures by file name, each with its caption; signals that say nothing are left out."""
    arms = {column.arm.name: column.arm.curves for column in comparison.columns}
    figures = {
        "curves.png": (
            f"Curves from the switch on, with logarithmic time: means over seeds with intervals ("
            f"{interval_words(comparison)}).",
            switch_figure(
                arms,
                title=about.title,
                subtitle=about.subtitle,
                unit=comparison.unit,
                ramp_end=ramp_end(comparison),
                weights=_weights(signals) or None,
                mix_provenance=True,  # refused before, where it was not asked for
                bands=bands(comparison),
            ),
        ),
        "dips.png": (
            "Dips and recoveries: a dot a seed, a diamond for their mean with its interval, a grey mark at the null "
            "dip. Right: hollow where nothing was lost, a triangle at the border where it was never seen to come back.",
            spread_figure(comparison, title="Dips and recoveries", subtitle=about.subtitle),
        ),
    }
    if shown := distinct(signals):
        figures["signals.png"] = (
            "Signals under the curve: the weights and what the rules looked at, means over seeds, a line an arm. What "
            "stands still or repeats another is left out.",
            signals_figure(comparison, shown, title="Weights and signals under the curve", subtitle=about.subtitle),
        )
    if audited := _audited(audits or {}, signals):
        figures["audits.png"] = (
            "Signals of the audits: what the updates did to the agent, along updates since the switch (logarithmic, so "
            "that the first ones are wide), means over seeds, a line an arm. docs/switch.md tells what each one means.",
            audits_figure(comparison, audited, title="What the updates did to the agent", subtitle=about.subtitle),
        )
    return figures


def stability_json(comparison: Comparison, about: About) -> dict[str, Any]:
    """All numbers of a report: a row a run, and what was made of them."""
    arms = {column.arm.name: column.arm.curves for column in comparison.columns}
    return {
        "made_by": MADE_BY,
        "format": 1,
        "command": about.command,
        "versions": dict(about.versions),
        "commit": about.versions.get("commit"),
        "sources": list(about.sources),
        "provenance": sorted({c.provenance for curves in arms.values() for c in curves if c.provenance is not None}),
        "offline_data": [dataclasses.asdict(one) for one in offline_data(arms)],
        "unit": comparison.unit,
        "units": UNITS,
        "budget": comparison.budget,
        "window": comparison.window,
        "interval": {"method": comparison.method, "confidence": comparison.confidence},
        "baseline": comparison.baseline.arm.name,
        "rows": [row.values() for column in comparison.columns for row in column.rows],
        "arms": [
            {
                "arm": column.arm.name,
                "role": column.arm.role,
                "twin_of": column.arm.twin_of,
                "ramp_steps": column.arm.ramp_steps,
                **{k: v for k, v in dataclasses.asdict(column.outcome).items() if k not in ("name", "ramp_steps")},
                "means": {key: one and dataclasses.asdict(one) for key, one in column.means.items()},
                "differences": {
                    key: one and {**dataclasses.asdict(one), "noise": column.effects[key].noise}
                    for key, one in column.differences.items()
                },
            }
            for column in comparison.columns
        ],
        "aa": dict(comparison.aa),
        "missing_controls": list(comparison.unknowns.missing_controls),
        "sentences": list(sentences(comparison)),
        "arm_sentences": arm_sentences(comparison),
        "notes": [*comparison.notes, *about.notes],
    }


def _weights(signals: Mapping[str, Mapping[str, SignalLines]]) -> dict[str, Any]:
    """The actor's weight by arm, mean over seeds."""
    return {arm: mean_line(lines) for arm, lines in signals.get("smoothing/actor_weight", {}).items()}


def _audited(
    audits: Mapping[str, Mapping[str, SignalLines]], signals: Mapping[str, Mapping[str, SignalLines]]
) -> dict[str, Mapping[str, SignalLines]]:
    """The audits that say something that the signals do not; with their environment steps, if there are any."""
    told = distinct(
        {name: arms for name, arms in audits.items() if name != STEPS and not told_elsewhere(name, signals)}
    )
    return {**told, STEPS: audits[STEPS]} if told and STEPS in audits else told


def _ours(out: Path) -> bool:
    try:
        found = read_json(out / NUMBERS, root=out)
    except (OSError, ValueError):
        return False
    return found.get("made_by") == MADE_BY


def _json(value: Any) -> str:
    """JSON without NaN and infinity: what has no bound is null."""

    def plain(one: Any) -> Any:
        if isinstance(one, float):
            return one if math.isfinite(one) else None
        if isinstance(one, Mapping):
            return {str(key): plain(inner) for key, inner in one.items()}
        if isinstance(one, list | tuple):
            return [plain(inner) for inner in one]
        return one

    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
