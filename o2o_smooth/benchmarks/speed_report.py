"""Tables of what `speed` measured, for terminals and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from o2o_smooth.benchmarks.speed_run import LOOP

TEXT_COLUMNS = ("agent", "net", "prec.", "phase", "what")  # left-aligned; numbers stand right


@dataclass
class Sheet:
    """A table before it is rendered."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Group:
        """For a terminal, also a narrow one."""
        table = Table(title=self.title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in self.columns:
            table.add_column(column, justify="left" if column in TEXT_COLUMNS else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return Group(table, *(Text(note) for note in self.notes))

    def markdown(self) -> str:
        """For documents."""
        rule = ["---" if column in TEXT_COLUMNS else "---:" for column in self.columns]
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def report(result: Mapping[str, Any]) -> Group:
    """Everything that was measured, for a terminal."""
    return Group(*(sheet.rich() for sheet in sheets(result)))


def markdown(result: Mapping[str, Any]) -> str:
    """Everything that was measured, with the command and the machine, as Markdown."""
    machine = result["machine"]
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    about = f"`{result['command']}`, {result['date']}: {machine['cpu']}, {machine['cores']} cores{features}{gpu}"
    kernels = "" if machine["no_kernels"] is None else f" Without the native kernels: {machine['no_kernels']}."
    return "\n".join([f"{about}; {versions}.{kernels}", "", *(sheet.markdown() for sheet in sheets(result))])


def into_document(text: str, result: Mapping[str, Any], document: str) -> str:
    """A document with the tables put between its marks for this kind of result; without marks, the tables alone.

    The marks are lines of their own: `<!-- o2o-smooth speed: KIND -->` and `<!-- end -->`, KIND being rates, growth or
    online.
    """
    kind = next((kind for kind in ("growth", "online") if kind in result), "rates")
    begin, end = f"<!-- o2o-smooth speed: {kind} -->\n", "<!-- end -->\n"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}" if found and closed else text


def sheets(result: Mapping[str, Any]) -> list[Sheet]:
    """The tables, in order."""
    found = []
    if "rows" in result:
        found.append(_rates(result))
    if result.get("break_even"):
        found.append(_break_even(result["break_even"]))
    if result.get("runs"):
        found.append(_runs(result["runs"]))
    found += [_curve(curve) for curve in result.get("growth", [])]
    if "online" in result:
        pairs = [
            (k.replace("_", " "), number(v) if isinstance(v, float) else str(v)) for k, v in result["online"].items()
        ]
        found.append(Sheet("Interaction and learning under load", ("what", "value"), list(pairs)))
    return found


def number(value: float | None) -> str:
    """Three figures, but whole from a hundred on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def span(low: float, high: float) -> str:
    """A range in one word."""
    return f"{number(low)}-{number(high)}"


def ratios(row: Mapping[str, Any], peers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How many times as many member-updates as each peer, at the same threads, widths and batch.

    A disturbed figure is never held against an undisturbed one.
    """
    same = ("agent", "threads", "hidden_dims", "batch", "contended")
    return {
        peer["implementation"]: row["member_updates_per_s"] / peer["member_updates_per_s"]
        for peer in peers
        if all(peer[key] == row[key] for key in same)
    }


def _name(row: Mapping[str, Any]) -> str:
    return str(row["agent"]) if row["implementation"] == "o2o_smooth" else f"{row['agent']}, {row['implementation']}"


def _rates(result: Mapping[str, Any]) -> Sheet:
    peers = sorted({peer["implementation"] for peer in result["peers"]})
    columns = ["agent", "net", "prec.", "mem.", "thr.", "updates/s", "range", "limit", "share"]
    sheet = Sheet("Updates per second, sampling included", [*columns, *(f"x {peer}" for peer in peers)])
    for row in [*result["rows"], *result["peers"]]:
        own = row["implementation"] == "o2o_smooth"
        found = ratios(row, result["peers"]) if own else {}
        share, mark = row["share_of_limit"], "~" if row["contended"] else ""
        sheet.rows.append(
            [
                _name(row),
                f"{row['depth']}x{row['width']}",
                row["precision"] + (" compiled" if own and row["compile"] == "on" else ""),
                str(row["members"]),
                str(row["threads"]),
                number(row["updates_per_s"]) + mark,
                span(row["lowest"], row["highest"]),
                number(row["limit_updates_per_s"]),
                "-" if share is None else f"{100 * share:.0f}%",
                *(f"{found[peer]:.2f}{mark}" if peer in found else "" for peer in peers),
            ]
        )
    sheet.notes = _notes(result)
    return sheet


def _notes(result: Mapping[str, Any]) -> list[str]:
    peaks = ", ".join(
        f"{number(p['gflops'])} GFLOP/s in {p['precision']} with {p['threads']} thread{'s' * (p['threads'] > 1)}"
        for p in result["peaks"]
    )
    slices, every = result["slices"], [*result["rows"], *result["peers"]]
    notes = [f"limit: the update's matrix products at the rate of a large one, {peaks}; an update moves all members"]
    if slices["filter"]:
        total = slices["kept"] + slices["dropped"]
        why = ": other processes were running" if slices["dropped"] else ""
        notes.append(f"{slices['dropped']} of {total} slices dropped{why}")
        if any(row["contended"] for row in every):
            notes.append("~ no slice was undisturbed; the least disturbed third is shown. Try again on an idle machine")
    else:
        notes.append("this system does not tell who else uses the CPU: no slice was dropped")
    first: dict[str, list[float]] = {}
    for row in every:
        first.setdefault(_name(row), []).append(row["first_update_s"])
    spans = "; ".join(f"{k} {span(min(v), max(v)) if len(v) > 1 else number(v[0])}" for k, v in first.items())
    started = ", ".join(f"{s:.1f} s" for s in result["import_s"].values())
    notes.append(f"first update, from nothing, in seconds: {spans}; importing takes {started} before that")
    if result["absent_peers"]:
        absent = ", ".join(result["absent_peers"])
        notes.append(f"not installed: {absent}; --peers-python PYTHON times them in an environment of their own")
    reasons: dict[str, list[str]] = {}
    for missing in result["missing"]:
        parts = [str(missing[k]) for k in ("implementation", "agent", "precision") if k in missing]
        reasons.setdefault(missing["reason"], []).append(" ".join(parts))
    return notes + [f"not timed: {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]


def _break_even(pairs: Sequence[Mapping[str, Any]]) -> Sheet:
    columns = ("agent", "net", "prec.", "mem.", "thr.", "eager/s", "compiled/s", "first, +s", "pays after")
    sheet = Sheet("When torch.compile has paid, in updates", columns)
    for pair in pairs:
        sheet.rows.append(
            [
                pair["agent"],
                f"{pair['depth']}x{pair['width']}",
                pair["precision"],
                str(pair["members"]),
                str(pair["threads"]),
                number(pair["eager_updates_per_s"]),
                number(pair["compiled_updates_per_s"]),
                number(pair["costs_s"]),
                ("never" if pair["updates"] is None else f"{pair['updates']:,}") + ("~" if pair["contended"] else ""),
            ]
        )
    return sheet


def _runs(runs: Sequence[Mapping[str, Any]]) -> Sheet:
    first = runs[0]
    parts = [part.removesuffix("uate") for part in LOOP]
    sheet = Sheet(
        f"Where a run's time goes, in %: {first['agent']} on {first['task']}, UTD {first['utd']:g}",
        ("phase", "mem.", *parts, "other", "upd./s", "steps/s"),
    )
    for run in runs:
        shares = [f"{100 * run['shares'][part]:.1f}" if run["seconds"][part] else "" for part in (*LOOP, "other")]
        steps = number(run["env_steps_per_s"]) if "env_steps_per_s" in run else ""
        rate = number(run["updates_per_s"]) + ("~" if run["contended"] else "")
        sheet.rows.append([run["phase"], str(run["members"]), *shares, rate, steps])
    if any(run["contended"] for run in runs):
        sheet.notes.append("~ other processes were running meanwhile")
    return sheet


def _curve(curve: Mapping[str, Any]) -> Sheet:
    unit = "env step" if curve["axis"] == "utd" else "update"
    verdict = "worse than linear" if curve["worse_than_linear"] else "no worse than linear"
    base = curve["points"][0]["work"]
    return Sheet(
        f"{curve['agent']} {curve['precision']}: cost by {curve['axis']} ({verdict})",
        (str(curve["axis"]), f"ms an {unit}", "range", f"{unit}s/s", "work", "exponent"),
        [
            [
                f"{p['value']:,}",
                number(1e3 * p["cost_s"]) + ("~" if p.get("contended") else ""),
                span(1e3 * p["lowest"], 1e3 * p["highest"]),
                number(1 / p["cost_s"]),
                f"{p['work'] / base:.3g}x",
                "" if p["exponent"] is None else f"{p['exponent']:.2f}",
            ]
            for p in curve["points"]
        ],
        [f"not timed: {m['value']:,}: {m['reason']}" for m in curve["missing"]],
    )
