"""From run folders to the arms of a report, with the signals that were logged on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.smoothing.schedules import parse_schedule
from o2o_smooth.stability.arms import Arm, find_twins, group_curves, role_of
from o2o_smooth.stability.curves import Curve, read_curves
from o2o_smooth.stability.signals import SignalLines, read_signals
from o2o_smooth.training.pictures import read_manifest

AUDIT = "audit.jsonl"
METRICS = "metrics.jsonl"
RULES = ("gate/", "pd/", "kl_gate/", "td_gate/", "gradient_agreement/")
"""How the names of what adaptive rules look at begin."""

WEIGHTS = ("smoothing/", "data/offline_fraction", *RULES)
"""Columns of metrics.jsonl that the controller moves or moves on."""

NOT_SETTINGS = (
    "arm",
    "log_every",
    "memory_check",
    "online_stream",
    "out",
    "overlap",
    "overwrite",
    "save_online",
    "seeds",
    "tensorboard",
    "threads",
    "wandb",
    "wandb_project",
)
"""Of a run's settings, those that do not say what was done: names, random numbers, and what is logged where."""


@dataclass(frozen=True, eq=False)
class Runs:
    """What run folders hold for a report."""

    arms: list[Arm]
    """Controls marked, A/A pairs found."""
    signals: dict[str, dict[str, SignalLines]]
    """By name of the signal, then by arm, along environment steps: weights first."""
    audits: dict[str, dict[str, SignalLines]]
    """Likewise what was audited, along updates since the switch: several audits may share an environment step."""
    manifests: dict[str, dict[str, Any]]
    """By arm, that of its first run."""
    add_controls: str
    """The command that adds the controls of this comparison."""
    notes: list[str]
    """What was left out, in sentences."""


def read_runs(folders: Sequence[tuple[str | None, Path]]) -> Runs:
    """Read run folders; those whose arm has one name are seeds of one arm.

    Runs that did not go online, as the pretraining beside its forks, are left out with a note.

    Args:
        folders: Each with the name its arm gets in the report; None: the manifest's, or else the folder's.

    Raises:
        O2OError: A folder that is no run, no run that went online, runs of different tasks, an arm with a seed twice,
            or one made with two settings.
    """
    curves: list[Curve] = []
    manifests: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    offline: list[Path] = []
    for name, folder in folders:
        manifest = read_manifest(folder)
        found = [curve for curve in read_curves(folder, arm=name) if len(curve.env_steps) > 1]
        if not found:
            offline.append(folder)
            continue
        curves += found
        manifests.setdefault(found[0].arm, []).append((folder, manifest))
    if not curves:
        raise O2OError(f"{_listed(offline)} no evaluations after the switch; report takes runs that went online")
    _check_tasks(manifests)
    arms: list[Arm] = []
    signals: dict[str, dict[str, SignalLines]] = {}
    audits: dict[str, dict[str, SignalLines]] = {}
    for name, mine in group_curves(curves).items():
        arms.append(_arm(name, mine, manifests[name]))
        for folder, _ in manifests[name]:
            _add(signals, name, read_signals(folder / METRICS, WEIGHTS))
            audit = read_signals(folder / AUDIT, (), against="updates")
            _add(audits, name, audit)
            _add(signals, name, {} if audit else read_signals(folder / AUDIT, ()))
    return Runs(
        arms=find_twins(arms),
        audits=audits,
        signals=dict(sorted(signals.items(), key=lambda item: _place(item[0]))),
        manifests={name: found[0][1] for name, found in manifests.items()},
        add_controls=_add_controls(next(iter(manifests.values()))),
        notes=[f"Left out: {_listed(offline)} no evaluations after the switch."] if offline else [],
    )


def _listed(folders: Sequence[Path]) -> str:
    return f"{', '.join(map(str, folders))} {'has' if len(folders) == 1 else 'have'}"


def _place(name: str) -> int:
    """Weights first, the actor's before all; the rest as they came."""
    if name.startswith("smoothing/") and name.endswith("_weight"):
        return 0 if name == "smoothing/actor_weight" else 1
    return 2 if name.startswith(WEIGHTS) else 3


def settings_text(config: Mapping[str, Any]) -> str:
    """All settings of a run that say what was done, as text: two arms that agree in it are an A/A pair."""
    return json.dumps({k: v for k, v in config.items() if k not in NOT_SETTINGS}, sort_keys=True)


def ramp_length(config: Mapping[str, Any]) -> float:
    """Environment steps until every weight of a run stands still; of a rule that moves on signals, its own length."""
    smoothing = config["smoothing"]
    texts = [smoothing.get(f"{name}_schedule") for name in ("actor", "critic", "value", "temperature")]
    texts = [smoothing["schedule"], *(text for text in texts if text is not None)]
    if smoothing.get("offline_fraction_end") is not None:
        texts.append(smoothing["offline_fraction_schedule"])
    longest = max(_settled(text, float(smoothing["ramp_steps"])) for text in texts)
    if smoothing.get("ramp_unit", "env_steps") == "env_steps" or longest == 0:
        return longest
    return longest / float(config["utd"]) + float(config["update_after"])


def _settled(text: str, ramp_steps: float) -> float:
    """The step from which a weight stands still; curves never fall, so it can be bracketed."""
    try:
        curve = parse_schedule(text, ramp_steps)
    except ValueError:  # a rule that moves on signals
        number = text.partition(":")[2]
        return float(number) if number.replace(".", "", 1).isdigit() else ramp_steps
    end = curve(1e15) - 1e-9
    if curve(0.0) >= end:
        return 0.0
    low, high = 0.0, 1.0
    while curve(high) < end:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if curve(middle) >= end else (middle, high)
    return float(round(high, 3))


def _adaptive(config: Mapping[str, Any]) -> bool:
    try:
        parse_schedule(config["smoothing"]["schedule"], 1.0)
    except ValueError:
        return True
    return False


def _arm(name: str, curves: tuple[Curve, ...], runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> Arm:
    """An arm from the manifests of its runs."""
    texts = {settings_text(_without_origin(manifest["config"])) for _, manifest in runs}
    if len(texts) > 1:
        where = " and ".join(str(folder) for folder, _ in runs)
        raise DataError(
            f"arm '{name}' has runs of different settings ({where}): give them names of their own, NAME=FOLDER"
        )
    config = runs[0][1]["config"]
    smoothing = config["smoothing"]
    own = [smoothing.get(f"{part}_schedule") for part in ("actor", "critic", "value", "temperature")]
    share = smoothing.get("offline_fraction")
    role = "smoothed" if any(own) else role_of(smoothing["schedule"], smoothing.get("regime", "retain"), share)
    return Arm(
        name=name,
        curves=curves,
        role=role,
        ramp_steps=ramp_length(config),
        weight_at_end=_last_weight([folder for folder, _ in runs]) if _adaptive(config) else None,
        settings=settings_text(config),
        stream=int(config.get("online_stream", 0)),
    )


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """Seeds of one arm may be forks of several pretrainings."""
    return {name: value for name, value in config.items() if name != "pretrained"}


def _last_weight(folders: Sequence[Path]) -> float | None:
    """The actor's weight at the end, mean over seeds."""
    ends = []
    for folder in folders:
        found = read_signals(folder / METRICS, ("smoothing/actor_weight",))
        ends += [values[-1] for _, values in found.get("smoothing/actor_weight", {}).values() if len(values)]
    return float(np.mean(ends)) if ends else None


def _add(signals: dict[str, dict[str, SignalLines]], arm: str, found: Mapping[str, SignalLines]) -> None:
    for name, lines in found.items():
        signals.setdefault(name, {}).setdefault(arm, {}).update(lines)


def _check_tasks(manifests: Mapping[str, Sequence[tuple[Path, Mapping[str, Any]]]]) -> None:
    tasks = {str(manifest["task"]["id"]): folder for runs in manifests.values() for folder, manifest in runs}
    if len(tasks) > 1:
        where = ", ".join(f"{task} in {folder}" for task, folder in sorted(tasks.items()))
        raise DataError(f"runs of different tasks cannot share a report: {where}; make a report a task")


def _add_controls(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """The command that runs the missing controls."""
    folder, manifest = runs[0]
    config = manifest["config"]
    checkpoint = config.get("pretrained") or str(folder)
    schedule = config["smoothing"]["schedule"]
    return f"o2o-smooth fork {checkpoint} --arm {schedule} --controls --online-steps {config['online_steps']}"
