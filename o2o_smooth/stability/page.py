"""The report as one HTML page that needs nothing else: no script, no network, pictures inside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from o2o_smooth.stability.arms import CONTROLS
from o2o_smooth.stability.compared import METRICS, Column, Comparison, Metric
from o2o_smooth.stability.page_style import style
from o2o_smooth.stability.report import DROP_MARGIN
from o2o_smooth.stability.sheet import COLOURS
from o2o_smooth.stability.statistics import Interval
from o2o_smooth.stability.verdict import change_clause, refused, what_changed, what_happened, what_is_not_known, word

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing may be fetched and nothing may run, whatever a name in the data contains."""

_COMPARED = tuple(m for m in METRICS if m.key in ("dip_depth", "dip_area", "dip_time_steps", "final", "auc"))
_DIPS = ("dip_depth", "dip_area", "dip_time_steps")


@dataclass(frozen=True)
class About:
    """What stands around the numbers."""

    title: str
    """Of the page."""
    subtitle: str
    """Seeds and data."""
    command: str
    """What made the report."""
    versions: Mapping[str, str]
    """Of what the report depends on."""
    sources: Sequence[str]
    """Run folders and files it was made from."""
    notes: Sequence[str] = ()
    """More to be said."""


def sentences(comparison: Comparison) -> tuple[str, str, str]:
    """What happened, what smoothing changed, and what is not known."""
    budget, unit = comparison.window or comparison.budget, comparison.unit
    base = comparison.baseline.outcome
    return (
        what_happened(base, budget, unit),
        f"{what_changed(comparison.changes, base, budget, unit)} {comparison.seen}".strip(),
        what_is_not_known(comparison.unknowns),
    )


def arm_sentences(comparison: Comparison) -> dict[str, str]:
    """A sentence for each arm but the baseline, controls too."""
    budget, unit, base = comparison.window or comparison.budget, comparison.unit, comparison.baseline.outcome
    found = {}
    for column in comparison.columns[1:]:
        text = f"{change_clause(column.change(), base, budget, unit)}."
        if column.outcome.refusal:
            text = refused(column.outcome, budget, unit)
        role = "" if not column.arm.control else f" Control: {_role(column)}."
        found[column.arm.name] = text + role
    return found


def render_page(comparison: Comparison, pictures: Mapping[str, str], about: About) -> str:
    """The page.

    Args:
        comparison: What is reported.
        pictures: SVG elements by their caption, in the order of the page; the one whose caption begins with "Signals"
            goes under the tables.
        about: What stands around the numbers.
    """
    first = [(caption, svg) for caption, svg in pictures.items() if not caption.startswith("Signals")]
    signals = [(caption, svg) for caption, svg in pictures.items() if caption.startswith("Signals")]
    body = [
        f"<h1>{escape(about.title)}</h1>",
        f'<p class="meta">{escape(about.subtitle)}</p>',
        _sentences(comparison),
        *_notes(comparison, about),
        "<h2>Curves, dips and recoveries</h2>",
        *(_figure(caption, svg) for caption, svg in first),
        "<h2>Every arm</h2>",
        _arms_table(comparison),
        "<h2>Against the baseline</h2>",
        _effects_table(comparison),
        _by_arm(comparison),
        "<h2>Controls</h2>",
        _controls(comparison),
        *(["<h2>Weights and signals</h2>"] if signals else []),
        *(_figure(caption, svg) for caption, svg in signals),
        "<h2>Every run</h2>",
        _runs_table(comparison),
        _how_to_read(comparison),
        _footer(about),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(about.title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _sentences(comparison: Comparison) -> str:
    heads = ("What happened", "What smoothing changed", "What is not known")
    items = [
        f'<li class="sentence{mark}"><b>{head}</b> {escape(text)}</li>'
        for head, text, mark in zip(heads, _unprefixed(comparison), ("", "", " open"), strict=True)
    ]
    return f'<ol class="sentences">{"".join(items)}</ol>'


def _unprefixed(comparison: Comparison) -> list[str]:
    """The sentences as they stand under their headings."""
    first, second, third = sentences(comparison)
    third = third.removeprefix("Not known: ")
    return [first, second, third[0].upper() + third[1:]]


def _notes(comparison: Comparison, about: About) -> list[str]:
    return [f'<p class="warning">{escape(note)}</p>' for note in (*comparison.notes, *about.notes)]


def _figure(caption: str, svg: str) -> str:
    return f'<figure><div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _arms_table(comparison: Comparison) -> str:
    metrics = [m for m in METRICS if comparison.baseline.means[m.key] is not None]
    noise = ["Null dip", "Dropped", "Came back"]  # beside the dip, which means nothing without them
    header = ["Arm", "Seeds"]
    for metric in metrics:
        header += [_label(metric), *(noise if metric.key == "dip_depth" else [])]
    rows = []
    for i, column in enumerate(comparison.columns):
        null, outcome = column.outcome.null_dip, column.outcome
        beside = [
            "-" if null is None else _number(null),
            f"{outcome.dropped} of {outcome.n}",
            f"{outcome.recovered} of {outcome.dropped}" if outcome.dropped else "-",
        ]
        cells = [_arm_cell(column, i, comparison), str(outcome.n)]
        for metric in metrics:
            cells += [_interval(column.means[metric.key], metric), *(beside if metric.key == "dip_depth" else [])]
        rows.append(_row(cells))
    caption = f"Means over seeds, with their intervals under them ({interval_words(comparison)})."
    return _table(header, rows, caption)


def _effects_table(comparison: Comparison) -> str:
    if len(comparison.columns) == 1:
        return '<p class="note">There is one arm, so there is nothing to compare it with.</p>'
    base, rows = comparison.baseline.outcome, []
    for i, column in enumerate(comparison.columns[1:], start=1):
        for k, metric in enumerate(m for m in _COMPARED if column.effects[m.key].n or m is _COMPARED[0]):
            effect, difference = column.effects[metric.key], column.differences[metric.key]
            judged = metric.key not in _DIPS or not (base.refusal or column.outcome.refusal)
            says = word(effect, higher_is_better=metric.higher_is_better, judged=judged)
            up = effect.up if effect.mean > 0 else effect.down
            null = _null(column, metric)
            look = "sure" if effect.significant and judged else says.split()[0]
            cells = [
                _label(metric),
                f"{effect.mean:+,.{0 if metric.steps else 1}f}" if effect.n else "-",
                _range(effect.low, effect.high, metric) if effect.n else "-",
                f"{up} of {effect.n}" if effect.n else "-",
                "-" if effect.aa is None else _number(effect.aa, steps=metric.steps),
                "-" if null is None else _number(null),
                "-" if difference is None else f"{difference.p_value:.3f}",
                f'<span class="{look}">{escape(says)}</span>',
            ]
            name = _arm_cell(column, i, comparison) if k == 0 else ""
            rows.append(_row([name, *cells], first=k == 0))
    header = ["Arm", "", "Difference", "Interval", "Same sign", "A/A", "Null", "p", "Says"]
    caption = (
        f"Arm minus {base.name}, paired by seed. A/A: how much two runs of the same settings differ here; a difference "
        f"no larger is noise ({DROP_MARGIN:g} points stand in for dip and final where there is no pair). Null: what "
        "evaluation noise alone would show. Not decided: larger, but neither a test nor all seeds (three at least) "
        "agree."
    )
    return _table(header, rows, caption)


def _by_arm(comparison: Comparison) -> str:
    items = [f"<li>{escape(text)}</li>" for text in arm_sentences(comparison).values()]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _controls(comparison: Comparison) -> str:
    found = [f"<li>{escape(c.arm.name)}: {escape(_role(c))}</li>" for c in comparison.columns if c.arm.control]
    unknowns = comparison.unknowns
    parts = [f"<ul>{''.join(found)}</ul>"] if found else ["<p>There are none.</p>"]
    if comparison.aa:
        shown = [m for m in _COMPARED if m.key in comparison.aa]
        text = ", ".join(f"{_label(m)} {_number(comparison.aa[m.key], steps=m.steps)}" for m in shown)
        parts.append(f"<p>The A/A pair differs by: {escape(text)}.</p>")
    if unknowns.missing_controls:
        parts.append(f'<p class="warning">Missing: {escape("; ".join(unknowns.missing_controls))}.</p>')
        if unknowns.add_controls:
            parts.append(f"<p>Add them with <code>{escape(unknowns.add_controls)}</code></p>")
    return "".join(parts)


def _runs_table(comparison: Comparison) -> str:
    names = list(comparison.baseline.rows[0].values())
    rows = []
    for column in comparison.columns:
        for row in column.rows:
            values = row.values()
            rows.append(_row([escape(str(values["run"])), *(_plain(values[name]) for name in names[1:])]))
    table = _table(names, rows, "As in stability.json; dip_time and recovery_fraction are fractions of the budget.")
    return f"<details><summary>{len(rows)} runs, a row each</summary>{table}</details>"


def _how_to_read(comparison: Comparison) -> str:
    budget = f"{comparison.budget:,.0f}"
    point = "points" if comparison.unit == "score" else "% of |J0|"
    terms = {
        "J0": "score of the policy at the switch, before the first online update.",
        "Dip": "how far the lowest evaluation after the switch lies under J0.",
        "Null dip": "the dip that evaluation noise alone would show for a policy that never changes.",
        "Dropped": f"the dip exceeds the null dip by more than {DROP_MARGIN:g} {point}.",
        "Dip area": f"mean loss under J0 over the budget of {budget} steps.",
        "Minimum at": "environment steps from the switch to the lowest evaluation.",
        "Came back": "of those that dropped, back near J0 for two evaluations in a row within the budget.",
        "Late collapse": "the best score seen minus the final one.",
        "Mean score": "area under the curve, divided by the budget.",
        "Regret": "what is missing to a score of 100 on average, as a share.",
        "Score": "0 is a random policy, 100 the task's reference policy.",
    }
    if comparison.unit == "return":
        terms["Score"] = "undiscounted returns: there is no reference to count points from."
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms.items())
    return f"<details><summary>What the words mean</summary><dl>{items}</dl></details>"


def _footer(about: About) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    sources = ", ".join(about.sources)
    return (
        f'<h2>How this was made</h2><p><code>{escape(about.command)}</code></p><p class="meta">From {escape(sources)}. '
        f"Versions: {escape(versions)}. The numbers are in stability.json.</p>"
    )


def _role(column: Column) -> str:
    if column.arm.role == "twin":
        return f"A/A pair with {column.arm.twin_of}"
    return CONTROLS.get(column.arm.role, column.arm.role)


def _arm_cell(column: Column, index: int, comparison: Comparison) -> str:
    mark = " <small>(baseline)</small>" if column is comparison.baseline else ""
    swatch = f'<span class="swatch" style="background: var(--arm-{index % len(COLOURS)})"></span>'
    return f"{swatch}{escape(column.arm.name)}{mark}"


def interval_words(comparison: Comparison) -> str:
    """What the intervals hold and how they were made."""
    found = [m for column in comparison.columns for m in column.means.values() if m is not None]
    used = " and ".join(sorted({one.method.replace("_", " ") for one in found}))
    holds = min(one.confidence for one in found)
    asked = f"{100 * comparison.confidence:.4g} %"
    few = "" if holds >= comparison.confidence else f", but few seeds allow only {100 * holds:.4g} %"
    return f"{asked}{few}; {used}"


def _null(column: Column, metric: Metric) -> float | None:
    """What evaluation noise alone would show of a metric."""
    if metric.key == "dip_depth":
        return column.outcome.null_dip
    areas = [row.measured.null_area for row in column.rows if row.measured.null_area is not None]
    return sum(areas) / len(areas) if metric.key == "dip_area" and len(areas) == len(column.rows) else None


def _label(metric: Metric) -> str:
    return f"{metric.label} (steps)" if metric.steps else metric.label


def _interval(found: Interval | None, metric: Metric) -> str:
    if found is None:
        return "-"
    ends = _range(found.low, found.high, metric) if found.n > 1 else "one seed"
    digits = 2 if metric.key == "regret" else 0 if metric.steps else 1
    return f"{found.mean:,.{digits}f}<br><small>{ends}</small>"


def _range(low: float, high: float, metric: Metric) -> str:
    digits = 2 if metric.key == "regret" else 0 if metric.steps else 1
    ends = [f"{end:,.{digits}f}" if math.isfinite(end) else "no bound" for end in (low, high)]
    return f"{ends[0]} to {ends[1]}"


def _number(value: float, *, steps: bool = False) -> str:
    return f"{value:,.0f}" if steps else f"{value:.1f}"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _row(cells: Iterable[str], *, first: bool = False) -> str:
    head, *rest = cells
    mark = ' class="first"' if first else ""
    return f"<tr{mark}><td>{head}</td>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"


def _table(header: Sequence[str], rows: Sequence[str], caption: str) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return (
        f'<div class="panel"><p class="note">{escape(caption)}</p><div class="scroll"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )
