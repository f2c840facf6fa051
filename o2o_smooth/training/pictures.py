"""From run folders to pictures: one run, or several arms that share a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import O2OError
from o2o_smooth.reading import check_inside, read_json, read_json_lines, understood
from o2o_smooth.smoothing import parse_schedule, rule_name
from o2o_smooth.stability.curves import Curve, read_curves, read_pretraining
from o2o_smooth.stability.origin import Origin, offline_data
from o2o_smooth.stability.plots import plot_run, plot_switch
from o2o_smooth.training.suspicion import check_manifest


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        O2OError: It is absent or broken.
    """
    if not run_dir.exists():
        raise O2OError(f"{run_dir} is not a run folder: there is no folder of that name")
    try:
        return read_json(run_dir / "manifest.json", root=run_dir)
    except (OSError, ValueError) as error:
        raise O2OError(f"{run_dir} is not a run folder: manifest.json cannot be read ({error})") from None


def read_checked(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run folder, which has all that tables and pictures need.

    Raises:
        O2OError: It is absent or broken, or lacks something.
    """
    manifest = read_manifest(run_dir)
    with understood(run_dir / "manifest.json", "a run"):
        check_manifest(manifest)
    return manifest


def read_weight(run_dir: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The actor's weight over online steps, mean over seeds; None where nothing was logged."""
    by_step: dict[float, list[float]] = {}
    path = run_dir / "metrics.jsonl"
    with understood(path, "a run's metrics"):
        check_inside(path, run_dir)
        for _, row in read_json_lines(path):
            if row["phase"] == "online" and row.get("smoothing/actor_weight") is not None:
                by_step.setdefault(float(row["env_steps"]), []).append(float(row["smoothing/actor_weight"]))
    if not by_step:
        return None
    steps = sorted(by_step)
    return np.array(steps), np.array([np.mean(by_step[s]) for s in steps])


def ramp_end(manifest: Mapping[str, Any]) -> float | None:
    """Where a curve stops moving, in environment steps; None where it never moves or moves on signals."""
    smoothing = manifest["config"]["smoothing"]
    if rule_name(smoothing["schedule"]) is not None or smoothing["ramp_unit"] != "env_steps":
        return None
    curve = parse_schedule(smoothing["schedule"], smoothing["ramp_steps"])
    budget = manifest["config"]["online_steps"]
    steps = np.linspace(0, budget, 2001)
    weights = np.array([curve(t) for t in steps])
    moving = np.flatnonzero(weights < curve(1e15) - 1e-9)
    if len(moving) == 0 or moving[-1] == len(steps) - 1:
        return None
    return float(steps[moving[-1] + 1])


def draw_run(run_dir: Path) -> Path:
    """Draw `stability.png` of a run folder.

    Raises:
        O2OError: The folder is not a run.
    """
    manifest = read_checked(run_dir)
    smoothing = manifest["config"]["smoothing"]
    curves = read_curves(run_dir)
    curves = [c for c in curves if len(c.env_steps) > 1]
    pretraining = read_pretraining(run_dir)
    if not curves and not pretraining:
        return run_dir / "stability.png"
    online = f" → {manifest['online']}, {smoothing['schedule']}, {smoothing['regime']}" if curves else ""
    return plot_run(
        curves,
        run_dir / "stability.png",
        title=f"{manifest['task']['id']}: {manifest['agent']}{online}",
        subtitle=describe_arms({"": curves or pretraining}),
        pretraining=pretraining,
        weights=read_weight(run_dir) if curves else None,
        unit=curves[0].unit if curves else pretraining[0].unit,
        ramp_end=ramp_end(manifest),
    )


def draw_arms(
    arms: Mapping[str, Path], path: Path, *, title: str, mix_provenance: bool = False
) -> dict[str, list[Curve]]:
    """Draw several arms of one comparison into one picture; returns their curves.

    Raises:
        O2OError: A folder is not a run.
        DataError: Arms that learned from data of different provenance, unless `mix_provenance` lets them; arms whose
            scores count from different references.
    """
    curves = {
        name: [curve for curve in read_curves(folder, arm=name) if len(curve.env_steps) > 1]
        for name, folder in arms.items()
    }
    bare = [name for name, found in curves.items() if not found]
    if bare:
        raise O2OError(f"{arms[bare[0]]} has no evaluations after the switch")
    manifests = {name: read_checked(folder) for name, folder in arms.items()}
    weights = {name: weight for name, folder in arms.items() if (weight := read_weight(folder)) is not None}
    ends = [end for manifest in manifests.values() if (end := ramp_end(manifest)) is not None]
    plot_switch(
        curves,
        path,
        title=title,
        subtitle=describe_arms(curves),
        weights=weights or None,
        unit=next(iter(curves.values()))[0].unit,
        ramp_end=ends[0] if len(set(ends)) == 1 else None,
        mix_provenance=mix_provenance,
    )
    return curves


def describe_arms(arms: Mapping[str, Sequence[Origin]]) -> str:
    """Seeds and offline data of the arms; which arm learned from which where that differs."""
    counts = sorted({len(curves) for curves in arms.values()})
    seeds = f"{counts[0]} seed{'s' if counts != [1] else ''}"
    if len(counts) > 1:
        seeds = f"{counts[0]} to {counts[-1]} seeds"
    data = offline_data(arms)
    if not data:
        return f"{seeds}; no offline data"
    without = [arm for arm in arms if not any(arm in one.arms for one in data)]
    if len(data) == 1 and not without:
        return f"{seeds}; data: {data[0].name}"
    each = [f"{one.name} for {', '.join(one.arms)}" for one in data]
    return f"{seeds}; data: " + "; ".join([*each, *([f"none for {', '.join(without)}"] if without else [])])
