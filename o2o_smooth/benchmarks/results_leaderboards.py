"""`leaderboards.md`: every metric by task and agent, with all that stands behind a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from o2o_smooth.benchmarks.results_boards import BOARDS, Board, GroupResult, Line
from o2o_smooth.benchmarks.results_tables import escape, number, span, table
from o2o_smooth.stability.compared import Metric
from o2o_smooth.stability.statistics import Interval

LEADERBOARDS = "leaderboards.md"
FEW = "†"


def leaderboards_page(suite: str, results: Sequence[GroupResult]) -> str:
    """The page, in Markdown: a section a metric, a table a task and agent."""
    parts = [
        f"# Leaderboards: {escape(suite)}",
        "The best first. Mean [95 % interval] over seeds; IQM: interquartile mean [95 % stratified bootstrap]. "
        "Difference: arm minus baseline over the seeds that both have, which share their pretraining. Better: in how "
        "many of these pairs the arm is better. P(better): how likely a run of the arm beats one of the baseline. A/A: "
        "how much one arm run twice differs; a difference no larger is noise. Null: what evaluation noise alone would "
        f"show. {FEW}: 8 seeds or fewer, where bootstraps are too narrow.",
    ]
    for metric in BOARDS:
        boards = [(result, b) for result in results for b in result.boards if b.metric.key == metric.key]
        if not boards:
            continue
        parts.append(f"## {metric.label}")
        if words := _MEANING.get(metric.key):
            parts.append(words)
        for result, board in boards:
            parts.append(f"### {escape(result.group.label)}")
            header = ["Arm", "Seeds", "Mean", "IQM", f"Minus {escape(board.baseline)}", "Better", "P(better)"]
            parts.append(table([*header, "A/A", "Null", "Says"], leader_rows(board, own_interval=True)))
    if len(parts) == 2:
        parts.append("No run is completed that could be compared.")
    return "\n\n".join(parts) + "\n"


_MEANING = {
    "final": "The last evaluation within the budget; higher is better.",
    "dip_depth": "How far the lowest evaluation after the switch lies under the score at the switch; lower is better.",
    "dip_area": "Mean loss under the score at the switch, over the budget; lower is better.",
    "recovery": "Share of the budget until the score is back, cut at 1 where it never is (counted in brackets); 0 "
    "where nothing was lost; lower is better.",
    "regret": "What is missing to a score of 100 on average, as a share; lower is better.",
    "late_collapse": "The best score seen minus the final one; lower is better.",
}


def leader_rows(board: Board, *, own_interval: bool) -> list[list[str]]:
    """The lines of a leaderboard as cells.

    Args:
        board: The leaderboard.
        own_interval: Whether arms have a mean with an interval beside the interquartile mean.
    """
    return [_cells(line, board, own_interval=own_interval) for line in board.lines]


def _cells(line: Line, board: Board, *, own_interval: bool) -> list[str]:
    metric = board.metric
    never = f" ({line.censored} never)" if line.censored and metric.key == "recovery" else ""
    cells = [escape(line.arm) + (" (baseline)" if line.arm == board.baseline else "")]
    cells.append(f"{line.n}{FEW if line.few else ''}")
    if own_interval:
        cells.append(span(line.mean, metric) + never)
        cells.append(span(line.iqm, metric))
    else:
        cells.append(span(line.iqm, metric) + never)
    one = line.difference
    cells.append("-" if one is None else _difference(line, metric))
    cells.append("-" if one is None else f"{one.better} of {one.n}")
    cells.append("-" if line.improvement is None else _chance(line.improvement))
    cells.append("-" if one is None else number(board.aa, metric))
    cells.append(number(line.null, metric))
    cells.append(line.says or "-")
    return cells


def _difference(line: Line, metric: Metric) -> str:
    one = line.difference
    assert one is not None
    return span(Interval(one.mean, one.low, one.high, one.n, one.method), metric, signed=True)


def _chance(one: Interval) -> str:
    return f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"
