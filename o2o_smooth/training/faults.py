"""What a run keeps of a fault for inspection, and what it says: `faults/` in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.storage import read_json, save_agent
from o2o_smooth.data.batch import Batch
from o2o_smooth.data.collect import BrokenStep
from o2o_smooth.errors import EnvError, O2OError
from o2o_smooth.files import written_whole
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.guard import Fault, GuardedLearner, NotFinite
from o2o_smooth.training.keeping import Keeper, serials
from o2o_smooth.training.output import Diverged, Output
from o2o_smooth.training.tracking.local import plain

FOLDER = "faults"
CONSPICUOUS = 1e6  # absolute values in a batch that a message names


class RunParts(Protocol):
    """What of a run in progress is needed here."""

    config: RunConfig[Any]
    outputs: list[Output]
    learner: GuardedLearner
    keeper: Keeper | None


def keep_batch(out: Path, fault: Fault, agent: Agent, members: Sequence[int], **more: Any) -> tuple[Path, list[str]]:
    """Write the batches of a fault, and what it is, to `out/faults`.

    Args:
        out: The run's folder.
        fault: From the guard.
        agent: As it is now; kept too where it is still as it was before the update.
        members: The run's members of the population.
        **more: Further values for the JSON file.

    Returns:
        The file of the batches, and sentences about what is in the folder.

    Raises:
        O2OError: The files cannot be written.
    """
    name = _free(out / FOLDER, f"batch-{fault.updates[0]}")
    tensors: dict[str, Tensor] = {}
    for who in fault.batches[0] if fault.batches else ():
        # Updates of one span may see other sides than its first: those are left out of the stack.
        stacked = [batches[who] for batches in fault.batches if who in batches]
        for field in Batch._fields:
            tensors[f"{who}.{field}"] = torch.cat([getattr(batch, field) for batch in stacked]).contiguous()
    file = out / FOLDER / f"{name}.safetensors"
    with written_whole(file) as path:
        save_file(tensors, path)
    sentences = [f"the batch is in {file}"]
    kept_agent = None
    if fault.before_step:
        kept_agent = f"agent-{name.removeprefix('batch-')}"
        save_agent(agent, out / FOLDER / kept_agent, members=members)
        sentences.append(f"the agent as it was before it in {out / FOLDER / kept_agent}")
    _write_json(
        file.with_suffix(".json"),
        {
            "what": fault.text(),
            "kind": fault.kind,
            "component": fault.component,
            "components": fault.components,
            "seed": fault.seed,
            "seeds": [agent.seeds[m] for m in fault.members],
            "value": str(fault.value),
            "objectives": fault.objectives,
            "updates": fault.updates,
            "losses": {n: v if math.isfinite(v) else str(v) for n, v in fault.losses.items()},
            "largest": {n: _largest(tensor) for n, tensor in tensors.items() if not n.endswith("mc_return")},
            "tensors": "(updates, batch, ...); both: one batch for both objectives, else each objective's own rows",
            "file": file.name,
            "agent": kept_agent,
            **more,
        },
    )
    return file, sentences


def conspicuous(fault: Fault) -> str:
    """The row of a fault's batches that explains it, in words; empty where none does."""
    found: list[tuple[float, str]] = []
    for batches in fault.batches:
        for batch in batches.values():
            for field in ("reward", "obs", "next_obs", "action"):
                rows = getattr(batch, field)[0].double().abs().nan_to_num(nan=math.inf, posinf=math.inf)
                size, row = rows.reshape(len(rows), -1).amax(1).max(0)
                if float(size) > CONSPICUOUS:
                    value = getattr(batch, field)[0][int(row)].flatten()
                    worst = float(value[value.double().abs().nan_to_num(nan=math.inf).argmax()])
                    found.append((float(size), f"row {int(row)} of its batch has {field} {worst:g}"))
    return max(found)[1] if found else ""


def keep_step(out: Path, error: BrokenStep, seed: int, env_steps: int, **more: Any) -> Path:
    """Write what an environment was given and gave to `out/faults`.

    Raises:
        O2OError: The files cannot be written.
    """
    name = _free(out / FOLDER, f"step-{env_steps}")
    file = out / FOLDER / f"{name}.safetensors"
    arrays = {key: torch.from_numpy(_numbers(array)) for key, array in error.step.items()}
    with written_whole(file) as path:
        save_file(arrays, path)
    about: Mapping[str, Any] = {"what": str(error), "component": "environment", "seed": seed, "env_steps": env_steps}
    _write_json(file.with_suffix(".json"), {**about, "environment": error.env, "file": file.name, **more})
    return file


def last_checkpoint(run: RunParts, out: Path) -> Path | None:
    """The newest checkpoint of a run: what it goes on from, else the agent with the most updates in checkpoints/."""
    if run.keeper is not None and (found := serials(run.keeper.folder)):
        return run.keeper.folder / f"{found[-1]:06d}"
    agents: list[tuple[int, Path]] = []
    for file in sorted((out / "checkpoints").glob("*/agent.json")):
        try:
            agents.append((int(read_json(file)["updates"]), file.parent))
        except (O2OError, KeyError, TypeError, ValueError):
            continue
    return max(agents)[1] if agents else None


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with written_whole(file) as path:
        path.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _free(folder: Path, name: str) -> str:
    """The name, with a number where it is taken: nothing that was kept is replaced."""
    taken = {path.stem for path in folder.glob(f"{name}*.json")}
    return next(n for n in (name, *(f"{name}.{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def settle(error: NotFinite | BrokenStep, run: RunParts, *, online: bool) -> tuple[Output | None, O2OError]:
    """Keep what a fault leaves to inspect, in the folder of the run whose it is, and say what happened.

    Args:
        error: What was found.
        run: Whose outputs and learner.
        online: Whether it happened after the switch.

    Returns:
        The output of the run that diverged (None where several did), and the error to end with.
    """
    phase = "online" if online else "offline"
    agent = run.learner.agent
    member = error.fault.member if isinstance(error, NotFinite) else error.env // run.config.num_envs
    own = [output for output in run.outputs if member in output.positions(phase)]
    first = own[0]
    checkpoint = last_checkpoint(run, first.out)
    good = f"the last good checkpoint is {checkpoint}" if checkpoint is not None else "there is no checkpoint yet"
    more = {"phase": phase, "checkpoint": None if checkpoint is None else str(checkpoint)}
    sentences: list[str] = []
    try:
        if isinstance(error, NotFinite):
            _, sentences = keep_batch(first.out, error.fault, agent, first.positions(phase), **more)
        else:
            file = keep_step(first.out, error, agent.seeds[member], error.env_steps, **more)
            sentences = [f"the step is in {file}"]
    except O2OError as failed:  # the fault itself is what counts
        sentences = [f"nothing of it is kept: {failed}"]
    for output in own:
        output.manifest["fault"] = {"what": _what(error), "seed": agent.seeds[member], **more, "kept": sentences}
    if run.keeper is not None:
        goes_on = "goes on from there" if serials(run.keeper.folder) else "starts anew"
        good += f"; o2o-smooth resume {first.out} {goes_on}, with other random draws for this seed"
    kept = "; ".join([*sentences, good])
    others = [output for output in run.outputs if output not in own]
    if others:
        names = ", ".join(output.arm.name or str(output.out) for output in others)
        kept += f". The other runs of its population are well, end as interrupted and go on with it: {names}"
    if isinstance(error, BrokenStep):
        text = f"{first.label}{error}, seed {agent.seeds[member]}"
        if not bool(np.isfinite(error.step["action"]).all()):
            text += "; its action was not finite, so the policy is what broke"
        return (first if len(own) == 1 else None), EnvError(f"{text}. {_capital(kept)}")
    why = conspicuous(error.fault)
    text = f"{first.label}training diverged: {error.fault.text()}{': ' if why else ''}{why}"
    cure = "Lower the learning rates or scale the rewards; --on-nan rollback goes on by itself"
    return (first if len(own) == 1 else None), Diverged(f"{text}. {_capital(kept)}. {cure}")


def _what(error: NotFinite | BrokenStep) -> str:
    return error.fault.text() if isinstance(error, NotFinite) else str(error)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)


def _largest(tensor: Tensor) -> float | str:
    """The largest absolute value; as text where it is none that JSON knows."""
    value = float(tensor.double().abs().nan_to_num(nan=math.inf, posinf=math.inf).max())
    if bool(tensor.isnan().any()):
        return "nan"
    return value if math.isfinite(value) else str(value)
