"""Tables of what `speed` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from o2o_smooth.benchmarks.speed_run import LOOP


def report(result: Mapping[str, Any]) -> Group:
    """Everything that was measured, for a terminal."""
    parts: list[Table | Text] = []
    if "rows" in result:
        parts += [_rows(result), *_lines(result)]
    if result.get("runs"):
        parts.append(_runs(result["runs"]))
    parts += [_curve(curve) for curve in result.get("growth", [])]
    if "online" in result:
        parts.append(_plain("Interaction and learning under load", result["online"]))
    return Group(*parts)


def number(value: float | None) -> str:
    """Three figures, but whole from a hundred on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratios(row: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How many times as many member-updates as each peer, at the same threads, widths and batch."""
    same = ("agent", "threads", "hidden_dims", "batch")
    return {
        peer["implementation"]: row["member_updates_per_s"] / peer["member_updates_per_s"]
        for peer in peers
        if all(peer[key] == row[key] for key in same)
    }


def _table(title: str, *, caption: str | None = None) -> Table:
    """A table that fits narrow terminals."""
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _rows(result: Mapping[str, Any]) -> Table:
    names = sorted({peer["implementation"] for peer in result["peers"]})
    table = _table("Updates per second, sampling included")
    columns = ["agent", "net", "prec.", "members", "threads", "updates/s", "range", "limit", "share"]
    for column in (*columns, *(f"x {name}" for name in names)):
        table.add_column(column, justify="left" if column in ("agent", "net", "prec.") else "right", no_wrap=True)
    for row in [*result["rows"], *result["peers"]]:
        own = row["implementation"] == "o2o_smooth"
        found = ratios(row, result["peers"]) if own else {}
        share = row["share_of_limit"]
        table.add_row(
            row["agent"] if own else f"{row['agent']}, {row['implementation']}",
            f"{row['depth']}x{row['width']}",
            row["precision"],
            str(row["members"]),
            str(row["threads"]),
            number(row["updates_per_s"]) + ("~" if row["contended"] else ""),
            f"{number(row['lowest'])}-{number(row['highest'])}",
            number(row["limit_updates_per_s"]),
            "-" if share is None else f"{100 * share:.0f}%",
            *(f"{found[name]:.2f}" if name in found else "" for name in names),
        )
    return table


def _lines(result: Mapping[str, Any]) -> list[Text]:
    peaks = ", ".join(
        f"{number(p['gflops'])} GFLOP/s in {p['precision']} with {p['threads']} thread{'s' * (p['threads'] > 1)}"
        for p in result["peaks"]
    )
    slices = result["slices"]
    lines = [f"limit: the update's matrix products at the rate of a large one, {peaks}; an update moves all members"]
    if slices["filter"]:
        total = slices["kept"] + slices["dropped"]
        lines.append(f"{slices['dropped']} of {total} slices dropped: other processes were running")
        if any(row["contended"] for row in [*result["rows"], *result["peers"]]):
            lines.append("~ no slice was undisturbed; the least disturbed third is shown. Try again on an idle machine")
    else:
        lines.append("this system does not tell who else uses the CPU: no slice was dropped")
    started = ", ".join(f"{s:.1f} s" for s in result["import_s"].values())
    first: dict[str, list[float]] = {}
    for row in [*result["rows"], *result["peers"]]:
        name = row["agent"] if row["implementation"] == "o2o_smooth" else f"{row['agent']}, {row['implementation']}"
        first.setdefault(name, []).append(row["first_update_s"])
    spans = "; ".join(
        f"{name} {number(min(s))}" + (f"-{number(max(s))}" if len(s) > 1 else "") for name, s in first.items()
    )
    lines.append(f"first update, from nothing, in seconds: {spans}; importing takes {started} before that")
    if result["absent_peers"]:
        lines.append(
            f"not installed: {', '.join(result['absent_peers'])}; --peers-python PYTHON times them in an environment "
            f"of their own"
        )
    reasons: dict[str, list[str]] = {}
    for missing in result["missing"]:
        parts = [str(missing[k]) for k in ("implementation", "agent", "precision") if k in missing]
        reasons.setdefault(missing["reason"], []).append(" ".join(dict.fromkeys(parts)))
    lines += [f"not timed: {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]
    return [Text(line) for line in lines]


def _runs(runs: Sequence[Mapping[str, Any]]) -> Table:
    first = runs[0]
    table = _table(f"Where a run's time goes, %: {first['agent']} on {first['task']}, UTD {first['utd']:g}")
    for column in ("phase", "mem.", *(part.removesuffix("uate") for part in LOOP), "other", "upd./s", "steps/s"):
        table.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
    for run in runs:
        shares = [f"{100 * run['shares'][part]:.1f}" if run["seconds"][part] else "" for part in (*LOOP, "other")]
        steps = run.get("env_steps_per_s")
        table.add_row(
            run["phase"], str(run["members"]), *shares, number(run["updates_per_s"]), number(steps) if steps else ""
        )
    return table


def _curve(curve: Mapping[str, Any]) -> Table:
    unit = "env step" if curve["axis"] == "utd" else "update"
    verdict = "worse than linear" if curve["worse_than_linear"] else "no worse than linear"
    table = _table(
        f"{curve['agent']} {curve['precision']}: cost by {curve['axis']} ({verdict})",
        caption="\n".join(f"{m['value']:,}: {m['reason']}" for m in curve["missing"]) or None,
    )
    for column in (curve["axis"], f"ms an {unit}", "range", f"{unit}s/s", "work", "exponent"):
        table.add_column(column, justify="right")
    base = curve["points"][0]["work"]
    for p in curve["points"]:
        table.add_row(
            f"{p['value']:,}",
            number(1e3 * p["cost_s"]),
            f"{number(1e3 * p['lowest'])} .. {number(1e3 * p['highest'])}",
            number(1 / p["cost_s"]),
            f"{p['work'] / base:.3g}x",
            "" if p["exponent"] is None else f"{p['exponent']:.2f}",
        )
    return table


def _plain(title: str, values: Mapping[str, Any]) -> Table:
    table = _table(title)
    table.show_header = False
    for name, value in values.items():
        table.add_row(name.replace("_", " "), number(value) if isinstance(value, float) else str(value))
    return table
