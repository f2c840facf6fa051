"""Published numbers in `RESULTS.md` and in a terminal: what is comparable beside ours, the rest apart and marked."""

from __future__ import annotations

from collections.abc import Sequence

from o2o_smooth.benchmarks.published import Source
from o2o_smooth.benchmarks.results_compare import CONFIDENCE, TOLERANCE, Agreement
from o2o_smooth.benchmarks.results_tables import escape, number, table

_WORDS = {"j0": "at the switch", "final": "final", "regret": "regret"}


def published_section(found: Sequence[Agreement], tolerance: float = TOLERANCE) -> str:
    """The section of `RESULTS.md`."""
    parts = ["## Published numbers"]
    if not found:
        parts.append("No published numbers are on file for these tasks and agents.")
        return "\n\n".join(parts)
    alike, apart = [one for one in found if one.comparable], [one for one in found if not one.comparable]
    if alike:
        rows = [
            [
                escape(one.task),
                escape(one.agent),
                _WORDS.get(one.published.metric, one.published.metric),
                escape(one.arm),
                f"{number(one.mean)} ({len(one.values)})",
                f"{one.published.text} ({one.published.source.seeds})",
                interval_words(one),
                f"**{one.answer}**" if one.answer == "outside" else one.answer,
                escape(one.published.source.name),
            ]
            for one in alike
        ]
        header = [
            "Task",
            "Agent",
            "Score",
            "Our arm",
            "Ours (seeds)",
            "Published (seeds)",
            "Ours - theirs",
            "Agreement",
            "Source",
        ]
        parts.append(table(header, rows, left=4))
        parts.append(
            f"Measured alike: task, offline data, updates, online steps. Difference with a {100 * CONFIDENCE:.0f} % "
            f"interval (Welch). Inside: the whole interval lies within ±{tolerance:g} points. Outside: it leaves 0 "
            "out. Cannot tell: neither, or too few seeds."
        )
    if apart:
        parts.append(
            "**Not comparable with this study**, and so without a number of ours beside them (`o2o-smooth bench "
            "compare DIR --force` shows both):"
        )
        rows = [
            [
                escape(one.task),
                escape(one.published.agent),
                _WORDS.get(one.published.metric, one.published.metric),
                f"{one.published.text} ({one.published.source.seeds})",
                f"not comparable: {escape('; '.join(one.reasons))}",
            ]
            for one in _once(apart)
        ]
        parts.append(table(["Task", "Agent", "Score", "Published (seeds)", "Why"], rows, left=5))
    parts.append("Sources:\n\n" + "\n".join(f"* {source_line(source)}" for source in sources(found)))
    return "\n\n".join(parts)


def interval_words(one: Agreement) -> str:
    """The difference with its interval."""
    difference = number(one.mean - one.published.mean, signed=True)
    if one.low == -float("inf"):
        return difference
    return f"{difference} [{number(one.low, signed=True)}, {number(one.high, signed=True)}]"


def source_line(source: Source) -> str:
    """Where numbers are from, in Markdown."""
    where = f"{source.name}: <{source.url}>, {source.where}"
    revision = f", revision {source.revision[:12]}" if source.revision else ""
    paper = f"; {source.paper}" if source.paper else ""
    online = "" if source.online_steps is None else f", {source.online_steps:,} online steps"
    note = f" {source.note}" if source.note else ""
    return (
        f"{where}{revision}{paper}. {source.provenance} data, {source.offline_updates:,} updates{online}, "
        f"{source.seeds} seeds, ±: {source.spread}.{note}"
    )


def sources(found: Sequence[Agreement]) -> list[Source]:
    """Each source once."""
    return list(dict.fromkeys(one.published.source for one in found))


def _once(found: Sequence[Agreement]) -> list[Agreement]:
    """Of several arms that a number was held against, the first."""
    kept: dict[tuple[str, str, str, str], Agreement] = {}
    for one in found:
        number_of = one.published
        kept.setdefault((one.task, number_of.agent, number_of.metric, number_of.source.name), one)
    return list(kept.values())
