"""Curves of any library from a CSV file with the columns run, arm, seed, env_steps, score."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o2o_smooth.errors import DataError
from o2o_smooth.reading import MIB, Unreadable, read_text
from o2o_smooth.stability.curves import Curve, Unit

COLUMNS = ("run", "arm", "seed", "env_steps", "score")
"""The columns that a file must have, in any order."""

LARGEST = 256 * MIB
OPTIONAL = ("spread", "episodes")
"""Standard deviation over the episodes of an evaluation (in the unit of the score) and their number: with these there
is a null dip."""


@dataclass(frozen=True)
class _Point:
    """One line of the file, read."""

    line: int
    env_steps: float
    score: float
    spread: float | None
    episodes: int | None


def read_csv_curves(path: Path, *, unit: Unit = "score") -> tuple[list[Curve], list[str]]:
    """The curves of a CSV file, one for each run, arm and seed, and the names of columns that were left unread.

    A line is one evaluation; lines may stand in any order. Every curve needs its evaluation at the switch
    (env_steps 0) and one after it.

    Args:
        path: A file with a line of headers; separated by commas, semicolons or tabs.
        unit: What its scores are in: normalised scores (0 random, 100 reference) or plain returns.

    Raises:
        DataError: The file is absent or broken; the line, the column and what to do are named.
    """
    try:
        text = read_text(path, LARGEST, pipes=True).removeprefix("\ufeff")
    except Unreadable as error:
        raise DataError(f"{path} cannot be read ({error}): save it as CSV, text in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a CSV file with a header line") from None
    header, records = _records(path, text)
    places = _places(path, header)
    found: dict[tuple[str, str, int], dict[float, _Point]] = {}
    for line, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} values under {len(header)} headers; quote values that hold a "
                "separator, and leave none out"
            )
        row = {name: cells[place].strip() for name, place in places.items()}
        key, point = _point(path, line, row)
        seen = found.setdefault(key, {})
        if point.env_steps in seen:
            raise DataError(
                f"{path}, line {line}, column env_steps: run '{key[0]}', arm '{key[1]}', seed {key[2]} has "
                f"{point.env_steps:g} in line {seen[point.env_steps].line} already; keep one of the two"
            )
        seen[point.env_steps] = point
    if not found:
        raise DataError(f"{path} has a header and nothing under it: a line is one evaluation of one seed")
    curves = [_curve(path, key, points, unit) for key, points in found.items()]
    return curves, [name for i, name in enumerate(header) if i not in places.values()]


def _records(path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the lines under it with their numbers; empty lines are passed over."""
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)

    def lines() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}; quote texts with double quotes") from None

    every = lines()
    _, header = next(every, (1, []))
    return [name.strip().lower() for name in header], every


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Where each column is."""
    if doubled := [name for name in header if name and header.count(name) > 1]:
        raise DataError(f"{path}, line 1: column {doubled[0]} is there twice; keep one of the two")
    if missing := [name for name in COLUMNS if name not in header]:
        close = difflib.get_close_matches(missing[0], [name for name in header if name not in COLUMNS], n=1, cutoff=0.5)
        hint = f"rename '{close[0]}' to {missing[0]}" if close else f"the header must name {', '.join(COLUMNS)}"
        there = ", ".join(filter(None, header)) or "nothing"
        raise DataError(f"{path}, line 1: there is no column {missing[0]} (there is {there}); {hint}")
    return {name: header.index(name) for name in (*COLUMNS, *OPTIONAL) if name in header}


def _point(path: Path, line: int, row: dict[str, str]) -> tuple[tuple[str, str, int], _Point]:
    """The curve that a line belongs to, and its point."""

    def wrong(column: str, cure: str) -> DataError:
        return DataError(f"{path}, line {line}, column {column}: '{row[column]}' {cure}")

    def number(column: str) -> float:
        try:
            value = float(row[column])
        except ValueError:
            raise wrong(column, "is not a number; write it with a point and without separators of thousands") from None
        if not math.isfinite(value):
            raise wrong(column, "is no score to reckon with; leave the seed out, or cut its curve before")
        return value

    for column in ("run", "arm"):
        if not row[column]:
            raise wrong(column, f"is empty; name the {column}")
        if not row[column].isprintable():
            raise DataError(
                f"{path}, line {line}, column {column}: {row[column]!r} holds control characters; leave them out"
            )
    seed, steps = number("seed"), number("env_steps")
    if not seed.is_integer():
        raise wrong("seed", "is not a whole number; number the seeds")
    if steps < 0:
        raise wrong("env_steps", "is before the switch; count from the switch (0) and leave pretraining out")
    spread = number("spread") if row.get("spread") else None
    episodes = number("episodes") if row.get("episodes") else None
    if spread is not None and spread < 0:
        raise wrong("spread", "is negative; it is the standard deviation over the episodes")
    if episodes is not None and (episodes < 1 or not episodes.is_integer()):
        raise wrong("episodes", "is not a number of episodes; write 1 or more, or leave it empty")
    key = (row["run"], row["arm"], int(seed))
    return key, _Point(line, steps, number("score"), spread, None if episodes is None else int(episodes))


def _curve(path: Path, key: tuple[str, str, int], points: dict[float, _Point], unit: Unit) -> Curve:
    """One curve from its points."""
    run, arm, seed = key
    ordered = [points[step] for step in sorted(points)]
    if ordered[0].env_steps != 0 or len(ordered) < 2:
        least = min(point.line for point in ordered)
        lacks = "none at the switch" if ordered[0].env_steps != 0 else "none after the switch"
        raise DataError(
            f"{path}, line {least}, column env_steps: run '{run}', arm '{arm}', seed {seed} has {lacks}; add "
            + ("its evaluation at env_steps 0, which is J0" if ordered[0].env_steps != 0 else "its later evaluations")
        )
    spread = [point.spread for point in ordered]
    episodes = [point.episodes for point in ordered]
    return Curve(
        run=run,
        arm=arm,
        seed=seed,
        env_steps=np.array([point.env_steps for point in ordered]),
        scores=np.array([point.score for point in ordered]),
        unit=unit,
        spread=None if None in spread else np.array(spread, dtype=np.float64),
        episodes=None if None in episodes else np.array(episodes, dtype=np.int64),
    )
