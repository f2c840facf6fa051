"""`RESULTS.md`: what a study found, how it was made, and what did not finish."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.benchmarks.results_across import Across
from o2o_smooth.benchmarks.results_boards import BOARDS, ON_DIPS, Board, GroupResult
from o2o_smooth.benchmarks.results_compare import Agreement
from o2o_smooth.benchmarks.results_curves import CurveAgreement
from o2o_smooth.benchmarks.results_leaderboards import FEW, LEADERBOARDS, leader_rows
from o2o_smooth.benchmarks.results_pictures import Picture
from o2o_smooth.benchmarks.results_published import published_section
from o2o_smooth.benchmarks.results_published_curves import curves_section
from o2o_smooth.benchmarks.results_study import STATUSES, Group, SeedRun, Study, listed_seeds, losses
from o2o_smooth.benchmarks.results_tables import code, escape, number, span, table
from o2o_smooth.benchmarks.results_words import caveats, opening, unequal_seeds
from o2o_smooth.stability.page import arm_sentences
from o2o_smooth.stability.report import DROP_MARGIN

RESULTS = "RESULTS.md"
_MOST_COMMANDS = 200  # characters of a protocol's value


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the pages tell."""

    study: Study
    """As planned."""
    groups: Sequence[Group]
    """What came of it."""
    results: Sequence[GroupResult]
    """What can be compared."""
    problems: Mapping[str, str]
    """By the label of a group, why it cannot."""
    across: Sequence[Across]
    """Over tasks."""
    rows: Sequence[Mapping[str, Any]]
    """Of `results`."""
    pictures: Sequence[Picture]
    """Drawn."""
    agreements: Sequence[Agreement]
    """With published numbers."""
    files: Sequence[Path]
    """Tables that were written."""
    curves: Sequence[CurveAgreement] = ()
    """With published curves."""


def results_page(found: Findings) -> str:
    """The page, in Markdown."""
    parts = [
        f"# Results: {escape(found.study.suite)}",
        _sentences(found),
        _status(found),
        *(f"**Note.** {escape(text)}" for text in _notes(found)),
        "## Protocol",
        _protocol(found),
        _data(found),
        *_over_tasks(found),
        "## Task by task",
        *_pictures(found, "overview"),
        *_pictures(found, "scatter"),
        *(part for result in found.results for part in _group(result, found)),
        published_section(found.agreements),
        curves_section(found.curves),
        "## What did not finish",
        _lost(found),
        "## Price",
        _price(found),
        "## What to keep in mind",
        "\n".join(f"* {escape(text)}" for text in caveats(found.results, found.across, _provenances(found))),
        "## How this was made",
        _made(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentences(found: Findings) -> str:
    first, second, third = opening(found.results, found.groups)
    third = third.removeprefix("Not known: ")
    heads = ("What happened.", "What smoothing changed.", "What is not known.")
    said = (first, second, third[:1].upper() + third[1:])
    return "\n".join(
        f"{k}. **{head}** {escape(text)}" for k, (head, text) in enumerate(zip(heads, said, strict=True), 1)
    )


def _status(found: Findings) -> str:
    """How much of the plan the page rests on."""
    every: list[SeedRun] = [one for group in found.groups for one in group.runs]
    counts = {status: sum(one.status == status for one in every) for status in STATUSES}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    tables = ", ".join(f"[{path.name}]({path.name})" for path in found.files)
    kinds = _provenances(found)
    made = f" **Offline data: {escape(', '.join(kinds))}.**" if kinds else ""
    tables += f", [{LEADERBOARDS}]({LEADERBOARDS})"
    return f"Planned runs (one seed of one arm each): {len(every)}; {told}.{made} Every number: {tables}."


def _notes(found: Findings) -> list[str]:
    notes = [f"{label} cannot be compared: {problem}." for label, problem in found.problems.items()]
    notes += unequal_seeds(found.groups)
    names = [result.comparison.baseline.arm.name for result in found.results]
    usual = max(dict.fromkeys(names), key=names.count, default="")
    notes += [
        f"{result.group.label}: the baseline is {name}, where elsewhere it is {usual}."
        for result, name in zip(found.results, names, strict=True)
        if name != usual
    ]
    for result in found.results:
        notes += [
            f"{result.group.label}: {note}"
            for note in result.comparison.notes
            if "do not have the same seeds" not in note
        ]
    return notes + [f"{note}." for one in found.across for note in one.notes]


def _protocol(found: Findings) -> str:
    rows = [[escape(name), escape(_plain(value))] for name, value in found.study.protocol.items() if name != "seeds"]
    groups = found.groups
    arms = dict.fromkeys(run.arm for run in found.study.runs)
    rows += [
        ["tasks", escape(", ".join(dict.fromkeys(group.task for group in groups)))],
        ["agents", escape(", ".join(dict.fromkeys(group.agent for group in groups)))],
        ["arms", escape("; ".join(arms))],
        ["seeds", listed_seeds([seed for run in found.study.runs for seed in run.seeds])],
        ["pretrainings", str(len({(r.pretraining, s) for r in found.study.runs for s in r.seeds if r.pretraining}))],
    ]
    settings = {run.arm: run.settings for run in found.study.runs}
    told = [[escape(arm), escape(_plain(dict(own)) or "-")] for arm, own in settings.items()]
    parts = [table(["Setting of the suite", "Value"], rows, left=2), _as_run(found)]
    return "\n\n".join(part for part in (*parts, table(["Arm", "What makes it"], told, left=2)) if part)


def _as_run(found: Findings) -> str:
    """Budgets and evaluations by task, as the runs had them: tasks have their own, and `--scale` shortens all."""
    header = ["Task", "Offline updates", "Online steps", "Ramp, steps", "Evaluations", "Episodes each"]
    keys = ("offline_updates", "online_steps", "ramp_steps", "evaluations", "episodes")
    tasks = dict.fromkeys(str(row["task"]) for row in found.rows)
    rows = []
    for task in tasks:
        own = [row for row in found.rows if row["task"] == task and row["status"] == "completed"]
        values = [sorted({row[key] for row in own if row[key]}) for key in keys]  # a jump has a ramp of 0
        rows.append([escape(task), *(", ".join(f"{value:,.0f}" for value in some) or "-" for some in values)])
    return table(header, rows) if rows else ""


def _plain(value: Any) -> str:
    """A setting in a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    text = str(value)
    return text if len(text) <= _MOST_COMMANDS else f"{text[:_MOST_COMMANDS]}..."


def _data(found: Findings) -> str:
    """What was learned from, by task."""
    sets: dict[tuple[str, str, str], str] = {}
    for row in found.rows:
        if row["dataset"] is not None:
            key = (str(row["task"]), str(row["dataset"]), str(row["provenance"] or "not known"))
            sets.setdefault(key, "-" if row["behaviour"] is None else f"{number(row['behaviour'])} ({row['unit']})")
    if not sets:
        return ""
    rows = [[escape(task), escape(name), escape(kind), mean] for (task, name, kind), mean in sets.items()]
    return table(["Task", "Offline data", "Provenance", "Their own mean"], rows, left=3)


def _provenances(found: Findings) -> list[str]:
    return list(dict.fromkeys(str(row["provenance"]) for row in found.rows if row["provenance"] is not None))


def _over_tasks(found: Findings) -> list[str]:
    if not found.across:
        return []
    parts = [
        "## Over tasks",
        "Interquartile means over runs x tasks [95 % stratified bootstrap]; differences are the mean over tasks of "
        "differences paired by seed. Only tasks with reference scores and one provenance share a table.",
    ]
    for one in found.across:
        tasks = escape(", ".join(one.tasks))
        parts.append(f"### {escape(one.agent)}: {len(one.tasks)} tasks ({tasks}; {escape(one.provenance)} data)")
        parts.append(_levels(one.boards))
        parts += [text for board in one.boards if (text := _board(board))]
        parts += [_image(p) for p in found.pictures if p.kind in ("board", "profile") and p.about == _key(one)]
    return parts


def _key(one: Across) -> str:
    return f"{one.agent}, {one.provenance}"


def _levels(boards: Sequence[Board]) -> str:
    """A row an arm, a column a metric."""
    lines = {board.metric.key: {line.arm: line for line in board.lines} for board in boards}
    rows = []
    for line in boards[0].lines:
        mark = FEW if line.few else ""
        cells = [
            span(own.iqm, board.metric) if (own := lines[board.metric.key].get(line.arm)) else "-" for board in boards
        ]
        null = lines.get("dip_depth", {}).get(line.arm)
        rows.append([escape(line.arm), f"{line.n}{mark}", *cells, number(None if null is None else null.null)])
    return table(["Arm", "Runs", *(board.metric.label for board in boards), "Null dip"], rows)


def _board(board: Board) -> str:
    """The differences of one metric, as a list that can be folded."""
    rows = leader_rows(board, own_interval=False)
    if len(rows) < 2:
        return ""
    head = f"**{board.metric.label}**, minus {escape(board.baseline)}"
    return (
        f"{head}\n\n{table(['Arm', 'Runs', 'IQM', 'Difference', 'Better', 'P(better)', 'A/A', 'Null', 'Says'], rows)}"
    )


def _group(result: GroupResult, found: Findings) -> list[str]:
    """One task and agent."""
    comparison, label = result.comparison, result.group.label
    mine = [picture for picture in found.pictures if picture.about == label]
    parts = [
        f"### {escape(label)}",
        _arms(result),
        "\n".join(f"* {escape(text)}" for text in arm_sentences(comparison).values()),
        *(_image(picture) for picture in mine if picture.kind == "curves"),
    ]
    links = [f"[{picture.kind}](plots/{picture.path.name})" for picture in mine if picture.kind != "curves"]
    parts.append(f"More: {', '.join(links)}." if links else "")
    return parts


def _arms(result: GroupResult) -> str:
    """Every arm of one task and agent, with the verdict beside each effect."""
    comparison = result.comparison
    boards = {board.metric.key: {line.arm: line for line in board.lines} for board in result.boards}
    rows = []
    for column in comparison.columns:
        name, outcome = column.arm.name, column.outcome
        cells = [escape(name) + (" (baseline)" if column is comparison.baseline else "")]
        cells += [f"{outcome.n}{FEW if outcome.n <= 8 else ''}", number(outcome.j0), number(outcome.null_dip)]
        for metric in BOARDS:
            line = boards.get(metric.key, {}).get(name)
            if line is None:
                cells.append("-")
                continue
            says = f" ({line.says})" if line.says else ""
            never = f", {line.censored} never" if metric.key == "recovery" and line.censored else ""
            cells.append(f"{number(None if line.mean is None else line.mean.mean, metric)}{never}{says}")
        cells.append(f"{outcome.dropped} of {outcome.n}")
        rows.append(cells)
    header = ["Arm", "Seeds", "J0", "Null dip", *(metric.label for metric in BOARDS), "Dropped"]
    aa = [f"{b.metric.label} {number(b.aa, b.metric)}" for b in result.boards if b.aa is not None]
    pair = f"The A/A pair differs by: {', '.join(aa)}." if aa else "There is no A/A pair."
    unit = "points" if comparison.unit == "score" else "return"
    return (
        f"{table(header, rows)}\n\nMeans over seeds in {unit}, over {comparison.budget:,.0f} online steps; in brackets "
        f"what the difference from {escape(comparison.baseline.arm.name)} says. {pair}"
    )


def _pictures(found: Findings, kind: str) -> list[str]:
    return [_image(picture) for picture in found.pictures if picture.kind == kind]


def _image(picture: Picture) -> str:
    return f"![{escape(picture.caption)}](plots/{picture.path.name})"


def _lost(found: Findings) -> str:
    lost = losses(found.groups)
    if not lost:
        return "Nothing: every planned run is completed, and its evaluations are whole."
    by_run: dict[tuple[str, str, str, str, str, str], list[int]] = {}
    for one in lost:
        run = one.run
        by_run.setdefault((run.task, run.agent, run.arm, one.status, one.reason, run.name), []).append(one.seed)
    rows = [
        [escape(task), escape(agent), escape(arm), listed_seeds(seeds), status, escape(reason), escape(name)]
        for (task, agent, arm, status, reason, name), seeds in by_run.items()
    ]
    kinds = {status for _, _, _, status, _, _ in by_run}
    told = "; ".join(f"{status}: {words}" for status, words in STATUSES.items() if status in kinds)
    header = ["Task", "Agent", "Arm", "Seeds", "Status", "Why", "Folder"]
    told = f"{told[:1].upper()}{told[1:]}. These are in results.csv, and in no other table."
    return f"{table(header, rows, left=7)}\n\n{told}"


def _price(found: Findings) -> str:
    """What it cost: seconds and updates a second, by agent and arm."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in found.rows:
        if row["wall_s"] is not None and row["status"] == "completed":
            cells.setdefault((str(row["agent"]), str(row["arm"])), []).append(row)
    if not cells:
        return "Nobody wrote down how long the runs took."
    rows = []
    for (agent, arm), own in cells.items():
        share = [float(row["wall_s"]) / max(1, int(row["members"] or 1)) for row in own]
        speeds = [float(row["updates_per_s"]) for row in own if row["updates_per_s"] is not None]
        members = sorted({int(row["members"]) for row in own if row["members"] is not None})
        rows.append(
            [
                escape(agent),
                escape(arm),
                str(len(own)),
                f"{sum(share):,.0f}",
                f"{np.median(share):,.1f}",
                f"{np.median(speeds):,.0f}" if speeds else "-",
                f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]) if members else "-",
            ]
        )
    devices = list(dict.fromkeys(str(row["device"]) for row in found.rows if row["device"]))
    header = ["Agent", "Arm", "Runs", "Seconds in all", "Seconds a run", "Updates/s", "Population"]
    total = sum(float(row["wall_s"]) / max(1, int(row["members"] or 1)) for own in cells.values() for row in own)
    return (
        f"{table(header, rows, left=2)}\n\nIn all {total:,.0f} seconds of runs on "
        f"{escape(', '.join(devices) or 'a device not on record')}, evaluations included and shared pretrainings not. "
        "A run's seconds are its share of the population it was trained in; updates/s are those of the whole "
        f"population after the switch (median), and of several arms in one population the same.{_shared(found.study)}"
    )


def _shared(study: Study) -> str:
    """What the jobs took that runs share."""
    took: dict[str, list[float]] = {}
    for job in study.jobs.values():
        try:
            content = json.loads((study.root / "jobs" / job.id / "done.json").read_text(encoding="utf-8"))
            took.setdefault(job.kind, []).append(float(content["wall_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    words = {"data": "making data", "pretrain": "pretrainings"}
    told = [
        f"{words[k]} {sum(v):,.0f} seconds ({len(v)} job{'s' if len(v) > 1 else ''})"
        for k, v in took.items()
        if k in words
    ]
    return f" Beside these: {', '.join(told)}." if told else ""


def _made(found: Findings) -> str:
    study = found.study
    versions = ", ".join(f"{name} {value}" for name, value in study.versions.items() if name != "commit")
    lines = [f"* Command: {code(study.command)}" if study.command else "* Command: not on record"]
    lines.append(f"* Commit: {escape(study.commit or 'not a source checkout')}")
    lines.append(f"* Versions: {escape(versions or 'not on record')}")
    own = sorted({str(row["commit"]) for row in found.rows if row["commit"]})
    if len(own) > 1:
        lines.append(f"* Runs were made by several commits: {escape(', '.join(own))}")
    lines.append("* Seeds: " + listed_seeds([seed for run in study.runs for seed in run.seeds]))
    dips = ", ".join(m.label.lower() for m in BOARDS if m.key in ON_DIPS)
    lines.append(
        f"* Words: a drop is a dip that exceeds its null dip by more than {DROP_MARGIN:g} points. Noise: a difference "
        "no larger than the A/A pair's, or that matters to nobody (docs/report.md). Not decided: larger, but neither "
        f"the test nor all seeds (three at least) agree. No verdict ({dips}): the score at the switch is within noise "
        f"of random, or evaluation ends before twice the ramp. {FEW}: 8 seeds or fewer. Recovery is a share of the "
        "budget, 1 where it never came."
    )
    return "\n".join(lines)
