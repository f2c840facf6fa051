"""What a run is made of, for its manifest: settings, data, device, versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import o2o_smooth
from o2o_smooth.agents.storage import read_json
from o2o_smooth.data.sources import Dataset
from o2o_smooth.errors import CheckpointError
from o2o_smooth.stability.origin import score_block
from o2o_smooth.training.prepare import Arm, Prepared, needs_dataset

VERSIONED = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari")
_NOT_OF_TASK = ("aliases", "dataset_ids", "reward_scale", "reward_shift")


def make_manifest(prepared: Prepared, arm: Arm | None = None) -> dict[str, Any]:
    """The manifest of a run that begins; of the first arm where several share a population, unless one is named."""
    agent, forked = prepared.agent, prepared.forked
    config = (arm or prepared.arms[0]).config
    dataset = forked.dataset if forked is not None else None  # what a fork learned from, though it read none itself
    if prepared.dataset is not None and needs_dataset(config):
        dataset = describe_dataset(prepared.dataset)
    task = {name: value for name, value in asdict(prepared.task).items() if name not in _NOT_OF_TASK}
    return {
        "format": 1,
        "arm": (arm or prepared.arms[0]).name,
        "status": "running",
        "command": sys.argv,
        "config": config.to_dict(),
        "task": {**task, "reward_scale": prepared.reward_map.scale, "reward_shift": prepared.reward_map.shift},
        "dataset": dataset,
        "holdout": prepared.holdout.to_dict(),
        "score": score_block(task, dataset),
        "agent": agent.name,
        "online": agent.online_choice,
        "hyper": config.hyper.to_dict(),
        "seeds": list(config.seeds),
        "population": {"members": len(prepared.members.seeds), "runs": len(prepared.arms)},
        "device": device_name(agent.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "started": now(),
        "finished": None,
    }


def resumed_manifest(out: Path, fresh: dict[str, Any], resumed: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on: the one in its folder, with what is said of this; else a fresh one."""
    try:
        kept = read_json(out / "manifest.json")
    except CheckpointError:  # stopped before it was written
        kept = fresh
    earlier = kept.get("resumed")
    entry = {"at": now(), **resumed}
    if kept.get("versions") != fresh["versions"]:
        entry["versions"] = fresh["versions"]
    return {
        **fresh,
        **kept,
        "status": "running",
        "finished": None,
        "resumed": [*(earlier if isinstance(earlier, list) else []), entry],
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"o2o_smooth": o2o_smooth.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if (commit := _commit()) is not None:
        found["commit"] = commit
    return found


def _commit() -> str | None:
    """The commit of a source checkout, marked where it has changes; None for an installed package."""
    root = Path(o2o_smooth.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ("git", "-C", str(root))
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "") if head.returncode == 0 else None


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a manifest and a checkpoint say of the offline data."""
    returns = dataset.transitions.episode_returns
    return {
        "id": dataset.id,
        "source": str(Path(dataset.id).expanduser().resolve()) if Path(dataset.id).exists() else dataset.id,
        "provenance": dataset.provenance,
        "sha256": dataset.sha256,
        "transitions": len(dataset.transitions),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "clipped_actions": dataset.clipped,
        "actions_outside": dataset.outside,
        "note": dataset.note,
    }


def device_name(device: torch.device) -> str:
    """The device, with the GPU's model."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def now() -> str:
    """The time, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
