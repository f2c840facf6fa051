"""Agents on disk: a directory of `agent.json` and `agent.safetensors`, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from o2o_smooth import reading
from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.config import AgentConfig, build_config
from o2o_smooth.agents.networks import Precision
from o2o_smooth.agents.settings import settle
from o2o_smooth.agents.suspicion import check_description, check_tensor_file, check_tensors
from o2o_smooth.errors import CheckpointError, O2OError
from o2o_smooth.files import describe_file, fsync, verify_file, why

FORMAT = 1
FORMAT_OVERRIDES = 2  # the same with settings that differ between members, which an old reader would miss
CHECKSUMS = "checksums.json"
CHECKSUMS_FORMAT = 1
LEFT_BEHIND = (".*.*.old", ".*.tmp", ".*.tmp.*", ".o2o-smooth-*")  # temporary names of all that is written whole
SHARED = ("obs_mean", "obs_std", "action_center", "action_half")  # tensors of the networks without a members axis
OPTIONAL = ("target_actor.", "log_alpha")  # beginnings of the names of what an online objective may need or not


def write_directory(path: Path, files: dict[str, Any]) -> Path:
    """Write JSON objects (`*.json`, or their text) and tensor dicts (`*.safetensors`) to `path`.

    What was written there before is replaced at the end. Beside them stands `checksums.json`, with the SHA-256 of every
    file. All of it is on the disk before it takes its place: a power cut leaves the old directory or the new one.

    Raises:
        CheckpointError: The files cannot be written, or something else is at `path`; it is still there.
    """
    _check_in_the_way(path, files)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        sums: dict[str, dict[str, Any]] = {}
        for name, content in files.items():
            file = temporary / name
            if name.endswith(".json"):
                text = content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False)
                file.write_text(text + "\n", encoding="utf-8")
            else:
                save_file({k: v.detach().cpu().contiguous() for k, v in content.items()}, file)
            fsync(file)
            sums[name] = describe_file(file)
        listed = temporary / CHECKSUMS
        listed.write_text(json.dumps({"format": CHECKSUMS_FORMAT, "files": sums}, indent=1) + "\n", encoding="utf-8")
        fsync(listed)
        fsync(temporary)
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            path.rename(old)
        temporary.rename(path)
        fsync(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write {path}: {why(error, path)}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _check_in_the_way(path: Path, files: Mapping[str, object]) -> None:
    """Refuse to replace anything but a directory of such files."""
    cure = "choose another path, or move it away"
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link to {path.readlink()}, which would be replaced; {cure}")
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; {cure}")
    if Path.cwd().is_relative_to(path.resolve()):
        raise CheckpointError(f"{path} is the current folder or one above it; give a folder's name")
    known = {*files, CHECKSUMS, ".DS_Store"}
    if (path / CHECKSUMS).is_file():
        with contextlib.suppress(CheckpointError):  # a broken list
            known.update(read_json(path / CHECKSUMS).get("files") or ())
    foreign = sorted(found.name for found in path.iterdir() if found.name not in known)
    if foreign:
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise CheckpointError(f"{path} holds other files ({named}), which would be lost; {cure}")


def verify_directory(path: Path, *, required: bool = False) -> None:
    """Check every file of a directory against `checksums.json`.

    Args:
        path: The directory.
        required: Whether the list must be there; otherwise a directory without one is of an older version and passes.

    Raises:
        CheckpointError: A file is absent or broken, or the list is of a newer version.
    """
    if not required and not (path / CHECKSUMS).is_file():
        return
    listed = read_json(path / CHECKSUMS)
    if listed.get("format") != CHECKSUMS_FORMAT or not isinstance(listed.get("files"), dict):
        raise CheckpointError(
            f"{path / CHECKSUMS} has format {listed.get('format')}, this version reads {CHECKSUMS_FORMAT}; use the "
            f"version that wrote it"
        )
    for name, expected in listed["files"].items():
        if Path(name).name != name:
            raise CheckpointError(f"{path / CHECKSUMS} names a file outside of its folder: {name!r}")
        verify_file(path / name, expected)


def restore_replaced(folder: Path) -> None:
    """Bring order into a folder after a kill: what was being replaced comes back, what was half-written goes."""
    if not folder.is_dir():
        return
    for left in folder.glob(".*.*.old"):
        name = left.name[1:].rpartition(".")[0].rpartition(".")[0]
        with contextlib.suppress(OSError):
            if not (folder / name).exists():
                left.rename(folder / name)
    for left in [path for pattern in LEFT_BEHIND for path in folder.glob(pattern)]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is absent or broken.
    """
    try:
        return reading.read_json(file, root=file.parent)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; is {file.parent} a saved agent or checkpoint?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: The file is absent or broken.
    """
    try:
        check_tensor_file(file)
        return load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is absent or broken: {error}") from None


def save_agent(
    agent: Agent, path: Path, extra: dict[str, Any] | None = None, *, members: Sequence[int] | None = None
) -> Path:
    """See `Agent.save`; `extra` files go into the same directory, and `members` alone (default: all) are written."""
    description, tensors = agent_state(agent, members)
    return write_directory(path, {"agent.json": description, "agent.safetensors": tensors, **(extra or {})})


def take_members(
    agent: Agent,
    members: Sequence[int],
    *,
    config: AgentConfig | None = None,
    overrides: Sequence[Mapping[str, float | None]] | None = None,
) -> Agent:
    """An agent of some members of another, each as often as it is named: what a fork into arms begins with.

    Args:
        agent: The other; it is left alone.
        members: Their positions in it.
        config: Other settings; the networks' shapes must stay. Default: those they have.
        overrides: Settings that differ between the new agent's members. Default: as they differ now, where `config` is
            not given.
    """
    description, tensors = agent_state(agent, members)
    taken = _build(
        description,
        config=config,
        overrides=overrides,
        device=agent.device,
        compile=agent.compile,
        precision=agent.precision,
    )
    _restore(taken, tensors, Path("the agent in memory"), same_online=True)
    return taken


def agent_state(agent: Agent, members: Sequence[int] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything that makes up an agent, of some members: what goes to `agent.json`, and the tensors."""
    picked = list(range(agent.members)) if members is None else list(members)
    config, overrides = settle(agent.config, [agent.overrides[m] for m in picked], len(picked), agent.action_dim)
    description = {
        "format": FORMAT_OVERRIDES if any(overrides) else FORMAT,
        "agent": agent.name,
        "online": agent.online_choice,
        "config": config.to_dict(),
        "seeds": [agent.seeds[m] for m in picked],
        "obs_dim": agent.obs_dim,
        "action_low": [float(x) for x in agent.action_low],
        "action_high": [float(x) for x in agent.action_high],
        "updates": agent.updates,
        "acts": agent.acts,
        "precision": agent.precision,
    }
    if any(overrides):
        description["overrides"] = list(overrides)
    tensors = {f"networks.{name}": value for name, value in agent.networks.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in agent.optimizer.state_tensors().items()}
    if members is not None:
        tensors = _pick(tensors, picked)
    return description, tensors


def _pick(tensors: Mapping[str, Tensor], members: Sequence[int]) -> dict[str, Tensor]:
    """The members' part of every tensor that has a members axis."""
    return {
        name: value if name.removeprefix("networks.") in SHARED else value[list(members)]
        for name, value in tensors.items()
    }


def load_agent(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    compile: bool = False,
    precision: Precision | None = None,
    expected: type[Agent] | None = None,
    online: str | None = None,
    config: AgentConfig | None = None,
    members: Sequence[int] | None = None,
    overrides: Sequence[Mapping[str, float | None]] | None = None,
) -> Agent:
    """Read any saved agent; see `Agent.load`.

    Args:
        path: The directory.
        device: Where the agent goes.
        compile: See `Agent`.
        precision: See `Agent`; default: the saved agent's.
        expected: Refuse another kind of agent.
        online: Another online objective than the saved one. Networks that only it needs start fresh: a target actor as
            a copy of the actor, a temperature at its configured start.
        config: Other settings than the saved ones; the networks' shapes must stay.
        members: Positions of the saved members to take, each as often as it is named; default: all, once.
        overrides: Settings that differ between the members taken; default: as saved, where `config` is not given.

    Raises:
        CheckpointError: The directory is absent, broken, or holds another kind of agent.
    """
    from o2o_smooth.agents import AGENTS

    description = read_json(path / "agent.json")
    if description.get("format") not in (FORMAT, FORMAT_OVERRIDES):
        raise CheckpointError(
            f"{path} has format {description.get('format')}, this version reads {FORMAT} and {FORMAT_OVERRIDES}; use "
            f"the version that wrote it"
        )
    verify_directory(path)
    if expected is not None and AGENTS.get(str(description.get("agent"))) not in (expected, None):
        raise CheckpointError(f"{path} holds a {description['agent']} agent, not {expected.name}")
    tensors = read_tensors(path / "agent.safetensors")
    check_tensors(path, tensors)
    try:
        check_description(description, tensors)
        saved_online = description["online"]
        description["online"] = online or saved_online
        if members is not None:
            for key in ("seeds", "overrides"):
                if key in description:
                    description[key] = [description[key][m] for m in members]
            tensors = _pick(tensors, members)
        agent = _build(
            description,
            config=config,
            overrides=overrides,
            device=device,
            compile=compile,
            precision=precision or description.get("precision", "fp32"),
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, O2OError) as error:
        raise CheckpointError(f"{path / 'agent.json'} does not describe an agent: {error!r}") from None
    _restore(agent, tensors, path, same_online=online in (None, saved_online))
    return agent


def _build(
    description: Mapping[str, Any],
    *,
    config: AgentConfig | None,
    overrides: Sequence[Mapping[str, float | None]] | None,
    device: torch.device | str,
    compile: bool,
    precision: Precision,
) -> Agent:
    """An agent of the described kind and counters, with fresh tensors."""
    from o2o_smooth.agents import AGENTS

    cls = AGENTS[description["agent"]]
    low, high = (np.array(description[k], dtype=np.float32) for k in ("action_low", "action_high"))
    if config is None:
        overrides = description.get("overrides") if overrides is None else overrides
    agent = cls(
        gym.spaces.Box(-np.inf, np.inf, (int(description["obs_dim"]),), np.float32),
        gym.spaces.Box(low, high, dtype=np.float32),
        config or build_config(cls.config_class, description["config"]),
        online=description["online"],
        seeds=[int(s) for s in description["seeds"]],
        overrides=overrides,
        device=device,
        compile=compile,
        precision=precision,
    )
    agent.updates, agent.acts = int(description["updates"]), int(description["acts"])
    return agent


def restore_agent(agent: Agent, description: Mapping[str, Any], tensors: dict[str, Tensor], where: Path) -> None:
    """Put what `agent_state` gave into an agent of the same kind, seeds and settings, in place.

    Raises:
        CheckpointError: It was taken from another agent.
    """
    own, _ = agent_state(agent, None)
    for key in ("agent", "online", "config", "seeds", "obs_dim", "overrides"):
        if json.loads(json.dumps(own.get(key))) != description.get(key):
            raise CheckpointError(f"{where} was taken from an agent with another {key}: {description.get(key)}")
    _restore(agent, tensors, where, same_online=True)
    agent.updates, agent.acts = int(description["updates"]), int(description["acts"])


def _restore(agent: Agent, tensors: dict[str, Tensor], path: Path, *, same_online: bool) -> None:
    own = agent.networks.state_dict()
    stored = {k.removeprefix("networks."): v for k, v in tensors.items() if k.startswith("networks.")}
    for name, value in own.items():
        if name not in stored:
            if not same_online and name.startswith(OPTIONAL):
                continue
            raise CheckpointError(f"{path}: the tensor '{name}' is missing")
        if stored[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: '{name}' has shape {tuple(stored[name].shape)}, expected {tuple(value.shape)}; "
                f"the widths of the networks cannot change"
            )
    unknown = [k for k in stored if k not in own and not (not same_online and k.startswith(OPTIONAL))]
    if unknown:
        raise CheckpointError(f"{path}: unknown tensor '{unknown[0]}'")
    if any(v.dtype == torch.float64 for v in stored.values()):
        agent.double()
    agent.networks.load_state_dict({**agent.networks.state_dict(), **{k: v for k, v in stored.items() if k in own}})
    if agent.networks.target_actor is not None and not any(k.startswith("target_actor.") for k in stored):
        agent.networks.target_actor.load_state_dict(agent.networks.actor.state_dict())
    moments = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    try:
        agent.optimizer.load_state_tensors(moments, fresh=() if same_online else ("temperature",))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
