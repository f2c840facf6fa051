"""Our numbers beside published ones, and whether they agree.

A number is tested only where it was measured as ours was: same task, agent, provenance of the offline data, kind of
score, updates before the switch, and for what comes after it the same online steps and the arm that does what was done
there. Anything else is "not comparable", with the reason; a score from D4RL's own files never stands beside one from
re-collected or generated data as if the two were of a kind.

    difference = ours - theirs, with a 95 % interval by Welch's t test over seeds
    inside         the whole interval lies within the tolerance
    outside        the interval leaves 0 out (and is not inside)
    cannot tell    neither, or a side has too few seeds or no stated spread
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from o2o_smooth.benchmarks.published import Published
from o2o_smooth.data.hdf5 import published_name as d4rl_file
from o2o_smooth.envs import find_task, known_tasks
from o2o_smooth.errors import EnvError
from o2o_smooth.stability.student import t_at_tail

Answer = Literal["inside", "outside", "cannot tell"]

TOLERANCE = 10.0
"""Points of score: agents of one name in two libraries differ by a few, and an A/A pair of four seeds by up to 5."""

CONFIDENCE = 0.95
"""Of the interval of the difference."""

_TESTED = ("j0", "final")
_AT_SWITCH = ("j0",)  # metrics that nothing after the switch can change


@dataclass(frozen=True)
class Agreement:
    """One published number beside ours."""

    task: str
    """Id of the task."""
    agent: str
    """Name of the algorithm."""
    arm: str
    """Ours; several, joined, for what they share at the switch."""
    published: Published
    """Theirs."""
    values: tuple[float, ...]
    """Ours, one a seed."""
    reasons: tuple[str, ...]
    """Why the two are not comparable; empty where they are."""
    answer: Answer
    """Whether they agree; what is not comparable is answered as if it were."""
    low: float
    """Lower end of the interval of ours - theirs; -inf where there is none."""
    high: float
    """Upper end."""

    @property
    def comparable(self) -> bool:
        """Whether the two were measured alike."""
        return not self.reasons

    @property
    def mean(self) -> float:
        """Of ours."""
        return float(np.mean(self.values))


def agreements(
    rows: Sequence[Mapping[str, Any]], published: Iterable[Published], *, tolerance: float = TOLERANCE
) -> list[Agreement]:
    """Hold the rows of a study against published numbers of the same tasks and agents.

    Args:
        rows: As `run_rows` makes them; only completed ones count.
        published: What to hold them against.
        tolerance: Differences up to this do not matter, in points.
    """
    done = [row for row in rows if row["status"] == "completed" and row["j0"] is not None]
    found = []
    for number in published:
        mine = [row for row in done if row["task"] == number.task and published_name(row) == number.agent]
        for agent in dict.fromkeys(row["agent"] for row in mine):
            own = [row for row in mine if row["agent"] == agent]
            for arm, chosen in _arms(own, number).items():
                found.append(_agreement(number, str(agent), arm, chosen, tolerance))
    return found


def published_name(row: Mapping[str, Any]) -> str:
    """What the literature calls a row's algorithm."""
    name = str(row["agent_name"] or row["agent"])
    return "cal_ql" if name == "cql" and row["calibrated"] else name


def welch(
    mean: float,
    deviation: float,
    n: int,
    other: float,
    other_deviation: float,
    m: int,
    *,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """The interval of mean - other, from standard deviations (n - 1) and numbers of seeds, two at least each.

    Source: Welch 1947; degrees of freedom by Satterthwaite.
    """
    parts = (deviation**2 / n, other_deviation**2 / m)
    total = sum(parts)
    difference = mean - other
    if total == 0.0:
        return difference, difference
    df = total**2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
    width = t_at_tail((1 - confidence) / 2, df) * math.sqrt(total)
    return difference - width, difference + width


class Judged(Protocol):
    """A number or a curve that was held against ours."""

    @property
    def comparable(self) -> bool:
        """Whether the two were measured alike."""
        ...

    @property
    def answer(self) -> Answer:
        """Whether they agree."""
        ...


def exit_code(found: Sequence[Judged]) -> int:
    """0: all that is comparable is inside; 1: something is outside; 2: nothing is, but not all could be told."""
    answers = [one.answer for one in found if one.comparable]
    if "outside" in answers:
        return 1
    return 0 if answers and set(answers) == {"inside"} else 2


def _arms(rows: Sequence[Mapping[str, Any]], number: Published) -> dict[str, list[Mapping[str, Any]]]:
    """The rows that a number is held against, by arm; J0 belongs to the pretraining, once a seed."""
    if number.metric in _AT_SWITCH:
        return {"at the switch": once_a_pretraining(rows)}
    return arms_after(rows, number.source.switch)


def once_a_pretraining(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the arms that share a pretraining, the first, for each seed."""
    once: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        once.setdefault((row["pretraining"], row["seed"]), row)
    return list(once.values())


def arms_after(rows: Sequence[Mapping[str, Any]], switch: str | None) -> dict[str, list[Mapping[str, Any]]]:
    """By arm, the rows that do what was done at a published switch; the baseline's where none does."""
    wanted = [row for row in rows if row["role"] == switch]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in wanted or rows:
        if wanted or row["arm"] == row["baseline"]:
            found.setdefault(str(row["arm"]), []).append(row)
    return found


def _agreement(
    number: Published, agent: str, arm: str, rows: Sequence[Mapping[str, Any]], tolerance: float
) -> Agreement:
    values = tuple(float(row[number.metric]) for row in rows if row.get(number.metric) is not None)
    reasons = _reasons(number, rows, values)
    low, high = -math.inf, math.inf
    if len(values) > 1 and (deviation := number.deviation) is not None:
        own = float(np.std(values, ddof=1))
        low, high = welch(float(np.mean(values)), own, len(values), number.mean, deviation, number.source.seeds)
    answer: Answer = "cannot tell"
    if -tolerance <= low and high <= tolerance:
        answer = "inside"
    elif low > 0 or high < 0:
        answer = "outside"
    return Agreement(number.task, agent, arm, number, values, reasons, answer, low, high)


def other_data(task: str, datasets: Iterable[str | None]) -> list[str]:
    """Offline data that are not those of a task, though of the right provenance: another tier's, or version's."""
    try:
        known = find_task(task, imports=False)
    except EnvError:
        return []  # a task of somebody's own
    file, found = d4rl_file(known), []
    for dataset in sorted({name for name in datasets if name}):
        name = Path(dataset).name
        if name.endswith(".hdf5"):
            if file is not None and name != file:
                found.append(f"offline data: D4RL's {file} there, {name} here")
        elif dataset not in known.dataset_ids and any(dataset in one.dataset_ids for one in known_tasks()):
            found.append(f"offline data: those of {task} there, {dataset} here")
    return found


def _reasons(number: Published, rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> tuple[str, ...]:
    """Why a number cannot be held against these rows."""
    source = number.source
    found = []

    def differs(key: str, theirs: Any, what: str) -> None:
        ours = sorted({str(row[key]) if row[key] is not None else "none" for row in rows})
        if ours != [str(theirs)]:
            found.append(f"{what} {theirs} there, {' and '.join(ours)} here")

    differs("provenance", source.provenance, "offline data:")
    found += other_data(number.task, [row["dataset"] for row in rows])
    if any(row["unit"] != "score" for row in rows):
        found.append("normalised scores there, returns here")
    differs("offline_updates", source.offline_updates, "updates before the switch:")
    if number.metric not in _AT_SWITCH:
        differs("online_steps", source.online_steps, "online steps:")
        if any(row["role"] != source.switch for row in rows):
            found.append(f"another switch: there what our arm {source.switch} does")
    if number.differs:
        found.append(f"another definition: {number.differs}")
    elif number.metric not in _TESTED:
        found.append(f"{number.metric} is not a score")
    if not values:
        found.append("no value of ours")
    return tuple(found)
