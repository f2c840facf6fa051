"""Numbers logged on the way: the controller's weights, and whatever an audit of the switch wrote down."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import DataError

FloatArray = NDArray[np.float64]
SignalLines = dict[int, tuple[FloatArray, FloatArray]]
"""By seed, environment steps since the switch (rising) and the value at each."""

NOT_SIGNALS = ("env_steps", "updates", "seed", "phase")


def read_signals(path: Path, wanted: Sequence[str]) -> dict[str, SignalLines]:
    """The numeric columns of a file with a JSON row for each (env_steps, seed), by name; empty where there is no file.

    A row that was written twice (a run that was resumed) counts as it was written last; NaN and null are gaps. A last
    line without its end is a write that was cut, and not counted.

    Args:
        path: The file.
        wanted: Beginnings of the names that are wanted; all where empty. Rows before the switch are left out.

    Raises:
        DataError: A line that is no such row.
    """
    found: dict[str, dict[int, dict[float, float]]] = {}
    for row in _rows(path):
        if row.get("phase", "online") not in ("online", "switch"):
            continue
        for name, value in row.items():
            if name in NOT_SIGNALS or (wanted and not name.startswith(tuple(wanted))):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                by_seed = found.setdefault(name, {}).setdefault(int(row["seed"]), {})
                by_seed[float(row["env_steps"])] = float(value)
    return {
        name: {
            seed: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
            for seed, points in sorted(by_seed.items())
        }
        for name, by_seed in found.items()
    }


def mean_line(lines: SignalLines) -> tuple[FloatArray, FloatArray]:
    """The mean over seeds at every step that any of them has, on the lines through their points, where all go."""
    first, last = max(x[0] for x, _ in lines.values()), min(x[-1] for x, _ in lines.values())
    steps = np.unique(np.concatenate([x for x, _ in lines.values()]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.mean([np.interp(steps, x, y) for x, y in lines.values()], axis=0)


def distinct(signals: Mapping[str, Mapping[str, SignalLines]]) -> dict[str, Mapping[str, SignalLines]]:
    """The signals that say something: without constants of 0 and without those that repeat an earlier one."""
    kept: dict[str, Mapping[str, SignalLines]] = {}
    for name, arms in signals.items():
        if all(not values.any() for lines in arms.values() for _, values in lines.values()):
            continue
        if not any(_equal(arms, other) for other in kept.values()):
            kept[name] = arms
    return kept


def _equal(a: Mapping[str, SignalLines], b: Mapping[str, SignalLines]) -> bool:
    return a.keys() == b.keys() and all(
        a[arm].keys() == b[arm].keys() and all(np.array_equal(np.array(a[arm][s]), np.array(b[arm][s])) for s in a[arm])
        for arm in a
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = float(row["env_steps"]), int(row["seed"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}, line {number} is not a row of numbers ({error!r}): delete the line, or the file, whose panel "
                "is then left out"
            ) from error
        yield row
