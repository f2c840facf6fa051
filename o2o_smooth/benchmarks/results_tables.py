"""Markdown tables: names that cannot break them, numbers as precise as they deserve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from o2o_smooth.stability.compared import Metric
from o2o_smooth.stability.statistics import Interval

_SHARES = ("regret", "recovery")


def escape(text: object) -> str:
    """A name in Markdown: shown as it is, in one line, never as a tag or a cell's end."""
    line = " ".join(str(text).split())
    for mark in ("\\", "|", "`", "*", "_", "[", "]", "<", ">", "$"):
        line = line.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return line


def code(text: object) -> str:
    """A command in Markdown, in one line."""
    line = " ".join(str(text).split())
    fence = "``" if "`" in line else "`"
    return f"{fence}{line}{fence}" if fence == "`" else f"{fence} {line} {fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table, aligned to be read as plain text too.

    Args:
        header: Titles of the columns, in Markdown.
        rows: Cells, in Markdown.
        left: How many columns stand to the left; numbers stand to the right.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    text = [
        "| "
        + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def number(value: float | None, metric: Metric | None = None, *, signed: bool = False) -> str:
    """A score, a return, a share or a number of steps; `-` where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if metric is not None and metric.key in _SHARES:
        text = f"{value:+.2f}" if signed else f"{value:.2f}"
    elif metric is not None and metric.steps:
        text = f"{value:+,.0f}" if signed else f"{value:,.0f}"
    else:
        digits = 0 if abs(value) >= 1000 else 1
        text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    zeros = text.strip("+-0.,") == ""
    return text.lstrip("-") if zeros and not signed else text.replace("-", "+", 1) if zeros else text


def span(one: Interval | None, metric: Metric | None = None, *, signed: bool = False) -> str:
    """A mean and its interval: 12.3 [10.0, 15.1]."""
    if one is None:
        return "-"
    mean = number(one.mean, metric, signed=signed)
    if one.n < 2 or not (math.isfinite(one.low) and math.isfinite(one.high)):
        return mean
    return f"{mean} [{number(one.low, metric, signed=signed)}, {number(one.high, metric, signed=signed)}]"
