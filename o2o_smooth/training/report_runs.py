"""From run folders to the arms of a report, with the signals that were logged on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.smoothing.rules import rule_name
from o2o_smooth.stability.arms import Arm, find_twins, group_curves, role_of
from o2o_smooth.stability.curves import Curve, read_curves
from o2o_smooth.stability.signals import SignalLines, read_signals
from o2o_smooth.training.config import RunConfig, SmoothingConfig
from o2o_smooth.training.config_hygiene import TREATMENTS
from o2o_smooth.training.pictures import read_checked
from o2o_smooth.training.ramps import COMPONENT_SCHEDULES, ramp_length

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
    "switch",
    "tensorboard",
    "threads",
    "wandb",
    "wandb_project",
)
"""Of a run's settings, those that do not say what was done: names, random numbers, what is checked, and what is logged
where."""


_DEFAULTS: dict[str, Any] = {
    field.name: asdict(field.default_factory()) if field.default_factory is not MISSING else field.default
    for field in fields(RunConfig)
    if field.default_factory is not MISSING or field.default is not MISSING
}
"""Of a run's settings; groups as mappings."""


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
        manifest = read_checked(folder)
        groups = [group for group, default in _DEFAULTS.items() if isinstance(default, dict)]
        if odd := [group for group in groups if not isinstance(manifest["config"].get(group) or {}, dict)]:
            raise O2OError(f"{folder / 'manifest.json'} does not describe a run: config's {odd[0]} is no table")
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
    treated = _treated({name: found[0][1]["config"] for name, found in manifests.items()})
    audits: dict[str, dict[str, SignalLines]] = {}
    for name, mine in group_curves(curves).items():
        arms.append(_arm(name, mine, manifests[name], treated=name in treated))
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
    """All settings of a run that say what was done, as text: two arms that agree in it are an A/A pair.

    Settings that older manifests lack were not there to be changed, so they count as their defaults.
    """
    whole = dict(config)
    for name, default in _DEFAULTS.items():
        whole[name] = (
            {**default, **(config.get(name) or {})} if isinstance(default, dict) else config.get(name, default)
        )
    return json.dumps({k: v for k, v in whole.items() if k not in NOT_SETTINGS}, sort_keys=True)


def _adaptive(config: Mapping[str, Any]) -> bool:
    return rule_name(config["smoothing"]["schedule"]) is not None


def _treated(configs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The arms whose switch something other than smoothing eases: hygiene, an anchor, an average.

    A setting that all of several arms share is common ground and sets none of them apart: a fork with a warm-up for
    all has its controls all the same.
    """
    off = {(group, name): v for group in TREATMENTS for name, v in _DEFAULTS[group].items()}
    found = set()
    for (group, name), value in off.items():
        values = {arm: (config.get(group) or {}).get(name, value) for arm, config in configs.items()}
        if len(values) == 1 or any(one != other for one, other in itertools.pairwise(values.values())):
            found |= {arm for arm, own in values.items() if own != value}
    return found


def _arm(name: str, curves: tuple[Curve, ...], runs: Sequence[tuple[Path, Mapping[str, Any]]], *, treated: bool) -> Arm:
    """An arm from the manifests of its runs."""
    texts = {settings_text(_without_origin(manifest["config"])) for _, manifest in runs}
    if len(texts) > 1:
        where = " and ".join(str(folder) for folder, _ in runs)
        raise DataError(
            f"arm '{name}' has runs of different settings ({where}): give them names of their own, NAME=FOLDER"
        )
    config = runs[0][1]["config"]
    smoothing = config["smoothing"]
    treated = treated or any(smoothing.get(part) for part in COMPONENT_SCHEDULES)
    share = smoothing.get("offline_fraction")
    role = role_of(smoothing["schedule"], smoothing.get("regime", "retain"), share, treated=treated)
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
    smoothing, usual = config["smoothing"], asdict(SmoothingConfig())
    own = {k: v for k, v in smoothing.items() if k in usual and v != usual[k] and isinstance(v, str | int | float)}
    schedule = str(own.pop("schedule", smoothing["schedule"]))
    if (":" in schedule or schedule in ("jump", "stay")) and not any(own.get(part) for part in COMPONENT_SCHEDULES):
        own.pop("ramp_steps", None)  # it has a length of its own, or none
    arm = ",".join([schedule, *(f"{name.replace('_', '-')}={str(v).lower()}" for name, v in own.items())])
    return f"o2o-smooth fork {checkpoint} --arm {arm} --controls --online-steps {config['online_steps']}"
