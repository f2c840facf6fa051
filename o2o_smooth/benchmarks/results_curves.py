"""Our learning curves beside published ones, and whether they agree along the way.

A curve is tested only where it was measured as ours was: same task, agent, provenance of the offline data, size of a
batch; before the switch also the same budget where the way depends on it, after it the same updates before the switch
and the arm that does what was done there. Anything else is "not comparable", with the reason, and is never drawn.

Points are the evaluations that both have, at the same count of updates (before the switch) or environment steps (after
it); nothing is interpolated. A point is judged as a number of a table is (`results_compare`). Of the whole curve:

    inside         every point is inside: each whole 95 % interval lies within the tolerance
    outside        at some point an interval of 1 - 0.05 / points leaves 0 out (Bonferroni), and it is not inside
    cannot tell    neither, or a side has too few seeds
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.benchmarks.published_curves import PublishedCurve, family
from o2o_smooth.benchmarks.results_compare import (
    CONFIDENCE,
    TOLERANCE,
    Answer,
    arms_after,
    once_a_pretraining,
    other_data,
    published_name,
    welch,
)
from o2o_smooth.benchmarks.results_study import Group, SeedRun, Study
from o2o_smooth.errors import O2OError
from o2o_smooth.stability.curves import Curve, PretrainCurve, read_pretraining
from o2o_smooth.stability.origin import Origin

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One evaluation that both sides have."""

    at: int
    """Updates before the switch, or environment steps after it."""
    ours: tuple[float, ...]
    """One a seed."""
    theirs: tuple[float, ...]
    """One a seed, in our unit."""
    answer: Answer
    """Whether they agree here."""
    low: float
    """Lower end of the interval of ours - theirs; -inf where there is none."""
    high: float
    """Upper end."""
    surely: bool
    """Whether it would leave 0 out also with the confidence that all points share."""

    @property
    def difference(self) -> float:
        """Ours - theirs, of means."""
        return float(np.mean(self.ours) - np.mean(self.theirs))


@dataclass(frozen=True)
class CurveAgreement:
    """One published curve beside ours."""

    task: str
    """Id of our task."""
    agent: str
    """As the suite calls it."""
    arm: str
    """Ours; "pretraining" for what arms share."""
    published: PublishedCurve
    """Theirs."""
    points: tuple[Point, ...]
    """What both have, in order."""
    reasons: tuple[str, ...]
    """Why the two are not comparable; empty where they are."""
    answer: Answer
    """Whether they agree; what is not comparable is answered as if it were."""
    scale: tuple[float, float] | None
    """The returns that scores 0 and 100 stand for, where theirs are returns and we have these."""

    @property
    def comparable(self) -> bool:
        """Whether the two were measured alike."""
        return not self.reasons

    @property
    def widest(self) -> Point | None:
        """Where the two are furthest apart; None without a point."""
        return max(self.points, key=lambda point: abs(point.difference), default=None)

    def theirs(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """(runs, points) all published values, in our unit where that is known."""
        return np.array([_scaled(run.values, self.scale) for run in self.published.runs], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Seed:
    """A completed seed: its row of the table, and what it was."""

    row: Row
    one: SeedRun


def curve_agreements(
    study: Study,
    groups: Sequence[Group],
    rows: Sequence[Row],
    published: Iterable[PublishedCurve],
    *,
    tolerance: float = TOLERANCE,
) -> list[CurveAgreement]:
    """Hold the curves of a study against published ones of the same agents, and of the same tasks or others' versions.

    Args:
        study: The study.
        groups: All of it.
        rows: As `run_rows` makes them from the groups; only completed ones count.
        published: What to hold them against.
        tolerance: Differences up to this do not matter, in points.
    """
    every = [one for group in groups for one in group.runs]
    done = [
        _Seed(row, one)
        for row, one in zip(rows, every, strict=True)
        if row["status"] == "completed" and one.curve is not None
    ]
    before = Pretrainings(study)
    found = []
    for curve in published:
        mine = [s for s in done if family(s.row["task"]) == curve.family and published_name(s.row) == curve.agent]
        for task, agent in dict.fromkeys((str(s.row["task"]), str(s.row["agent"])) for s in mine):
            own = [s for s in mine if (s.row["task"], s.row["agent"]) == (task, agent)]
            for arm, chosen in _arms(own, curve).items():
                found.append(_agreement(curve, task, agent, arm, chosen, before, tolerance))
    return found


class Pretrainings:
    """The evaluations before the switch of a study's seeds: their own, or those of the pretraining that arms share.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._read: dict[Path, dict[int, PretrainCurve]] = {}
        self.problems: dict[Path, str] = {}
        """By the folder of a pretraining, why its evaluations cannot be read."""

    def of(self, one: SeedRun) -> PretrainCurve | None:
        """A seed's evaluations up to the switch, that at the switch included; None where there is not even that."""
        curve = one.pretraining or self._shared(one)
        at_switch = _at_switch(one)
        if curve is None or at_switch is None or curve.unit != at_switch.unit:
            return at_switch or curve
        earlier = curve.updates < at_switch.updates[0]
        return dataclasses.replace(
            curve,
            updates=np.append(curve.updates[earlier], at_switch.updates),
            scores=np.append(curve.scores[earlier], at_switch.scores),
        )

    def problem(self, one: SeedRun) -> str:
        """Why the pretraining of a seed cannot be read; empty where it can, or where the study has none of it."""
        self._shared(one)
        return next((self.problems[folder] for folder in self._folders(one) if folder in self.problems), "")

    def _folders(self, one: SeedRun) -> list[Path]:
        job = self._study.jobs.get(one.run.job)
        needs = [self._study.jobs[name] for name in job.needs if name in self._study.jobs] if job else []
        return [self._study.root / "jobs" / need.id / "run" for need in needs if need.kind == "pretrain"]

    def _shared(self, one: SeedRun) -> PretrainCurve | None:
        if one.pretraining is not None:
            return None
        for folder in self._folders(one):
            if folder not in self._read:
                self._read[folder] = {}
                try:
                    if folder.is_dir():  # what came from the cache was evaluated elsewhere
                        self._read[folder] = {curve.seed: curve for curve in read_pretraining(folder)}
                except (O2OError, ValueError) as error:
                    self.problems[folder] = " ".join(str(error).split())
            if one.seed in self._read[folder]:
                return self._read[folder][one.seed]
        return None


def _at_switch(one: SeedRun) -> PretrainCurve | None:
    """The evaluation at the switch, as the last one of the pretraining."""
    updates = (one.manifest.get("config") or {}).get("offline_updates")
    if one.curve is None or not isinstance(updates, int):
        return None
    origin = {field.name: getattr(one.curve, field.name) for field in dataclasses.fields(Origin)}
    times, scores = np.array([float(updates)]), one.curve.scores[:1]
    return PretrainCurve(one.curve.run, one.seed, times, scores, one.curve.unit, **origin)


def _arms(seeds: Sequence[_Seed], curve: PublishedCurve) -> dict[str, list[_Seed]]:
    """The seeds that a curve is held against, by arm."""
    by_row = {id(seed.row): seed for seed in seeds}
    rows = [seed.row for seed in seeds]
    if curve.source.phase == "offline":
        arms = {"pretraining": once_a_pretraining(rows)}
    else:
        arms = arms_after(rows, curve.source.switch)
    return {arm: [by_row[id(row)] for row in chosen] for arm, chosen in arms.items()}


def _agreement(
    curve: PublishedCurve,
    task: str,
    agent: str,
    arm: str,
    seeds: Sequence[_Seed],
    before: Pretrainings,
    tolerance: float,
) -> CurveAgreement:
    ours = [_values(seed.one, curve, before) for seed in seeds]
    scale = _scale(curve, seeds)
    common = [at for at in curve.at if any(at in values for values in ours)]
    points = []
    for at in common:
        k = curve.at.index(at)
        mine = tuple(values[at] for values in ours if at in values)
        theirs = tuple(_scaled([run.values[k]], scale)[0] for run in curve.runs)
        points.append(_point(at, mine, theirs, len(common), tolerance))
    reasons = _reasons(curve, task, seeds, scale, before)
    if not points and not reasons:
        there, what = f"{curve.at[0]:,} to {curve.at[-1]:,}", _counted(curve)
        here = sorted({at for values in ours for at in values})
        reasons = (f"no evaluation at the same {what}: {there} there, {_listed(here)} here",)
    return CurveAgreement(task, agent, arm, curve, tuple(points), reasons, _verdict(points), scale)


def _point(at: int, ours: tuple[float, ...], theirs: tuple[float, ...], points: int, tolerance: float) -> Point:
    low, high = _interval(ours, theirs, CONFIDENCE)
    answer: Answer = "cannot tell"
    if -tolerance <= low and high <= tolerance:
        answer = "inside"
    elif low > 0 or high < 0:
        answer = "outside"
    least, most = _interval(ours, theirs, 1 - (1 - CONFIDENCE) / points)
    return Point(at, ours, theirs, answer, low, high, answer == "outside" and (least > 0 or most < 0))


def _interval(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> tuple[float, float]:
    """Welch's, of ours - theirs; all numbers where there is none."""
    if min(len(ours), len(theirs)) < 2 or not np.isfinite([*ours, *theirs]).all():
        return -math.inf, math.inf
    (a, s, n), (b, t, m) = ((float(np.mean(x)), float(np.std(x, ddof=1)), len(x)) for x in (ours, theirs))
    return welch(a, s, n, b, t, m, confidence=confidence)


def _verdict(points: Sequence[Point]) -> Answer:
    if points and all(point.answer == "inside" for point in points):
        return "inside"
    return "outside" if any(point.surely for point in points) else "cannot tell"


def _values(one: SeedRun, curve: PublishedCurve, before: Pretrainings) -> dict[int, float]:
    """Our evaluations of a seed, by when they were."""
    own: PretrainCurve | Curve | None = one.curve
    if curve.source.phase == "offline":
        own = before.of(one)
    if own is None:
        return {}
    times = own.updates if isinstance(own, PretrainCurve) else own.env_steps
    return {int(at): float(score) for at, score in zip(times, own.scores, strict=True)}


def _scale(curve: PublishedCurve, seeds: Sequence[_Seed]) -> tuple[float, float] | None:
    """What returns are normalised with: the reference scores of our task's table, if all seeds have the same."""
    if curve.source.score == "normalised":
        return None
    found = {(seed.row["ref_random"], seed.row["ref_expert"]) for seed in seeds}
    if len(found) != 1 or None in (one := found.pop()):
        return None
    return float(one[0]), float(one[1])


def _scaled(values: Iterable[float], scale: tuple[float, float] | None) -> list[float]:
    if scale is None:
        return list(values)
    return [100.0 * (value - scale[0]) / (scale[1] - scale[0]) for value in values]


def _reasons(
    curve: PublishedCurve,
    task: str,
    seeds: Sequence[_Seed],
    scale: tuple[float, float] | None,
    before: Pretrainings,
) -> tuple[str, ...]:
    """Why a curve cannot be held against these seeds."""
    source = curve.source
    found = []

    def differs(theirs: Any, ours: Iterable[Any], what: str) -> None:
        here = sorted({"none" if one is None else str(one) for one in ours})
        if here != [str(theirs)]:
            found.append(f"{what} {theirs} there, {' and '.join(here)} here")

    differs(curve.task, [task], "task:")
    differs(source.provenance, [seed.row["provenance"] for seed in seeds], "offline data:")
    found += other_data(curve.task, [seed.row["dataset"] for seed in seeds])
    if any(seed.row["unit"] != "score" for seed in seeds):
        found.append("normalised scores there, returns here")
    elif source.score == "return" and scale is None:
        found.append("returns there, and no reference scores here to normalise them with")
    updates = [seed.row["offline_updates"] for seed in seeds]
    if source.phase == "online":
        differs(source.offline_updates, updates, "updates before the switch:")
        if any(seed.row["role"] != source.switch for seed in seeds):
            found.append(f"another switch: there what our arm {source.switch} does")
    if source.budget_bound:
        known = len(found)
        own, budget = ([seed.row["online_steps"] for seed in seeds], source.online_steps)
        if source.phase == "offline":
            own, budget = updates, source.offline_updates
        differs(budget, own, "budget:")
        if len(found) > known:
            found[-1] += f" ({source.budget_bound})"
    if source.batch_size is not None:
        sizes = [(seed.one.manifest.get("config") or {}).get("batch_size") for seed in seeds]
        if any(size is not None for size in sizes):
            differs(source.batch_size, sizes, "rows of a batch:")
    if source.phase == "offline":
        found += list(dict.fromkeys(text for seed in seeds if (text := before.problem(seed.one))))
    return tuple(found)


def _counted(curve: PublishedCurve) -> str:
    return "updates" if curve.source.phase == "offline" else "online steps"


def _listed(counts: Sequence[int]) -> str:
    """Where we evaluated, in a few words."""
    if not counts:
        return "none"
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
