"""From curves to a table with a row an arm, and what has to be said beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import DataError
from o2o_smooth.stability.curves import Curve, PretrainCurve, Unit, read_curves, read_pretraining
from o2o_smooth.stability.metrics import (
    RECOVERY_MARGIN,
    StabilityMetrics,
    null_area_from_std,
    null_dip_from_std,
    stability_metrics,
)
from o2o_smooth.stability.origin import AND, Origin, check_comparable, offline_data

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "DROP_MARGIN",
    "Curve",
    "Measured",
    "PretrainCurve",
    "Unit",
    "arm_table",
    "measure",
    "read_curves",
    "read_pretraining",
    "render_table",
    "rich_table",
    "switch_line",
    "table_note",
]

DROP_MARGIN = 8.0
"""Points by which a dip must exceed its null dip to count as a drop: two names of one algorithm (an A/A test, 4 seeds)
differed by up to 4.9 points of dip, so less than this is noise."""


@dataclass(frozen=True)
class Measured:
    """One curve beside its noise."""

    metrics: StabilityMetrics
    """What the curve says of the switch."""
    null_dip: float | None
    """What evaluation noise alone would show; None where the spread of the episodes is not known."""
    null_area: float | None
    """The dip area that noise alone would show; None where the null dip is, or was given."""
    dropped: bool
    """Whether the dip exceeds the null dip (0 where not known) by more than `DROP_MARGIN`."""
    recovered: bool
    """Whether a curve that dropped came back."""
    point: float
    """How much of the curve's unit a point is: returns have none, there it is 1 % of |J0|."""


def measure(
    curve: Curve,
    *,
    budget: float | None = None,
    window: float | None = None,
    null_dip: float | None = None,
    random_score: float = 0.0,
) -> Measured:
    """Measure one curve beside its null dip.

    Args:
        curve: One seed's evaluations.
        budget: As in `stability_metrics`.
        window: As in `stability_metrics`.
        null_dip: Where it was measured; else it is estimated from the spread of the episodes at the switch.
        random_score: As in `stability_metrics`.

    Raises:
        DataError: The curve has no metrics.
    """
    point = abs(float(curve.scores[0])) / 100 if curve.unit == "return" else 1.0
    try:
        metrics = stability_metrics(
            curve.env_steps,
            curve.scores,
            budget=budget,
            window=window,
            recovery_margin=RECOVERY_MARGIN * point,
            random_score=random_score,
        )
    except ValueError as error:
        raise DataError(f"arm {curve.arm!r}, seed {curve.seed}: {error}") from error
    noise = null_dip if null_dip is not None else _estimated_null_dip(curve, window or budget)
    dropped = metrics.dip_depth > (noise or 0.0) + DROP_MARGIN * point
    area = None if null_dip is not None else _estimated_null_area(curve, budget)
    return Measured(metrics, noise, area, dropped, dropped and metrics.recovery_steps is not None, point)


def arm_table(
    arms: Mapping[str, Sequence[Curve]],
    *,
    budget: float | None = None,
    null_dips: Mapping[str, float] | None = None,
    mix_provenance: bool = False,
    window: float | None = None,
) -> list[dict[str, Any]]:
    """A row an arm, in the order given, of plain Python values.

    Keys: `arm`, `unit`, `n` (seeds); `j0`, `dip`, `dip_area`, `final` (means over seeds); `dip_time` (the median);
    `null_dip` (mean over seeds, None where the spread of the episodes is not known); `dropped` (seeds whose dip exceeds
    their null dip by more than `DROP_MARGIN`) and `recovered` (how many of *those* came back, and stayed for two
    evaluations, to within `RECOVERY_MARGIN` of J0). Returns have no points: there a point is 1 % of the seed's |J0|.
    `provenance`, `dataset` and `behaviour` (the mean return of the offline data, in `unit`) tell what the arm learned
    from, None where that is not known; where its seeds had several sets, these are joined, and `behaviour` is a mean.

    Scores learned from data of different provenance are refused, for the sets differ. Arms without a provenance stand
    beside any: an agent that learned online alone owes its score to the environment, whatever data the others had.
    Scores that count from different references are refused always.

    Args:
        arms: Curves by the name of their arm, at least one each.
        budget: Online steps that count; each curve's last evaluation where None.
        null_dips: The null dip by arm, where it was measured (`null_dip`). Elsewhere it is estimated, per seed, from
            the spread of the episodes at the switch.
        mix_provenance: Let arms of different provenance share the table all the same; it says so then.
        window: How long after the switch a minimum counts as the dip; the budget where None.

    Raises:
        DataError: An arm without curves, curves of different units, provenance or references, or a curve that has no
            metrics.
    """
    units = {curve.unit for curves in arms.values() for curve in curves}
    if len(units) > 1:
        raise DataError("curves in normalised scores and curves in returns cannot share a table")
    check_comparable(arms, mix_provenance=mix_provenance)
    return [_arm_row(arm, curves, budget, window, (null_dips or {}).get(arm)) for arm, curves in arms.items()]


def render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `arm_table` as a markdown table, aligned to be read as plain text too."""
    cells = [_HEADERS, *_cells(rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADERS))]
    lines = ["| " + " | ".join(_pad(text, i, widths[i]) for i, text in enumerate(line)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def rich_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """The rows of `arm_table` as a table for a terminal, with the meaning of its columns under it."""
    from rich import box
    from rich.markup import escape  # names of folders and data are the user's
    from rich.table import Table

    note = escape(table_note(rows))
    table = Table(title=title, caption=note, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for i, header in enumerate(_NARROW_HEADERS):
        table.add_column(
            header, justify="left" if i == 0 else "right", no_wrap=i > 0, vertical="bottom", overflow="fold"
        )
    for cells in _cells(rows):
        table.add_row(*map(escape, cells))
    return table


def table_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the arms learned from and what the columns of the table mean, in one paragraph."""
    returns = any(row["unit"] == "return" for row in rows)
    margin = f"{DROP_MARGIN:g} % of |J0|" if returns else f"{DROP_MARGIN:g} points"
    back = f"{RECOVERY_MARGIN:g} % of |J0|" if returns else f"{RECOVERY_MARGIN:g} points"
    return (
        _data_note(rows)
        + ("Returns: the task has no reference scores. " if returns else "")
        + "J0: at the switch. Null dip: what evaluation noise alone would show. Dip, area (mean points below J0), "
        "final: means over seeds; minimum at: median env steps. Dropped: dips that exceed the null dip by over "
        f"{margin}. Recovered: of those, back within {back} of J0."
    )


def switch_line(curves: Sequence[Curve]) -> str:
    """The scores of a run that stopped at the switch, beside its data's own; ± is the deviation over seeds."""
    first, values = curves[0], np.array([curve.scores[0] for curve in curves])
    spread = f" ± {_amount(float(values.std(ddof=1)), first.unit)}" if len(values) > 1 else ""
    seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    line = f"{first.unit} at the switch {_amount(float(values.mean()), first.unit)}{spread} ({seeds})"
    if first.behaviour is None:
        return line
    return f"{line}; offline data {_amount(first.behaviour, first.unit)} ({first.provenance or 'provenance not known'})"


_HEADERS = ("Arm", "Seeds", "J0", "Null dip", "Dip", "Dip area", "Minimum at", "Final", "Dropped", "Recovered")
_NARROW_HEADERS = ("Arm", "n", "J0", "Null\ndip", "Dip", "Dip\narea", "Min.\nat", "Final", "Dropped", "Re-\ncovered")
"""So that ten columns fit in 80 characters."""


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as text; where provenances are mixed, each arm is marked with its own."""
    mixed = len(_provenances(rows)) > 1
    return [_row_cells(row, mixed=mixed) for row in rows]


def _row_cells(row: Mapping[str, Any], *, mixed: bool) -> tuple[str, ...]:
    """One row as text."""
    dropped, small = row["dropped"], row["unit"] == "return" and abs(row["j0"]) < 100

    def amount(value: float) -> str:
        return f"{value:.2f}" if small else f"{value:.1f}"

    return (
        f"{row['arm']} ({row['provenance']})" if mixed and row["provenance"] else str(row["arm"]),
        str(row["n"]),
        amount(row["j0"]),
        "-" if row["null_dip"] is None else amount(row["null_dip"]),
        amount(row["dip"]),
        amount(row["dip_area"]),
        f"{row['dip_time']:,.0f}",
        amount(row["final"]),
        "-" if row["null_dip"] is None else f"{dropped} of {row['n']}",
        f"{row['recovered']} of {dropped}" if dropped and row["null_dip"] is not None else "-",
    )


def _amount(value: float, unit: Unit) -> str:
    """A score or a return; small returns keep two digits."""
    return f"{value:.2f}" if unit == "return" and abs(value) < 100 else f"{value:.1f}"


def _data_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """The offline data behind the rows with their own mean, and which arms learned from which where that differs."""
    data = offline_data(
        {
            row["arm"]: [Origin(provenance=row["provenance"], dataset=row["dataset"], behaviour=row["behaviour"])]
            for row in rows
        }
    )
    if not data:
        return ""
    unit = rows[0]["unit"]
    parts = [
        f"{one.name}, mean {unit} {'not known' if one.behaviour is None else _amount(one.behaviour, unit)}"
        + (f" ({', '.join(one.arms)})" if len(one.arms) < len(rows) else "")
        for one in data
    ]
    mixed = _provenances(rows)
    warning = f"MIXED PROVENANCE ({', '.join(mixed)}): these scores cannot be compared. " if len(mixed) > 1 else ""
    return f"{warning}Offline data: {'; '.join(parts)}. "


def _provenances(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The provenances that are known, each once."""
    return list(dict.fromkeys(name for row in rows if row["provenance"] for name in row["provenance"].split(AND)))


def _joined(names: Iterable[str | None]) -> str | None:
    """What all seeds of an arm share, or all that they had."""
    return AND.join(dict.fromkeys(name for name in names if name is not None)) or None


def _pad(text: str, column: int, width: int) -> str:
    """Names to the left, numbers to the right."""
    return text.ljust(width) if column == 0 else text.rjust(width)


def _arm_row(
    arm: str, curves: Sequence[Curve], budget: float | None, window: float | None, measured: float | None
) -> dict[str, Any]:
    """The row of one arm."""
    if not curves:
        raise DataError(f"arm {arm!r} has no curves")
    found = [measure(replace(curve, arm=arm), budget=budget, window=window, null_dip=measured) for curve in curves]
    metrics, null_dips = [one.metrics for one in found], [one.null_dip for one in found]
    known = [value for value in null_dips if value is not None]
    behaviours = [curve.behaviour for curve in curves if curve.behaviour is not None]
    return {
        "arm": arm,
        "unit": curves[0].unit,
        "n": len(curves),
        "j0": float(np.mean([m.j0 for m in metrics])),
        "null_dip": float(np.mean(known)) if len(known) == len(curves) else None,
        "dip": float(np.mean([m.dip_depth for m in metrics])),
        "dip_area": float(np.mean([m.dip_area for m in metrics])),
        "dip_time": float(np.median([m.dip_time for m in metrics])),
        "final": float(np.mean([m.final for m in metrics])),
        "dropped": sum(one.dropped for one in found),
        "recovered": sum(one.recovered for one in found),
        "provenance": _joined(curve.provenance for curve in curves),
        "dataset": _joined(curve.dataset for curve in curves),
        "behaviour": float(np.mean(behaviours)) if behaviours else None,
    }


def _estimated_null_dip(curve: Curve, budget: float | None) -> float | None:
    """The null dip of a curve from the spread of its episodes at the switch."""
    noise = _noise(curve, budget)
    if noise is None:
        return None
    std, after, switch_episodes, episodes = noise
    return null_dip_from_std(std, evaluations=int(after.sum()), episodes=episodes, switch_episodes=switch_episodes)


def _estimated_null_area(curve: Curve, budget: float | None) -> float | None:
    """The null area of a curve, likewise."""
    noise = _noise(curve, budget)
    if noise is None:
        return None
    std, after, switch_episodes, episodes = noise
    steps = np.append(0.0, curve.env_steps[after])
    return null_area_from_std(std, steps, episodes=episodes, switch_episodes=switch_episodes)


def _noise(curve: Curve, budget: float | None) -> tuple[float, NDArray[np.bool_], int, int] | None:
    """Spread at the switch, which evaluations count, and the episodes behind J0 and behind one of those."""
    if curve.spread is None or curve.episodes is None or curve.episodes[0] < 2:
        return None  # one episode has no spread, which is not the same as no noise
    after = curve.env_steps > 0
    if budget is not None:
        after &= curve.env_steps <= budget
    if not after.any():
        return None
    return float(curve.spread[0]), after, int(curve.episodes[0]), int(np.median(curve.episodes[after]))
