"""From the evaluations of runs to curves, and from curves to a table with a row an arm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.stability.metrics import RECOVERY_MARGIN, null_dip_from_std, stability_metrics

if TYPE_CHECKING:
    from rich.table import Table

FloatArray = NDArray[np.float64]
Unit = Literal["score", "return"]

EVALUATIONS = "evaluations.jsonl"
MANIFEST = "manifest.json"

DROP_MARGIN = 8.0
"""Points by which a dip must exceed its null dip to count as a drop: two names of one algorithm (an A/A test, 4 seeds)
differed by up to 4.9 points of dip, so less than this is noise."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One seed's evaluations from the switch on."""

    run: str
    """Name of the run it belongs to."""
    arm: str
    """What was done at the switch: the name under which seeds are put together."""
    seed: int
    """The seed."""
    env_steps: FloatArray
    """(N,) environment steps since the switch, rising; the first is 0."""
    scores: FloatArray
    """(N,) mean of each evaluation, in `unit`."""
    unit: Unit = "score"
    """Normalised scores (0 random, 100 reference), or plain returns where the task has no reference."""
    spread: FloatArray | None = None
    """(N,) standard deviation over the episodes of each evaluation, in `unit`; None where not known."""
    episodes: NDArray[np.int64] | None = None
    """(N,) episodes behind each evaluation; None where not known."""


@dataclass(frozen=True, eq=False)
class PretrainCurve:
    """One seed's evaluations before the switch."""

    run: str
    """Name of the run it belongs to."""
    seed: int
    """The seed."""
    updates: FloatArray
    """(N,) offline updates so far, rising."""
    scores: FloatArray
    """(N,) mean of each evaluation, in `unit`."""
    unit: Unit = "score"
    """As in `Curve`."""


def read_curves(run_dir: Path, arm: str | None = None) -> list[Curve]:
    """The curves of a run folder, one a seed, from the switch on; none where the switch was not reached.

    Where any row of the run lacks a normalised score, all its curves are in returns, and `unit` says so. An evaluation
    that was written twice (a run that was resumed) counts once, as it was written last.

    Args:
        run_dir: A folder with `evaluations.jsonl`.
        arm: Name of the arm; where None the `arm` of the manifest if it has one, or else the folder's name.

    Raises:
        O2OError: The file is absent or broken, or a seed has online evaluations but none at the switch.
    """
    rows = _read_rows(run_dir)
    unit, scale = _unit(rows)
    arm = _arm_name(run_dir) if arm is None else arm
    curves = []
    for seed, mine in _by_seed(row for row in rows if row["phase"] in ("switch", "online")).items():
        points = {float(row["env_steps"]): row for row in mine}
        if 0.0 not in points:
            raise O2OError(f"{run_dir / EVALUATIONS}: seed {seed} has no evaluation at the switch (env_steps 0)")
        ordered = [points[step] for step in sorted(points)]
        curves.append(
            Curve(
                run=run_dir.name,
                arm=arm,
                seed=seed,
                env_steps=np.array(sorted(points)),
                scores=_values(ordered, unit),
                unit=unit,
                spread=_spread(ordered, scale),
                episodes=_episodes(ordered),
            )
        )
    return curves


def read_pretraining(run_dir: Path) -> list[PretrainCurve]:
    """The evaluations of a run folder before the switch, one curve a seed, in the unit of `read_curves`.

    Raises:
        O2OError: The file is absent or broken.
    """
    rows = _read_rows(run_dir)
    unit, _ = _unit(rows)
    curves = []
    for seed, mine in _by_seed(row for row in rows if row["phase"] == "offline").items():
        points = {float(row["updates"]): row for row in mine}
        ordered = [points[update] for update in sorted(points)]
        curves.append(PretrainCurve(run_dir.name, seed, np.array(sorted(points)), _values(ordered, unit), unit))
    return curves


def arm_table(
    arms: Mapping[str, Sequence[Curve]],
    *,
    budget: float | None = None,
    null_dips: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """A row an arm, in the order given, of plain Python values.

    Keys: `arm`, `unit`, `n` (seeds); `j0`, `dip`, `dip_area`, `final` (means over seeds); `dip_time` (the median);
    `null_dip` (mean over seeds, None where the spread of the episodes is not known); `dropped` (seeds whose dip exceeds
    their null dip by more than `DROP_MARGIN`) and `recovered` (how many of *those* came back, and stayed for two
    evaluations, to within `RECOVERY_MARGIN` of J0). Returns have no points: there a point is 1 % of the seed's |J0|.

    Args:
        arms: Curves by the name of their arm, at least one each.
        budget: Online steps that count; each curve's last evaluation where None.
        null_dips: The null dip by arm, where it was measured (`null_dip`). Elsewhere it is estimated, per seed, from
            the spread of the episodes at the switch.

    Raises:
        DataError: An arm without curves, curves of different units, or a curve that has no metrics.
    """
    units = {curve.unit for curves in arms.values() for curve in curves}
    if len(units) > 1:
        raise DataError("curves in normalised scores and curves in returns cannot share a table")
    return [_arm_row(arm, curves, budget, (null_dips or {}).get(arm)) for arm, curves in arms.items()]


def render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `arm_table` as a markdown table, aligned to be read as plain text too."""
    cells = [_HEADERS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADERS))]
    lines = ["| " + " | ".join(_pad(text, i, widths[i]) for i, text in enumerate(line)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def rich_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """The rows of `arm_table` as a table for a terminal, with the meaning of its columns under it."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, caption=table_note(rows), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for i, header in enumerate(_NARROW_HEADERS):
        table.add_column(
            header, justify="left" if i == 0 else "right", no_wrap=i > 0, vertical="bottom", overflow="fold"
        )
    for row in rows:
        table.add_row(*_cells(row))
    return table


def table_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the columns of the table mean, in one paragraph."""
    returns = any(row["unit"] == "return" for row in rows)
    margin = f"{DROP_MARGIN:g} % of |J0|" if returns else f"{DROP_MARGIN:g} points"
    back = f"{RECOVERY_MARGIN:g} % of |J0|" if returns else f"{RECOVERY_MARGIN:g} points"
    return (
        ("Returns: the task has no reference scores. " if returns else "")
        + "J0: at the switch. Null dip: what evaluation noise alone would show. Dip, area (mean points below J0), "
        "final: means over seeds; minimum at: median env steps. Dropped: dips that exceed the null dip by over "
        f"{margin}. Recovered: of those, back within {back} of J0."
    )


_HEADERS = ("Arm", "Seeds", "J0", "Null dip", "Dip", "Dip area", "Minimum at", "Final", "Dropped", "Recovered")
_NARROW_HEADERS = ("Arm", "n", "J0", "Null\ndip", "Dip", "Dip\narea", "Min.\nat", "Final", "Dropped", "Re-\ncovered")
"""So that ten columns fit in 80 characters."""


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row as text."""
    dropped, small = row["dropped"], row["unit"] == "return" and abs(row["j0"]) < 100

    def amount(value: float) -> str:
        return f"{value:.2f}" if small else f"{value:.1f}"

    return (
        str(row["arm"]),
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


def _pad(text: str, column: int, width: int) -> str:
    """Names to the left, numbers to the right."""
    return text.ljust(width) if column == 0 else text.rjust(width)


def _arm_row(arm: str, curves: Sequence[Curve], budget: float | None, measured: float | None) -> dict[str, Any]:
    """The row of one arm."""
    if not curves:
        raise DataError(f"arm {arm!r} has no curves")
    metrics, null_dips, dropped, recovered = [], [], 0, 0
    for curve in curves:
        point = abs(float(curve.scores[0])) / 100 if curve.unit == "return" else 1.0
        try:
            mine = stability_metrics(
                curve.env_steps, curve.scores, budget=budget, recovery_margin=RECOVERY_MARGIN * point
            )
        except ValueError as error:
            raise DataError(f"arm {arm!r}, seed {curve.seed}: {error}") from error
        noise = measured if measured is not None else _estimated_null_dip(curve, budget)
        metrics.append(mine)
        null_dips.append(noise)
        if mine.dip_depth > (noise or 0.0) + DROP_MARGIN * point:
            dropped += 1
            recovered += mine.recovery_steps is not None
    known = [value for value in null_dips if value is not None]
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
        "dropped": dropped,
        "recovered": recovered,
    }


def _estimated_null_dip(curve: Curve, budget: float | None) -> float | None:
    """The null dip of a curve from the spread of its episodes at the switch."""
    if curve.spread is None or curve.episodes is None or curve.episodes[0] < 2:
        return None  # one episode has no spread, which is not the same as no noise
    after = curve.env_steps > 0
    if budget is not None:
        after &= curve.env_steps <= budget
    return null_dip_from_std(
        float(curve.spread[0]),
        evaluations=int(after.sum()),
        episodes=int(np.median(curve.episodes[after])),
        switch_episodes=int(curve.episodes[0]),
    )


def _read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `evaluations.jsonl`. A last line without its end is a write that was cut, and not counted."""
    path = run_dir / EVALUATIONS
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise O2OError(f"{path} cannot be read ({error.strerror}): is {run_dir} a run folder?") from error
    lines = text.split("\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = row["phase"], row["env_steps"], row["updates"], row["seed"], row["return_mean"]
        except (ValueError, TypeError, KeyError) as error:
            raise O2OError(f"{path}, line {number} is not an evaluation: {error!r}") from error
        rows.append(row)
    return rows


def _arm_name(run_dir: Path) -> str:
    """The manifest's `arm`, or the folder's name."""
    try:
        manifest = json.loads((run_dir / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return run_dir.name
    name = manifest.get("arm") if isinstance(manifest, dict) else None
    return name if isinstance(name, str) else run_dir.name


def _by_seed(rows: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Rows by seed, seeds rising."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(int(row["seed"]), []).append(row)
    return dict(sorted(found.items()))


def _unit(rows: Sequence[Mapping[str, Any]]) -> tuple[Unit, float | None]:
    """The unit that all rows have, and how much of it a point of return is (None where that cannot be told)."""
    known = [row for row in rows if row["return_mean"] is not None]  # an evaluation that came to NaN tells nothing
    if not known or any(row.get("score") is None for row in known):
        return "return", 1.0
    low = min(known, key=lambda row: float(row["return_mean"]))
    high = max(known, key=lambda row: float(row["return_mean"]))
    width = float(high["return_mean"]) - float(low["return_mean"])
    return "score", (float(high["score"]) - float(low["score"])) / width if width > 0 else None


def _values(rows: Sequence[Mapping[str, Any]], unit: Unit) -> FloatArray:
    """The mean of each evaluation; NaN where the run wrote null."""
    column = "score" if unit == "score" else "return_mean"
    return np.array([math.nan if row.get(column) is None else float(row[column]) for row in rows])


def _spread(rows: Sequence[Mapping[str, Any]], scale: float | None) -> FloatArray | None:
    """The standard deviations of the evaluations, brought to the unit of their means."""
    if scale is None or any(row.get("return_std") is None for row in rows):
        return None
    return np.array([float(row["return_std"]) * abs(scale) for row in rows])


def _episodes(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.int64] | None:
    """The episodes behind the evaluations."""
    if any(row.get("episodes") is None for row in rows):
        return None
    return np.array([int(row["episodes"]) for row in rows], dtype=np.int64)
