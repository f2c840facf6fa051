"""What the comparison of policy and data at the switch advises, and what became of it.

The comparison is a test (`stability.regime`). What follows from it is a rule of thumb: preserve whichever is better,
the policy or the data (Li, Ni, Sun & Bacon, arXiv 2510.01460: its predictions held in 45 of 63 settings). Which of our
schedules does that best has been seen on a few small tasks only (docs/fork.md), so the advice is written down, to be
checked against outcomes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.envs import Task
from o2o_smooth.files import written_whole
from o2o_smooth.stability.curves import read_curves
from o2o_smooth.stability.metrics import RECOVERY_MARGIN, stability_metrics
from o2o_smooth.stability.regime import Comparison, Episodes, above, compare_with_data
from o2o_smooth.training.checkpoint import SwitchRecord
from o2o_smooth.training.config_groups import REGIME_SHARE

ADVICE = "advice.json"
BASIS = "the comparison is a test over episodes; the preset is a rule of thumb"


@dataclass(frozen=True)
class Preset:
    """Settings that fit a regime."""

    schedule: str
    """`--schedule`."""
    regime: str
    """`--regime`."""
    offline_fraction: float
    """`--offline-fraction`."""
    why: str
    """In one sentence."""

    @property
    def flags(self) -> str:
        """As on the command line."""
        share = f" --offline-fraction {self.offline_fraction:g}" if self.regime == "mixed" else ""
        return f"--schedule {self.schedule} --regime {self.regime}{share}"


PRESETS = {
    "policy better": Preset(
        "performance_gate",
        "retain",
        0.0,
        "the policy is what is worth keeping: advance only while its return holds, and learn online from its own rows",
    ),
    "data better": Preset(
        "linear",
        "mixed",
        0.5,
        "the data hold more than the policy shows: keep them in every batch, and ease over without waiting for its "
        "return to hold",
    ),
    "comparable": Preset(
        "performance_gate",
        "mixed",
        0.5,
        "policy and data are worth about the same: keep both, with data in every batch and a gate on the return",
    ),
    "nothing to lose": Preset(
        "jump",
        "mixed",
        0.5,
        "the policy is no better than a random one, so that there is nothing to ease over: learn online at once, with "
        "the data in every batch",
    ),
}
"""By regime; the last is for a policy that is within noise of the random score."""


@dataclass(frozen=True)
class Advice:
    """What is known at the switch, and what follows."""

    comparison: Comparison | None
    """None where it could not be made."""
    unit: str
    """score or return."""
    at_random: bool
    """Whether the policy is within noise of the random one, so that it has nothing to lose; known for scores alone."""
    preset: Preset | None
    """What is advised."""
    missing: str
    """Why there is no comparison; empty where there is one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest and the file."""
        if self.comparison is None or self.preset is None:
            return {"regime": None, "missing": self.missing}
        preset = {name: value for name, value in asdict(self.preset).items() if name != "why"}
        found = self.comparison
        return {
            **asdict(found),
            "df": found.df if math.isfinite(found.df) else None,
            "seeds": list(found.seeds),
            "unit": self.unit,
            "at_random": self.at_random,
            "preset": preset,
            "flags": self.preset.flags,
            "why": self.preset.why,
            "basis": BASIS,
        }

    def sentence(self) -> str:
        """One line for people."""
        found = self.comparison
        if found is None or self.preset is None:
            return f"no advice: {self.missing}"
        sure = "" if found.certain else ", as far as so few episodes can tell"
        exact = "; the data's spread is not on record" if found.exact_data else ""
        regime = "the policy is no better than a random one" if self.at_random else found.regime
        return (
            f"{regime}{sure} ({self.unit}: policy {_amount(found.policy)}, data {_amount(found.data)}, difference "
            f"{_amount(found.difference)} in [{_amount(found.low)}, {_amount(found.high)}], margin "
            f"{_amount(found.margin)}{exact}); "
            f"rule of thumb: {self.preset.flags}"
        )


def _amount(value: float) -> str:
    """A score or a return for people."""
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{0 if abs(value) >= 1000 else 1}f}"


def advise(record: SwitchRecord, task: Task) -> Advice:
    """What the evaluation at the switch advises; scores where the task has references, returns elsewhere."""
    returns = record.returns_array
    scores = task.score(returns)
    unit, policy = ("return", returns) if scores is None else ("score", np.asarray(scores))

    def missing(why: str) -> Advice:
        return Advice(None, unit, at_random=False, preset=None, missing=why)

    if record.dataset is None:
        return missing("the agent learned from no offline data")
    if policy.ndim != 2 or policy.shape[1] < 2:
        return missing("one episode a seed at the switch has no spread; evaluate with more (--switch-episodes)")
    if not np.isfinite(policy).all():
        return missing("an episode at the switch came to NaN or infinity")
    data = _data(record.dataset, task)
    points = 1.0 if unit == "score" else max(abs(float(policy.mean())), abs(data.mean)) / 100
    comparison = compare_with_data(policy, data, margin=RECOVERY_MARGIN * points)
    at_random = unit == "score" and not above(policy, RECOVERY_MARGIN)
    preset = PRESETS["nothing to lose" if at_random else comparison.regime]
    return Advice(comparison, unit, at_random, preset, "")


def _data(dataset: Mapping[str, Any], task: Task) -> Episodes:
    """The data's episodes in the unit of the policy's."""
    mean, std, count = dataset["return_mean"], dataset.get("return_std"), int(dataset["episodes"])
    score = task.score(float(mean))
    if score is None:
        return Episodes(float(mean), std, count)
    scale = float(task.score(1.0)) - float(task.score(0.0))  # type: ignore[arg-type]
    return Episodes(float(score), None if std is None else abs(scale) * std, count)


def followed(advice: Advice, smoothing: Mapping[str, Any]) -> bool | None:
    """Whether a run's settings (`config.smoothing` of its manifest) are those advised; None without advice."""
    if advice.preset is None:
        return None
    share = smoothing["offline_fraction"]
    share = REGIME_SHARE[smoothing["regime"]] if share is None else share
    same_curve = smoothing["schedule"].split(":")[0] == advice.preset.schedule
    return same_curve and (smoothing["regime"], share) == (advice.preset.regime, advice.preset.offline_fraction)


def outcome(run_dir: Path) -> dict[str, float] | None:
    """How it ended, means over seeds: what the advice can be checked against; None before any online evaluation.

    Raises:
        O2OError: The folder's evaluations cannot be read.
    """
    curves = [curve for curve in read_curves(run_dir) if len(curve.env_steps) > 1]
    if not curves or not all(np.isfinite(curve.scores).all() for curve in curves):
        return None
    found = [stability_metrics(curve.env_steps, curve.scores) for curve in curves]
    names = ("dip_depth", "dip_area", "final", "auc")
    return {name: float(np.mean([getattr(one, name) for one in found])) for name in names}


def write_advice(run_dir: Path, content: Mapping[str, Any]) -> Path:
    """Write `advice.json` into a run's folder, whole or not at all.

    Raises:
        O2OError: The folder cannot be written.
    """
    path = run_dir / ADVICE
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def run_folder(checkpoint: Path) -> Path | None:
    """The run that a checkpoint folder belongs to; None for one that was copied elsewhere."""
    folder = checkpoint.resolve()
    is_in_run = folder.parent.name == "checkpoints" and (folder.parent.parent / "manifest.json").is_file()
    return folder.parent.parent if is_in_run else None
