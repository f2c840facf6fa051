"""From the evaluations in run folders to curves, one a seed. Imports neither torch nor our agents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import O2OError
from o2o_smooth.reading import Unreadable, check_inside, read_json, read_json_lines, understood
from o2o_smooth.stability.origin import Origin, read_origin

FloatArray = NDArray[np.float64]
Unit = Literal["score", "return"]

EVALUATIONS = "evaluations.jsonl"
MANIFEST = "manifest.json"
_LARGEST = 1e30
"""Of steps and returns; pictures and sums overflow beyond."""


@dataclass(frozen=True, eq=False)
class Curve(Origin):
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
class PretrainCurve(Origin):
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
    that was written twice (a run that was resumed) counts once, as it was written last. Provenance, dataset, its return
    and the references are the manifest's; where there is none, the rows still tell the provenance.

    Args:
        run_dir: A folder with `evaluations.jsonl`.
        arm: Name of the arm; where None the `arm` of the manifest if it has one, or else the folder's name.

    Raises:
        O2OError: The file is absent or broken, or a seed has online evaluations but none at the switch.
    """
    rows = _read_rows(run_dir)
    unit, scale = _unit(rows)
    manifest = _read_manifest(run_dir)
    origin = _origin(run_dir, manifest, rows, unit)
    if arm is None:
        arm = name if isinstance(name := manifest.get("arm"), str) else run_dir.name
        if not arm.isprintable():
            raise O2OError(f"{run_dir / MANIFEST}: the arm's name {arm!r} holds control characters; edit them out")
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
                **origin,
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
    origin = _origin(run_dir, _read_manifest(run_dir), rows, unit)
    curves = []
    for seed, mine in _by_seed(row for row in rows if row["phase"] == "offline").items():
        points = {float(row["updates"]): row for row in mine}
        ordered = [points[update] for update in sorted(points)]
        steps = np.array(sorted(points))
        curves.append(PretrainCurve(run_dir.name, seed, steps, _values(ordered, unit), unit, **origin))
    return curves


def _read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `evaluations.jsonl`. A last line without its end is a write that was cut, and not counted."""
    path = run_dir / EVALUATIONS
    rows: list[dict[str, Any]] = []
    try:
        check_inside(path, run_dir)
        for number, row in read_json_lines(path):
            _check_row(f"{path}, line {number}", row)
            rows.append(row)
    except OSError as error:
        raise O2OError(f"{path} cannot be read ({error.strerror}): is {run_dir} a run folder?") from error
    except Unreadable as error:
        what = "cannot be read" if error.line is None else f"line {error.line} is not an evaluation"
        raise O2OError(f"{path}{' ' if error.line is None else ', '}{what}: {error}") from error
    return rows


def _check_row(where: str, row: Any) -> None:
    """Refuse what is no evaluation."""
    try:
        places = [row["env_steps"], row["updates"], row["seed"]]
        values = [row["return_mean"], *(row.get(name) for name in ("score", "return_std", "episodes"))]
        numbers = [*places, *(value for value in values if value is not None)]
        if not all(isinstance(number, int | float) for number in numbers) or not all(map(math.isfinite, places)):
            raise ValueError("a value is no number")
        if row.get("episodes") is not None and row["episodes"] < 1:
            raise ValueError("there are no episodes behind it")
        if max(abs(number) for number in numbers) > _LARGEST:
            raise ValueError(f"a value is beyond {_LARGEST:g}")
        if not isinstance(row["phase"], str) or not isinstance(row.get("provenance", ""), str | None):
            raise ValueError("phase or provenance is no text")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise O2OError(f"{where} is not an evaluation: {error!r}") from error


def _read_manifest(run_dir: Path) -> dict[str, Any]:
    """The run's manifest; empty where there is none that can be read."""
    try:
        return read_json(run_dir / MANIFEST, root=run_dir)
    except (OSError, ValueError):
        return {}


def _origin(
    run_dir: Path, manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], unit: Unit
) -> dict[str, Any]:
    """The fields of `Origin`."""
    with understood(run_dir / MANIFEST, "a run"):
        origin = vars(read_origin(manifest, unit))
    if origin["provenance"] is None:
        told = (row["provenance"] for row in reversed(rows) if row.get("provenance") is not None)
        origin |= {"provenance": next(told, None)}
    return origin


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
