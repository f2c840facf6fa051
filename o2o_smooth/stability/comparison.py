"""From arms to rows, intervals, paired differences and the facts that `verdict` puts into words."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.stability.arms import CONTROLS, Arm
from o2o_smooth.stability.compared import METRICS, Column, Comparison, Metric, Row, Settings
from o2o_smooth.stability.curves import Curve
from o2o_smooth.stability.intervals import FEW_SEEDS
from o2o_smooth.stability.origin import check_comparable
from o2o_smooth.stability.report import DROP_MARGIN, measure
from o2o_smooth.stability.statistics import Interval, PairedDifference, interval, paired_difference
from o2o_smooth.stability.verdict import Effect, Outcome, Refusal, Unknowns

RAMPS_TO_SEE = 2.0
"""Evaluation must go on for so many ramps: a dip that is only postponed comes at the end of the first."""

FIRST_EVALUATION = 2_000.0
"""A jump falls within a thousand steps; a first evaluation later than this (or a fifth of the budget) misses it."""


def compare(arms: Sequence[Arm], settings: Settings | None = None) -> Comparison:
    """Compare arms with a baseline.

    Raises:
        DataError: Arms that cannot share a table, a curve without metrics, or a budget that nobody reached.
        ConfigError: A baseline that is not there.
    """
    how = settings or Settings()
    if not arms:
        raise DataError("there is nothing to report: no arms")
    by_name = {arm.name: arm.curves for arm in arms}
    units = {curve.unit for curves in by_name.values() for curve in curves}
    if len(units) > 1:
        raise DataError("curves in normalised scores and curves in returns cannot share a table")
    check_comparable(by_name, mix_provenance=how.mix_provenance)
    unit = units.pop()
    ordered = _ordered(arms, choose_baseline(arms, how.baseline))
    ends = [float(curve.env_steps[-1]) for arm in arms for curve in arm.curves]
    budget = min(ends) if how.budget is None else how.budget
    random = how.random_score if how.random_score is not None else (0.0 if unit == "score" else None)
    rows = {arm.name: tuple(_row(curve, budget, how.window, random) for curve in arm.curves) for arm in ordered}
    aa, drawn = _aa_differences(ordered, rows)
    columns = []
    for arm in ordered:
        mine, base = rows[arm.name], rows[ordered[0].name]
        differences = {} if arm is ordered[0] else _differences(mine, base, how)
        effects = {} if arm is ordered[0] else _effects(mine, base, differences, aa, drawn)
        means = {m.key: _mean(mine, m, how) for m in METRICS}
        columns.append(
            Column(arm, mine, means, differences, effects, _outcome(arm, mine, budget, random, means["j0"], how))
        )
    return Comparison(
        columns=tuple(columns),
        budget=budget,
        window=how.window,
        unit=unit,
        method=how.method,
        confidence=how.confidence,
        aa=aa,
        unknowns=_unknowns(columns, random is None, budget, how),
        notes=_notes(columns, ends, budget, how),
    )


def choose_baseline(arms: Sequence[Arm], wanted: str | None) -> Arm:
    """The arm that everything is compared with: the one wanted, or the first jump, or the first.

    Raises:
        ConfigError: There is none of that name.
    """
    if wanted is None:
        for role in ("jump", "mixed"):
            if found := [arm for arm in arms if arm.role == role]:
                return found[0]
        return next((arm for arm in arms if arm.role != "twin"), arms[0])
    for arm in arms:
        if arm.name == wanted:
            return arm
    names = [arm.name for arm in arms]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names)}"
    raise ConfigError(f"there is no arm '{wanted}' to be the baseline; {hint}")


def _ordered(arms: Sequence[Arm], baseline: Arm) -> list[Arm]:
    rest = [arm for arm in arms if arm is not baseline]
    return [baseline, *sorted(rest, key=lambda arm: arm.control)]


def _row(curve: Curve, budget: float, window: float | None, random: float | None) -> Row:
    found = measure(curve, budget=budget, window=window, random_score=random or 0.0)
    low = found.metrics.j0 - (found.null_dip or 0.0) - DROP_MARGIN * found.point
    inside = (curve.env_steps > 0) & (curve.env_steps <= (window or budget))
    below = np.flatnonzero(inside & (curve.scores < low))
    dropped_at = float(curve.env_steps[below[0]]) if len(below) else None
    return Row(curve, found, budget, dropped_at, relative=random is not None)


def _value(row: Row, key: str) -> float | None:
    value = row.values()[key]
    return None if value is None else float(value)


def _mean(rows: Sequence[Row], metric: Metric, how: Settings) -> Interval | None:
    """The mean of a metric over seeds."""
    values = [_value(row, metric.key) for row in rows]
    known = [value for value in values if value is not None]
    return interval(known, method=how.method, confidence=how.confidence) if known else None


def _paired(mine: Sequence[Row], base: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """A metric over the seeds that both have and for which both know it."""
    theirs = {row.curve.seed: _value(row, key) for row in base}
    pairs = [(_value(row, key), theirs.get(row.curve.seed)) for row in mine]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in known], [b for _, b in known]


def _differences(mine: Sequence[Row], base: Sequence[Row], how: Settings) -> dict[str, PairedDifference | None]:
    found: dict[str, PairedDifference | None] = {}
    for key, better in [*((m.key, m.higher_is_better) for m in METRICS), ("drop_steps", None)]:
        a, b = _paired(mine, base, key)
        found[key] = (
            paired_difference(a, b, method=how.method, confidence=how.confidence, higher_is_better=better is not False)
            if a
            else None
        )
    return found


def _effects(
    mine: Sequence[Row],
    base: Sequence[Row],
    differences: Mapping[str, PairedDifference | None],
    aa: Mapping[str, float],
    drawn: bool,
) -> dict[str, Effect]:
    """The differences beside their noise. Without an A/A pair the margin of a drop stands in for single evaluations."""
    point = float(np.mean([row.measured.point for row in (*mine, *base)]))
    stand_in = DROP_MARGIN * point
    least = {m.key: m.negligible * (1.0 if m.key == "regret" else point) for m in METRICS}
    found = {}
    for key, difference in differences.items():
        a, b = _paired(mine, base, key)
        signs = np.sign(np.array(a) - np.array(b))
        noise = aa.get(key, 0.0) if drawn else (stand_in if key in ("dip_depth", "final") else 0.0)
        noise = max(noise, least.get(key, 0.0))
        found[key] = Effect(
            mean=0.0 if difference is None else difference.mean,
            low=0.0 if difference is None else difference.low,
            high=0.0 if difference is None else difference.high,
            n=len(a),
            up=int((signs > 0).sum()),
            down=int((signs < 0).sum()),
            significant=difference is not None and difference.significant,
            noise=noise,
            aa=aa.get(key) if drawn else None,
            base=float(np.mean(b)) if b else None,
        )
    return found


def _aa_differences(arms: Sequence[Arm], rows: Mapping[str, Sequence[Row]]) -> tuple[dict[str, float], bool]:
    """By metric, how much arms of the same settings differ; and whether there are any."""
    pairs = [(rows[arm.name], rows[arm.twin_of]) for arm in arms if arm.twin_of is not None]
    found: dict[str, float] = {}
    for key in [*(m.key for m in METRICS), "drop_steps"]:
        for mine, other in pairs:
            a, b = _paired(mine, other, key)
            if a:
                found[key] = max(found.get(key, 0.0), abs(float(np.mean(np.array(a) - np.array(b)))))
    return found, bool(pairs)


def _outcome(
    arm: Arm, rows: Sequence[Row], budget: float, random: float | None, j0: Interval | None, how: Settings
) -> Outcome:
    """What happened to an arm."""
    metrics = [row.measured.metrics for row in rows]
    noise = [row.measured.null_dip for row in rows]
    known = [value for value in noise if value is not None]
    null_dip = float(np.mean(known)) if len(known) == len(rows) else None
    refusal: Refusal | None = None
    if arm.ramp_steps is not None and (how.window or budget) < RAMPS_TO_SEE * arm.ramp_steps:
        refusal = "short"
    point = float(np.mean([row.measured.point for row in rows]))
    if random is not None and j0 is not None:
        nothing_to_lose = j0.mean - random <= (null_dip or 0.0) + DROP_MARGIN * point
        if nothing_to_lose or (j0.n > 1 and -math.inf < j0.low <= random):
            refusal = "random"
    return Outcome(
        name=arm.name,
        n=len(rows),
        j0=float(np.mean([m.j0 for m in metrics])),
        depth=float(np.mean([m.dip_depth for m in metrics])),
        null_dip=null_dip,
        dropped=sum(row.measured.dropped for row in rows),
        recovered=sum(row.measured.recovered for row in rows),
        dip_time=float(np.median([m.dip_time for m in metrics])),
        final=float(np.mean([m.final for m in metrics])),
        refusal=refusal,
        ramp_steps=arm.ramp_steps,
        random=random,
    )


def _unknowns(columns: Sequence[Column], random_unknown: bool, budget: float, how: Settings) -> Unknowns:
    """What the numbers do not say."""
    roles = {column.arm.role for column in columns}
    first = min(float(column.arm.curves[0].env_steps[1]) for column in columns)
    pairs = [d for column in columns for key, d in column.differences.items() if key == "dip_depth" and d is not None]
    means = [m for column in columns if (m := column.means["dip_depth"]) is not None]
    base = {row.curve.seed: row.measured.metrics.j0 for row in columns[0].rows}

    def names(wrong: Callable[[Column], bool]) -> tuple[str, ...]:
        return tuple(column.arm.name for column in columns if wrong(column))

    return Unknowns(
        missing_controls=tuple(words for role, words in CONTROLS.items() if role not in roles),
        add_controls=how.add_controls,
        seeds=min(len(column.rows) for column in columns),
        confidence=how.confidence,
        attainable=min(one.confidence for one in pairs or means),
        bootstrap=any(one.method == "bootstrap" and one.n <= FEW_SEEDS for one in pairs)
        or any(one.method == "bootstrap" and one.n <= FEW_SEEDS for one in means),
        null_unknown=names(lambda column: column.outcome.null_dip is None),
        ramp_unknown=names(lambda column: column.arm.ramp_steps is None),
        half_open=tuple(
            (column.arm.name, weight)
            for column in columns
            if (weight := column.arm.weight_at_end) is not None and weight < 0.99
        ),
        unforked=names(
            lambda column: any(
                abs(base[row.curve.seed] - row.measured.metrics.j0) > 1e-6
                for row in column.rows
                if row.curve.seed in base
            )
        ),
        random_unknown=random_unknown,
        sparse=first if first > min(FIRST_EVALUATION, budget / 5) else None,
    )


def _notes(columns: Sequence[Column], ends: Sequence[float], budget: float, how: Settings) -> tuple[str, ...]:
    """What else has to be said."""
    notes = []
    if how.budget is None and max(ends) > budget:
        notes.append(
            f"Curves end at different steps ({min(ends):,.0f} to {max(ends):,.0f}); all are measured over the first "
            f"{budget:,.0f}."
        )
    base = set(columns[0].arm.seeds)
    for column in columns[1:]:
        common = len(base & set(column.arm.seeds))
        if common < max(len(base), len(column.rows)):
            what = f"differences are over the {common} they share" if common else "so there is no paired difference"
            notes.append(f"{column.arm.name} and {columns[0].arm.name} do not have the same seeds; {what}.")
    if len(kinds := {curve.provenance for column in columns for curve in column.arm.curves} - {None}) > 1:
        notes.append(f"MIXED PROVENANCE ({', '.join(sorted(map(str, kinds)))}): these scores cannot be compared.")
    return tuple(notes)
