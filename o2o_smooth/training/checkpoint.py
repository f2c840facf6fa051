"""Checkpoints of a run: the agent's directory plus `run.json`, what a fork needs to know about where it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.agents import Agent, AgentConfig
from o2o_smooth.agents.storage import load_agent, read_json, save_agent
from o2o_smooth.errors import CheckpointError
from o2o_smooth.training.config import RunConfig


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

    @property
    def returns_array(self) -> NDArray[np.float64]:
        """Raw returns, (M, episodes)."""
        return np.array(self.returns)


def save_checkpoint(path: Path, agent: Agent, record: SwitchRecord, controller: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint directory, atomically."""
    extra: dict[str, Any] = {"run.json": asdict(record)}
    if controller is not None:
        extra["controller.json"] = controller
    return save_agent(agent, path, extra)


def inherited(config: RunConfig[Any]) -> dict[str, Any]:
    """The settings that a fork takes over unless it is told otherwise: how to interact, learn and evaluate."""
    names = ("num_envs", "utd", "batch_size", "update_after", "buffer_size", "vectorizer")
    task, mark, row = config.task.partition("#")
    where = f"{Path(task).resolve()}{mark}{row}" if task.endswith(".toml") else config.task
    return {name: getattr(config, name) for name in names} | asdict(config.evaluation) | {"task": where}


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: a checkpoint folder itself, or a run folder's switch.

    Raises:
        CheckpointError: There is none.
    """
    for candidate in (path, path / "checkpoints" / "switch"):
        if (candidate / "run.json").is_file():
            return candidate
    raise CheckpointError(
        f"{path} holds no checkpoint of a switch; give a run folder or its checkpoints/switch "
        f"(made by o2o-smooth run with offline updates)"
    )


def load_checkpoint(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    compile: bool = False,
    online: str | None = None,
    hyper: AgentConfig | None = None,
) -> tuple[Agent, SwitchRecord]:
    """Read a checkpoint, with another online objective or other settings if given.

    Raises:
        CheckpointError: It is absent or broken.
    """
    folder = find_checkpoint(path)
    record = read_record(folder)
    name = read_json(folder / "agent.json").get("agent")
    if hyper is not None and hyper.algorithm != name:
        raise CheckpointError(f"{path} holds an {name} agent; leave --agent out or use --agent {name}")
    return load_agent(folder, device=device, compile=compile, online=online, config=hyper), record


def read_record(folder: Path) -> SwitchRecord:
    """Read what a checkpoint says of its switch.

    Raises:
        CheckpointError: It is absent or broken.
    """
    try:
        return SwitchRecord(**read_json(folder / "run.json"))
    except TypeError as error:
        raise CheckpointError(f"{folder / 'run.json'} does not describe a switch: {error}") from None
