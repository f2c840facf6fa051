"""Checkpoints of a run: the agent's directory plus `run.json`, what a fork needs to know about where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.agents import Agent, AgentConfig
from o2o_smooth.agents.networks import Precision
from o2o_smooth.agents.storage import load_agent, read_json, save_agent
from o2o_smooth.errors import CheckpointError
from o2o_smooth.reading import check_inside
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.suspicion import check_record


@dataclass(frozen=True)
class SwitchRecord:
    """What is known at the switch: where the agent comes from and how well it does."""

    task: str
    dataset: dict[str, Any] | None
    reward_scale: float
    reward_shift: float
    offline_updates: int
    settings: dict[str, Any]  # what a fork inherits, by the name of its flag
    rows: list[dict[str, Any]]  # the evaluation at the switch, one per seed
    returns: list[list[float]]  # raw returns of its episodes, per seed
    learning_rates: dict[str, list[float]] | None = None  # when pretraining began, per seed
    held_out: Sequence[Sequence[int]] = ()  # rows of the dataset that no update saw, (first, after the last)

    @property
    def returns_array(self) -> NDArray[np.float64]:
        """Raw returns, (M, episodes)."""
        return np.array(self.returns)


def save_checkpoint(
    path: Path,
    agent: Agent,
    record: SwitchRecord,
    controller: dict[str, Any] | None = None,
    *,
    members: Sequence[int] | None = None,
    files: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint directory, atomically; of some members of a population, or of all; with further `files`."""
    extra: dict[str, Any] = {"run.json": asdict(record), **(files or {})}
    if controller is not None:
        extra["controller.json"] = controller
    return save_agent(agent, path, extra, members=members)


def inherited(config: RunConfig[Any]) -> dict[str, Any]:
    """The settings that a fork takes over unless it is told otherwise: how to interact, learn and evaluate."""
    names = ("num_envs", "utd", "batch_size", "update_after", "buffer_size", "vectorizer")
    where = named_by_path(config.task)
    return {name: getattr(config, name) for name in names} | asdict(config.evaluation) | {"task": where}


def named_by_path(name: str) -> str:
    """A task's name that means the same in every folder: a row of one's own by its file's whole path."""
    task, mark, row = name.partition("#")
    return f"{Path(task).resolve()}{mark}{row}" if task.endswith(".toml") else name


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: a checkpoint folder itself, or a run folder's switch.

    Raises:
        CheckpointError: There is none.
    """
    for candidate in (path, path / "checkpoints" / "switch"):
        if (candidate / "run.json").is_file():
            _check_inside(candidate, path)
            return candidate
    raise CheckpointError(
        f"{path} holds no checkpoint of a switch; give a run folder or its checkpoints/switch "
        f"(made by o2o-smooth run with offline updates)"
    )


def _check_inside(folder: Path, path: Path) -> None:
    """Refuse a checkpoint that a link takes out of its run's folder."""
    try:
        check_inside(folder, path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_checkpoint(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    compile: bool = False,
    precision: Precision = "fp32",
    online: str | None = None,
    hyper: AgentConfig | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[Mapping[str, float | None]] | None = None,
) -> tuple[Agent, SwitchRecord]:
    """Read a checkpoint, with another online objective or other settings if given.

    Args:
        path: See `find_checkpoint`.
        device: Where the agent goes.
        compile: See `Agent`.
        precision: See `Agent`.
        online: Another online objective.
        hyper: Other settings of the agent.
        seeds: All the checkpoint's seeds, in its order, once or several times over: a population of several arms.
        overrides: Settings that differ between the members; see `Agent`.

    Raises:
        CheckpointError: It is absent, broken, or of other seeds.
    """
    folder = find_checkpoint(path)
    record = read_record(folder)
    description = read_json(folder / "agent.json")
    name = description.get("agent")
    if hyper is not None and hyper.algorithm != name:
        raise CheckpointError(f"{path} holds an {name} agent; leave --agent out or use --agent {name}")
    members = None
    if seeds is not None:
        have = tuple(description.get("seeds", ()))
        if not have or tuple(seeds) != have * (len(seeds) // len(have)):
            text = " ".join(map(str, have))
            raise CheckpointError(f"{path} holds the seeds {text}; use --seeds {text}")
        members = [i % len(have) for i in range(len(seeds))]
    agent = load_agent(
        folder,
        device=device,
        compile=compile,
        precision=precision,
        online=online,
        config=hyper,
        members=members,
        overrides=overrides,
    )
    return agent, record


def read_record(folder: Path) -> SwitchRecord:
    """Read what a checkpoint says of its switch.

    Raises:
        CheckpointError: It is absent or broken.
    """
    content = read_json(folder / "run.json")
    try:
        check_record(content)
        return SwitchRecord(**content)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'run.json'} does not describe a switch: {error}") from None
