"""Published curves in `RESULTS.md` and in a terminal: what is comparable beside ours, the rest apart and marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from o2o_smooth.benchmarks.published_curves import CurveSource, PublishedCurve
from o2o_smooth.benchmarks.results_compare import CONFIDENCE, TOLERANCE
from o2o_smooth.benchmarks.results_curves import CurveAgreement, Point
from o2o_smooth.benchmarks.results_tables import escape, number, table

PHASES = {"offline": "before the switch", "online": "after it"}
"""In words."""


def curves_section(found: Sequence[CurveAgreement], tolerance: float = TOLERANCE) -> str:
    """The section of `RESULTS.md`; empty where no curve is on file for the study's tasks and agents."""
    if not found:
        return ""
    parts = ["## Published curves"]
    alike, apart = [one for one in found if one.comparable], [one for one in found if not one.comparable]
    if alike:
        header = ["Task", "Agent", "Curve", "Our arm", "Points", "Ours (seeds)", "Published (runs)", "Widest gap"]
        parts.append(table([*header, "Agreement", "Source"], [_alike(one) for one in alike], left=4))
        parts.append(
            "Measured alike, at the same counts of updates or steps; nothing is interpolated. Inside: at every point "
            f"the whole {100 * CONFIDENCE:.0f} % interval (Welch) lies within ±{tolerance:g} points. Outside: at some "
            "point the interval leaves 0 out, also when all points share the error (Bonferroni). Ours and published: "
            "at the widest gap. These curves are drawn in grey behind ours."
        )
    if apart:
        parts.append("**Not comparable with this study**, and so neither drawn nor tested:")
        rows = [
            [
                escape(one.task),
                escape(one.published.agent),
                PHASES[one.published.source.phase],
                f"{one.published.task} ({len(one.published.runs)})",
                f"not comparable: {escape('; '.join(one.reasons))}",
            ]
            for one in _once(apart)
        ]
        parts.append(table(["Task", "Agent", "Curve", "Published (runs)", "Why"], rows, left=5))
    lines = [f"* {curve_source_line(source)}" for source in curve_sources(found)]
    parts.append("Sources:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _alike(one: CurveAgreement) -> list[str]:
    point = one.widest
    assert point is not None  # without a common point it would not be comparable
    return [
        escape(one.task),
        escape(one.agent),
        PHASES[one.published.source.phase],
        escape(one.arm),
        str(len(one.points)),
        f"{number(float(np.mean(point.ours)))} ({len(point.ours)})",
        f"{number(float(np.mean(point.theirs)))} ({len(point.theirs)})",
        f"{gap(point)} at {point.at:,}",
        f"**{one.answer}**" if one.answer == "outside" else one.answer,
        escape(one.published.source.name),
    ]


def curve_lines(one: CurveAgreement, *, force: bool) -> list[str]:
    """A curve in a terminal: its verdict, and a line a point where the two may stand beside each other."""
    source = one.published.source
    head = f"curve: {one.task}, {one.agent}, {PHASES[source.phase]} ({one.arm})"
    counted = "updates" if source.phase == "offline" else "steps"
    points = [
        f"  at {point.at:,} {counted}: {point.answer}; ours {number(float(np.mean(point.ours)))} ({len(point.ours)} "
        f"seeds), published {number(float(np.mean(point.theirs)))} ({len(point.theirs)} runs), difference {gap(point)}"
        for point in one.points
    ]
    if one.comparable:
        insides = sum(point.answer == "inside" for point in one.points)
        return [f"{head}: {one.answer}; {insides} of {len(points)} points inside; {source.name}", *points]
    mark = f"{head}: NOT COMPARABLE ({'; '.join(one.reasons)})"
    if not force:
        return [f"{mark}; --force shows the points"]
    return [mark, *points] if points else [f"{mark}; no evaluation at the same count"]


def gap(point: Point) -> str:
    """The difference with its interval."""
    difference = number(point.difference, signed=True)
    if point.low == -float("inf"):
        return difference
    return f"{difference} [{number(point.low, signed=True)}, {number(point.high, signed=True)}]"


def curve_source_line(source: CurveSource) -> str:
    """Where curves are from, in Markdown."""
    paper = f"; {source.paper}" if source.paper else ""
    online = "" if source.online_steps is None else f", {source.online_steps:,} online steps"
    episodes = "" if source.episodes is None else f", {source.episodes} episodes each"
    bound = f" What depends on the budget: {source.budget_bound}." if source.budget_bound else ""
    note = f" {source.note}" if source.note else ""
    scores = "normalised scores" if source.score == "normalised" else "returns"
    return (
        f"{source.name}: <{source.url}>, {source.where}{paper}. {source.provenance} data, {source.offline_updates:,} "
        f"updates{online}; {scores}; {source.grid}{episodes}. Licence: {source.licence}.{bound}{note}"
    )


def curve_sources(found: Sequence[CurveAgreement]) -> list[CurveSource]:
    """Each source once."""
    return list(dict.fromkeys(one.published.source for one in found))


def _once(found: Sequence[CurveAgreement]) -> list[CurveAgreement]:
    """Of several arms that a curve was held against, the first."""
    kept: dict[tuple[str, PublishedCurve], CurveAgreement] = {}
    for one in found:
        kept.setdefault((one.task, one.published), one)
    return list(kept.values())
