"""The tidy tables of a study: a row a run (task, agent, arm, seed), and its curves with a row an evaluation.

Both are written as CSV, and as Parquet where pyarrow is installed (extra `bench`); the two hold the same rows.
"""

from __future__ import annotations

import csv
import datetime
import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from o2o_smooth.benchmarks.results_study import Group, SeedRun, StudyRun
from o2o_smooth.files import written_whole
from o2o_smooth.stability.compared import Comparison

Kind = Literal["text", "int", "float", "bool"]


@dataclass(frozen=True)
class Field:
    """A column of a table."""

    name: str
    """Its header."""
    kind: Kind
    """What it holds; any may be empty."""
    meaning: str
    """For people."""


RUN_FIELDS = (
    Field("task", "text", "id of the task"),
    Field("agent", "text", "as the suite calls it"),
    Field("arm", "text", "what was done at the switch"),
    Field("seed", "int", "the seed; the same seed of two arms of a task and agent is a pair"),
    Field("status", "text", "completed, failed, unfinished, missing or broken; metrics are there for completed only"),
    Field("reason", "text", "why it is not completed"),
    Field("role", "text", "jump, smoothed, or which control: stay, mixed, floor, twin"),
    Field("twin_of", "text", "the arm whose settings an A/A arm has"),
    Field("baseline", "text", "the arm that this one is compared with"),
    Field("unit", "text", "score (0 random, 100 reference) or return"),
    Field("budget_steps", "float", "environment steps after the switch over which it is measured"),
    Field("j0", "float", "at the switch"),
    Field("dip_depth", "float", "max(0, J0 - minimum)"),
    Field("dip_depth_relative", "float", "the same as a share of J0 - random"),
    Field("dip_area", "float", "mean of max(0, J0 - J) over the budget"),
    Field("dip_time_steps", "float", "environment steps to the minimum"),
    Field("recovery_steps", "float", "environment steps until it is back; 0: nothing lost; empty: never (censored)"),
    Field("recovery_censored", "bool", "it was not seen to come back within the budget"),
    Field("late_collapse", "float", "best score seen minus the final one"),
    Field("final", "float", "last evaluation within the budget"),
    Field("auc", "float", "mean over the budget"),
    Field("regret", "float", "share of the reference that is missing on average; empty where scores are returns"),
    Field("windowed_forgetting", "float", "largest drop inside a window of evaluations"),
    Field("windowed_plasticity", "float", "largest gain inside a window of evaluations"),
    Field("worst_case", "float", "lowest evaluation after the switch"),
    Field("null_dip", "float", "the dip that evaluation noise alone would show"),
    Field("null_area", "float", "the dip area that noise alone would show"),
    Field("dropped", "bool", "the dip exceeds the null dip by more than the margin"),
    Field("drop_steps", "float", "environment steps to the first evaluation under J0 by more than noise"),
    Field("settings", "text", "what makes the arm, as JSON"),
    Field("agent_name", "text", "the algorithm"),
    Field("calibrated", "bool", "whether CQL was calibrated (Cal-QL)"),
    Field("online", "text", "the online objective"),
    Field("schedule", "text", "of the weight"),
    Field("regime", "text", "of the batches: retain, mixed or discard"),
    Field("ramp_steps", "float", "environment steps until the weight stands still; empty where it moves on signals"),
    Field("provenance", "text", "of the offline data: d4rl, minari, generated or own"),
    Field("dataset", "text", "id of the offline data"),
    Field("dataset_sha256", "text", "fingerprint of the offline data"),
    Field("behaviour", "float", "mean of the offline data's own episodes, in the unit"),
    Field("ref_random", "float", "return of score 0"),
    Field("ref_expert", "float", "return of score 100"),
    Field("pretraining", "text", "fingerprint of the pretraining that arms share"),
    Field("offline_updates", "int", "updates before the switch"),
    Field("online_steps", "int", "environment steps after the switch, as planned"),
    Field("evaluations", "int", "evaluations from the switch on"),
    Field("episodes", "int", "episodes of an evaluation after the switch (median)"),
    Field("updates", "int", "updates at the last evaluation, those before the switch included"),
    Field("wall_s", "float", "seconds at work, over all starts; of the whole population where it shares one"),
    Field("members", "int", "members of the population it was trained in, itself included"),
    Field("updates_per_s", "float", "of that population, after the switch (median)"),
    Field("device", "text", "where it ran"),
    Field("threads", "int", "of the CPU"),
    Field("started", "text", "UTC"),
    Field("finished", "text", "UTC"),
    Field("folder", "text", "of the run, relative to the study"),
    Field("job", "text", "which did it"),
    Field("commit", "text", "of the source"),
    Field("versions", "text", "of what the numbers depend on, as JSON"),
)
"""Columns of `results`, in order."""

CURVE_FIELDS = (
    Field("task", "text", "id of the task"),
    Field("agent", "text", "as the suite calls it"),
    Field("arm", "text", "what was done at the switch"),
    Field("seed", "int", "the seed"),
    Field("run", "text", "folder of the run, relative to the study"),
    Field("status", "text", "of the run, as in results"),
    Field("phase", "text", "offline (before the switch) or online (the switch and after it)"),
    Field("updates", "int", "offline updates; before the switch only"),
    Field("env_steps", "int", "since the switch; after it only, 0 is the switch"),
    Field("score", "float", "mean of the evaluation, in the unit; empty where it is NaN"),
    Field("spread", "float", "standard deviation over its episodes, in the unit"),
    Field("episodes", "int", "behind it"),
    Field("unit", "text", "score or return"),
    Field("provenance", "text", "of the offline data"),
)
"""Columns of `curves`, in order."""

Row = dict[str, Any]


def run_rows(groups: Iterable[Group], comparisons: Mapping[str, Comparison]) -> list[Row]:
    """A row a planned seed.

    Args:
        groups: All of the study.
        comparisons: By the group's label; groups that cannot be compared have none, and their rows no metrics.
    """
    rows = []
    rates: dict[Path, Mapping[int, Mapping[str, float]]] = {}
    for group in groups:
        comparison = comparisons.get(group.label)
        measured: dict[tuple[str, int], Row] = {}
        columns = {} if comparison is None else {column.arm.name: column for column in comparison.columns}
        for name, column in columns.items():
            measured |= {(name, row.curve.seed): row.values() for row in column.rows}
        for one in group.runs:
            rate = rates.setdefault(one.run.folder, read_rates(one.run)).get(one.seed, {}) if one.manifest else {}
            row = _described(one, rate)
            row |= {key: value for key, value in measured.get((one.run.arm, one.seed), {}).items() if key in _METRICS}
            if comparison is not None and one.run.arm in columns:
                arm = columns[one.run.arm].arm
                row |= {"role": arm.role, "twin_of": arm.twin_of, "ramp_steps": arm.ramp_steps}
                row |= {"baseline": comparison.baseline.arm.name, "budget_steps": comparison.budget}
            rows.append({field.name: row.get(field.name) for field in RUN_FIELDS})
    return rows


_FIRST_METRIC, _LAST_METRIC = "j0", "drop_steps"
_names = [field.name for field in RUN_FIELDS]
_METRICS = frozenset(_names[_names.index(_FIRST_METRIC) : _names.index(_LAST_METRIC) + 1])


def curve_rows(groups: Iterable[Group]) -> list[Row]:
    """A row an evaluation, of every seed that has any, completed or not."""
    rows: list[Row] = []
    for one in (one for group in groups for one in group.runs):
        about = {
            "task": one.run.task,
            "agent": one.run.agent,
            "arm": one.run.arm,
            "seed": one.seed,
            "run": one.run.name,
            "status": one.status,
        }
        if one.pretraining is not None:
            before = one.pretraining
            about_data = {"unit": before.unit, "provenance": before.provenance, "phase": "offline"}
            rows += [
                {**about, **about_data, "updates": int(update), "score": _finite(score)}
                for update, score in zip(before.updates, before.scores, strict=True)
            ]
        if (curve := one.curve) is None:
            continue
        for k, step in enumerate(curve.env_steps):
            rows.append(
                {
                    **about,
                    "phase": "online",
                    "env_steps": int(step),
                    "score": _finite(curve.scores[k]),
                    "spread": None if curve.spread is None else _finite(curve.spread[k]),
                    "episodes": None if curve.episodes is None else int(curve.episodes[k]),
                    "unit": curve.unit,
                    "provenance": curve.provenance,
                }
            )
    return [{field.name: row.get(field.name) for field in CURVE_FIELDS} for row in rows]


def read_rates(run: StudyRun) -> dict[int, dict[str, float]]:
    """By seed: `updates` at the end and `updates_per_s` after the switch; what cannot be read is left out."""
    speeds: dict[int, list[float]] = {}
    updates: dict[int, float] = {}
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for row in _lines(run.folder / name):
            seed, count, speed = row.get("seed"), row.get("updates"), row.get("time/updates_per_s")
            if not isinstance(seed, int):
                continue
            if isinstance(count, int):
                updates[seed] = max(count, updates.get(seed, 0))
            if row.get("phase") == "online" and isinstance(speed, int | float) and math.isfinite(speed) and speed > 0:
                speeds.setdefault(seed, []).append(float(speed))
    found: dict[int, dict[str, float]] = {seed: {"updates": count} for seed, count in updates.items()}
    for seed, values in speeds.items():
        found.setdefault(seed, {})["updates_per_s"] = float(np.median(values))
    return found


def _lines(path: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a log that are whole; a log that is not there has none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _described(one: SeedRun, rate: Mapping[str, float]) -> Row:
    """What is known of a seed beside its metrics."""
    manifest, curve = one.manifest, one.curve
    config: Mapping[str, Any] = manifest.get("config") or {}
    smoothing = config.get("smoothing") or {}
    dataset = manifest.get("dataset") or {}
    task = manifest.get("task") or {}
    versions = manifest.get("versions") or {}
    population = manifest.get("population") or {}
    hyper = manifest.get("hyper") or {}
    after = [] if curve is None or curve.episodes is None else curve.episodes[1:].tolist()
    return {
        "task": one.run.task,
        "agent": one.run.agent,
        "arm": one.run.arm,
        "seed": one.seed,
        "status": one.status,
        "reason": one.reason or None,
        "unit": None if curve is None else curve.unit,
        "settings": json.dumps(dict(one.run.settings), sort_keys=True),
        "agent_name": manifest.get("agent"),
        "calibrated": hyper.get("calibrated"),
        "online": manifest.get("online"),
        "schedule": smoothing.get("schedule"),
        "regime": smoothing.get("regime"),
        "provenance": dataset.get("provenance") if dataset else None if curve is None else curve.provenance,
        "dataset": dataset.get("id"),
        "dataset_sha256": dataset.get("sha256"),
        "behaviour": None if curve is None else curve.behaviour,
        "ref_random": task.get("ref_random"),
        "ref_expert": task.get("ref_expert"),
        "pretraining": one.run.pretraining,
        "offline_updates": config.get("offline_updates"),
        "online_steps": config.get("online_steps"),
        "evaluations": None if curve is None else len(curve.env_steps),
        "episodes": int(np.median(after)) if len(after) else None,
        "updates": rate.get("updates"),
        "wall_s": _seconds(manifest),
        "members": population.get("members"),
        "updates_per_s": rate.get("updates_per_s"),
        "device": manifest.get("device"),
        "threads": manifest.get("threads"),
        "started": manifest.get("started"),
        "finished": manifest.get("finished"),
        "folder": one.run.name,
        "job": one.run.job or None,
        "commit": versions.get("commit"),
        "versions": json.dumps(versions, sort_keys=True) if versions else None,
    }


def _seconds(manifest: Mapping[str, Any]) -> float | None:
    """How long a run took; of older ones that did not say so, from its start to its end."""
    told = manifest.get("wall_s")
    if isinstance(told, int | float):
        return float(told)
    try:
        begin, end = (datetime.datetime.fromisoformat(str(manifest.get(key))) for key in ("started", "finished"))
    except ValueError:
        return None
    return max(0.0, (end - begin).total_seconds())


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_table(stem: Path, fields: Sequence[Field], rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write `STEM.csv`, and `STEM.parquet` where pyarrow is installed; returns what was written.

    A Parquet file of an earlier call that cannot be replaced is removed, for it would tell of other rows.

    Raises:
        O2OError: The folder cannot be written.
    """
    written = [stem.with_suffix(".csv")]
    with written_whole(written[0]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields])
        writer.writerows([_cell(row[field.name]) for field in fields] for row in rows)
    parquet = stem.with_suffix(".parquet")
    if not has_parquet():
        parquet.unlink(missing_ok=True)
        return written
    arrow, files = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    kinds = {"text": arrow.string(), "int": arrow.int64(), "float": arrow.float64(), "bool": arrow.bool_()}
    schema = arrow.schema([arrow.field(f.name, kinds[f.kind], metadata={"meaning": f.meaning}) for f in fields])
    columns = {field.name: [_typed(row[field.name], field.kind) for row in rows] for field in fields}
    with written_whole(parquet) as temporary:
        files.write_table(arrow.table(columns, schema=schema), str(temporary))
    return [*written, parquet]


def has_parquet() -> bool:
    """Whether pyarrow can be imported."""
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        return False
    return True


def _cell(value: Any) -> str:
    """A value in CSV; what is not known is empty."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def _typed(value: Any, kind: Kind) -> Any:
    """A value of the column's kind; what has none is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return {"text": str, "int": int, "float": float, "bool": bool}[kind](value)
