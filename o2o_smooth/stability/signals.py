"""Numbers logged on the way: the controller's weights, and whatever an audit of the switch wrote down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import DataError
from o2o_smooth.reading import Unreadable, check_inside, read_json_lines

FloatArray = NDArray[np.float64]
SignalLines = dict[int, tuple[FloatArray, FloatArray]]
"""By seed, environment steps or updates since the switch (rising) and the value at each."""

Moment = tuple[float, float]
"""Environment steps since the switch, and updates in total."""

Axis = Literal["env_steps", "updates"]
"""What a line goes along."""

STEPS = "env_steps"
"""Where lines go along updates: the signal that tells the environment steps of each."""

SINCE = "switch/updates"
"""The column of an audit that counts updates since the switch."""

_ROUNDING = 1e-5
"""A signal that moves by less than this share of its size stands still."""

_LARGEST = 1e30
"""What is beyond is a gap as NaN is; pictures and sums overflow there."""

NOT_SIGNALS = ("env_steps", "updates", "seed", "phase")


def read_signals(path: Path, wanted: Sequence[str], *, against: Axis = "env_steps") -> dict[str, SignalLines]:
    """The numeric columns of a file with a JSON row for each (env_steps, updates, seed); empty where there is no file.

    A row that was written twice (a run that was resumed) counts as it was written last; NaN and null are gaps. A last
    line without its end is a write that was cut, and not counted. Rows of one environment step and several updates
    (several environments, or more updates than steps) all count: against environment steps they are spread between the
    step before and their own, by their updates.

    Args:
        path: The file.
        wanted: Beginnings of the names that are wanted; all where empty. Rows before the switch are left out.
        against: What the lines go along. "updates": since the switch; rows that do not tell theirs are left out, and
            `STEPS` is a signal too.

    Raises:
        DataError: A line that is no such row.
    """
    found: dict[str, dict[int, dict[Moment, float]]] = {}
    moments: dict[int, set[Moment]] = {}
    first: dict[int, float] = {}
    for row in _rows(path):
        if row.get("phase", "online") not in ("online", "switch") or (against == "updates" and "updates" not in row):
            continue
        seed, moment = int(row["seed"]), (float(row["env_steps"]), float(row.get("updates", 0)))
        moments.setdefault(seed, set()).add(moment)
        since = row.get(SINCE)
        start = moment[1] - since if isinstance(since, int | float) and abs(since) <= _LARGEST else moment[1]
        first[seed] = min(start, first.get(seed, start))
        for name, value in row.items():
            named = name == STEPS if name in NOT_SIGNALS else not wanted or name.startswith(tuple(wanted))
            if not named or (name == STEPS and against != "updates"):
                continue
            if isinstance(value, int | float) and abs(value) <= _LARGEST:  # NaN is not
                found.setdefault(name, {}).setdefault(seed, {})[moment] = float(value)
    places = {
        seed: {moment: moment[1] - first[seed] for moment in own} if against == "updates" else _spread(own)
        for seed, own in moments.items()
    }
    return {
        name: {seed: _line(places[seed], points) for seed, points in sorted(by_seed.items())}
        for name, by_seed in found.items()
    }


def _spread(moments: Iterable[Moment]) -> dict[Moment, float]:
    """Where moments lie on the axis of environment steps: those of one step apart, by their updates."""
    placed: dict[Moment, float] = {}
    before: Moment | None = None
    for step, group in itertools.groupby(sorted(moments), key=lambda moment: moment[0]):
        own = list(group)
        last = own[-1][1]
        low, first = before if before is not None else (step - 1.0, own[0][1] - 1.0)
        for moment in own:
            placed[moment] = step - (last - moment[1]) / max(last - first, 1.0) * (step - low)
        before = (step, last)
    return placed


def _line(places: Mapping[Moment, float], points: Mapping[Moment, float]) -> tuple[FloatArray, FloatArray]:
    """A line that rises along its axis; of two points at one place the later one."""
    by_place = {places[moment]: value for moment, value in sorted(points.items())}
    return np.array(sorted(by_place)), np.array([by_place[place] for place in sorted(by_place)])


def mean_line(lines: SignalLines) -> tuple[FloatArray, FloatArray]:
    """The mean over seeds at every step that any of them has, on the lines through their points, where all go."""
    first, last = max(x[0] for x, _ in lines.values()), min(x[-1] for x, _ in lines.values())
    steps = np.unique(np.concatenate([x for x, _ in lines.values()]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.mean([np.interp(steps, x, y) for x, y in lines.values()], axis=0)


def distinct(signals: Mapping[str, Mapping[str, SignalLines]]) -> dict[str, Mapping[str, SignalLines]]:
    """The signals that say something: without constants and without those that repeat an earlier one.

    A signal that stands still on another value in every arm tells these apart and is kept, but for a learning rate.
    """
    kept: dict[str, Mapping[str, SignalLines]] = {}
    for name, arms in signals.items():
        if not _still(name, arms) and not any(_equal(arms, other) for other in kept.values()):
            kept[name] = arms
    return kept


def _still(name: str, arms: Mapping[str, SignalLines]) -> bool:
    """Whether nothing moves, but for rounding."""
    values = [seen for lines in arms.values() for _, seen in lines.values()]
    if not name.endswith("_lr"):
        values = [np.concatenate(values)]
    return all(np.ptp(seen) <= _ROUNDING * np.abs(seen).max() for seen in values)


def _equal(a: Mapping[str, SignalLines], b: Mapping[str, SignalLines]) -> bool:
    return a.keys() == b.keys() and all(
        a[arm].keys() == b[arm].keys() and all(np.array_equal(np.array(a[arm][s]), np.array(b[arm][s])) for s in a[arm])
        for arm in a
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        check_inside(path, path.parent)
        for number, row in read_json_lines(path):
            _check_row(f"{path}, line {number}", row)
            yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except Unreadable as error:
        if error.line is not None:
            raise _no_row(f"{path}, line {error.line}", error) from error
        raise DataError(f"{path} cannot be read: {error}; delete the file, whose panel is then left out") from error


def _check_row(where: str, row: Any) -> None:
    """Refuse a row whose place cannot be told."""
    try:
        places = float(row["env_steps"]), int(row["seed"]), float(row.get("updates", 0))
        if not all(map(math.isfinite, places)) or max(map(abs, places)) > _LARGEST:
            raise ValueError("steps and updates are finite numbers")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise _no_row(where, error) from error


def _no_row(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where} is not a row of numbers ({error!r}): delete the line, or the file, whose panel is then left out"
    )
