"""The cache of pretrainings: one checkpoint a seed, found by a hash over everything that determines it.

A pretraining is never done twice on a machine (or a file system that several share): not for another arm, not for
another study, not by two jobs at once. The folder is `$O2O_SMOOTH_CACHE`, or `o2o_smooth` in the user's cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.settings import leaves, offline_setting
from o2o_smooth.agents.storage import SHARED, read_json, read_tensors, write_directory
from o2o_smooth.data.sources import keep_for_next, load_dataset
from o2o_smooth.envs import Task, find_task
from o2o_smooth.errors import CheckpointError
from o2o_smooth.training.audit import ROWS_FILE
from o2o_smooth.training.checkpoint import SwitchRecord, load_checkpoint, read_record, save_checkpoint
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.manifest import versions
from o2o_smooth.training.progress import ProgressSink, when_slow

CACHE_VARIABLE = "O2O_SMOOTH_CACHE"
"""Environment variable: folder of the cache."""
FORMAT = 1
"""Raised where a pretraining of the same settings would come out otherwise."""
_VERSIONS = ("o2o_smooth", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco")
_OF_TASK = ("aliases", "dataset_ids", "ref_source")  # that do not matter
DESCRIPTION = "pretraining.json"


def cache_folder() -> Path:
    """Where pretrainings are kept."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured).expanduser() / "pretrained"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "o2o_smooth" / "pretrained"


def specification(config: RunConfig[Any]) -> dict[str, Any]:
    """Everything that determines a pretraining but its seed and the contents of its dataset."""
    task = find_task(config.task)
    row = {k: v for k, v in dataclasses.asdict(task).items() if k not in _OF_TASK}
    agent = AGENTS[config.agent]
    found = versions()
    return {
        "format": FORMAT,
        "versions": {name: found[name] for name in _VERSIONS if name in found},
        "task": row,
        "agent": config.agent,
        "online": config.online or agent.online_choices[0],
        "hyper": {k: v for k, v in leaves(config.hyper).items() if offline_setting(config.agent, k)},
        "offline_updates": config.offline_updates,
        "batch_size": config.batch_size,
        "reward": [config.reward_scale, config.reward_shift],
        "holdout": config.switch.holdout,
        "audit_rows": config.switch.audit_rows,
        "precision": config.precision,
        "device": config.device.partition(":")[0],
        "evaluation": [
            config.evaluation.switch_episodes,
            min(config.evaluation.eval_envs, config.evaluation.eval_episodes),
        ],
    }


def digest(content: Mapping[str, Any]) -> str:
    """A short hash of plain values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(config: RunConfig[Any], progress: ProgressSink, *, keep: bool = False) -> dict[str, str]:
    """What identifies the contents of a run's dataset; it is made or fetched where it is not there.

    Args:
        config: The run's.
        progress: Where progress goes.
        keep: The run comes next: it need not read them again (`let_go` of `data.sources` if it does not come).

    Raises:
        DataError: It cannot be had.
    """
    task: Task = find_task(config.task)
    dataset = load_dataset(
        task,
        dataset=config.dataset,
        provenance=config.provenance,
        progress=when_slow(progress.update),
        log=progress.note,
    )
    if keep:
        keep_for_next(task, config.dataset, config.provenance, dataset)
    return {"sha256": dataset.sha256, "provenance": dataset.provenance}


def address(specified: Mapping[str, Any], data: Mapping[str, str], seed: int | None = None) -> str:
    """The hash of a pretraining; without a seed: what all seeds of it share."""
    content = {**specified, "dataset": dict(data)}
    return digest(content if seed is None else {**content, "seed": seed})


def split(run: Path, seeds: Sequence[int], targets: Mapping[int, Path], described: Mapping[str, Any]) -> None:
    """Write the checkpoint of each seed of a finished pretraining into a folder of its own.

    Args:
        run: The run's folder.
        seeds: Its seeds, in its order.
        targets: Folders by seed.
        described: Goes beside each, with the seed.

    Raises:
        CheckpointError: The run has no checkpoint, or a folder cannot be written.
    """
    source = run / "checkpoints" / "switch"
    agent, record = load_checkpoint(source)
    if tuple(agent.seeds) != tuple(seeds):
        raise CheckpointError(f"{source} holds the seeds {agent.seeds}, not {tuple(seeds)}")
    extra = {ROWS_FILE: read_tensors(source / ROWS_FILE)} if (source / ROWS_FILE).is_file() else {}
    for seed, target in targets.items():
        m = seeds.index(seed)
        own = dataclasses.replace(
            record,
            rows=[record.rows[m]],
            returns=[record.returns[m]],
            learning_rates=_rates(record, [m]),
        )
        text = {**described, "seed": seed, "trained_with": list(seeds)}
        save_checkpoint(target, agent, own, members=[m], files={**extra, DESCRIPTION: text})


def joined(folders: Sequence[Path], target: Path) -> Path:
    """One checkpoint of several seeds from those of single seeds; what is there already stays.

    Args:
        folders: Of one pretraining, a seed each, in order.
        target: The new checkpoint.

    Raises:
        CheckpointError: One is broken, or they are not of one pretraining.
    """
    if (target / "run.json").is_file():
        return target
    descriptions = [read_json(folder / "agent.json") for folder in folders]
    records = [read_record(folder) for folder in folders]
    tensors = [read_tensors(folder / "agent.safetensors") for folder in folders]
    for folder, own, description in zip(folders, tensors, descriptions, strict=True):
        if own.keys() != tensors[0].keys() or description["updates"] != descriptions[0]["updates"]:
            raise CheckpointError(f"{folder} and {folders[0]} are not of one pretraining")
    together = {
        name: value if name.removeprefix("networks.") in SHARED else torch.cat([own[name] for own in tensors])
        for name, value in tensors[0].items()
    }
    description = {**descriptions[0], "seeds": [seed for own in descriptions for seed in own["seeds"]]}
    record = dataclasses.asdict(records[0])
    record["rows"] = [row for own in records for row in own.rows]
    record["returns"] = [returns for own in records for returns in own.returns]
    if all(own.learning_rates is not None for own in records):
        record["learning_rates"] = {
            name: [rate for own in records for rate in (own.learning_rates or {})[name]]
            for name in records[0].learning_rates or {}
        }
    files: dict[str, Any] = {"agent.json": description, "agent.safetensors": together, "run.json": record}
    if (folders[0] / ROWS_FILE).is_file():
        files[ROWS_FILE] = read_tensors(folders[0] / ROWS_FILE)
    return write_directory(target, files)


def copied(source: Path, target: Path) -> Path:
    """A checkpoint in a second place, by links to the same files where the file system has them."""
    if (target / "run.json").is_file():
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        try:
            shutil.copytree(source, temporary, copy_function=os.link)
        except (OSError, shutil.Error):
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (target / "run.json").is_file():  # else somebody was quicker
            raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _rates(record: SwitchRecord, members: Sequence[int]) -> dict[str, list[float]] | None:
    if record.learning_rates is None:
        return None
    return {name: [rates[m] for m in members] for name, rates in record.learning_rates.items()}


def check(folder: Path) -> None:
    """Read a checkpoint of the cache, whole.

    Raises:
        CheckpointError: It is absent or broken.
    """
    read_record(folder)
    read_json(folder / "agent.json")
    read_tensors(folder / "agent.safetensors")
