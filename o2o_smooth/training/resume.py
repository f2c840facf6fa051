"""Going on with a run that was stopped, as if it had not been."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from o2o_smooth.agents.storage import read_json, restore_replaced
from o2o_smooth.errors import CheckpointError, ConfigError, O2OError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.keeping import FOLDER, Keeper, Kept, read_newest
from o2o_smooth.training.prepare import prepare_population
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.request import Request, differing, has_request, read_request
from o2o_smooth.training.rollback import going_on, take_back
from o2o_smooth.training.run import Run
from o2o_smooth.training.threads import set_threads


def status(folder: Path) -> str | None:
    """What the manifest says of a run: running (also where it was killed), interrupted, failed, completed; or None."""
    try:
        found = read_json(folder / "manifest.json").get("status")
    except CheckpointError:
        return None
    return found if isinstance(found, str) else None


def can_resume(folder: Path) -> bool:
    """Whether a run was begun there that is not complete, and can be gone on with (or, without a checkpoint, begun)."""
    if not has_request(folder):
        return False
    try:
        request = read_request(folder)
    except O2OError:
        return False
    return any(status(out) != "completed" for out in request.outs)


def resume_command(folder: Path) -> str | None:
    """The command that goes on with a run; None where there is nothing to go on with."""
    if not can_resume(folder):
        return None
    request = read_request(folder)
    words = ["o2o-smooth", "resume", str(folder)]
    if ":" in str(request.task.get("env_id")):  # in a module that only the user may have imported
        words += ["--task", request.configs[0].task]
    return shlex.join(words)


def resume(folder: Path, progress: ProgressSink | None = None, *, task: str | None = None) -> Path:
    """Go on with a run, and with those that share its population; a complete one is left as it is.

    Args:
        folder: The run's.
        progress: Where progress goes; default: nowhere.
        task: The run's task, to be named where it is in a module of one's own (`module:Id`): a folder that somebody
            else made imports nothing by itself.

    Returns:
        The folder.

    Raises:
        CheckpointError: There is no run that could be resumed, or what it needs is gone or broken.
        EnvError: The task is in a module that nobody has imported or named.
        ConfigError: Another process is at work on it.
        Interrupted: It was asked to stop once more.
    """
    resume_all(folder, progress, task=task)
    return folder


def resume_all(folder: Path, progress: ProgressSink | None = None, *, task: str | None = None) -> list[Path]:
    """The same; gives the folders of all runs that share the population."""
    progress = progress or Silent()
    folder = Path(folder)
    if not has_request(folder):
        if status(folder) == "completed":
            restore_replaced(folder)
            progress.note(f"{folder} is complete; there is nothing to resume")
            return [folder]
        raise CheckpointError(
            f"{folder} holds nothing to resume: no run, or one that was started with --no-save-checkpoints"
            + ("" if status(folder) is None else "; start it anew with o2o-smooth run --overwrite")
        )
    request = read_request(folder)
    outs = list(request.outs)
    keeping = request.home / FOLDER
    if all(status(out) == "completed" for out in outs):
        progress.note(f"{folder} is complete; there is nothing to resume")
        Keeper(keeping, request.configs[0].checkpoints).clear([out / FOLDER for out in outs])
        for out in outs:
            restore_replaced(out)
        return outs
    request.trust(task)
    return going_on(lambda: _go_on(folder, request, progress), request.home, request.configs[0], progress)


def _go_on(folder: Path, request: Request, progress: ProgressSink) -> list[Path]:
    outs, keeping = list(request.outs), request.home / FOLDER
    keeper = Keeper(keeping, request.configs[0].checkpoints)
    keeper.lock()  # before anything is read: another process could still be writing
    try:
        take_back(request.home, outs, progress.note)
        kept = read_newest(keeping, progress.note, lambda state: _fits(outs, state))
        if len(outs) > 1:
            progress.note(f"{folder} shares a learner with {len(outs) - 1} others; all of them go on")
        progress.note(f"{folder} {_whence(kept)}")
        set_threads(request.configs[0], sum(len(config.seeds) for config in request.configs))
        prepared = prepare_population(list(request.configs), progress, list(request.names), resumed=outs)
        request.check(prepared)
        return Run(prepared, progress, keeper=keeper, kept=kept).do()
    finally:
        keeper.unlock()


def _whence(kept: Kept | None) -> str:
    if kept is None:
        return "has no checkpoint yet; it starts anew"
    at = kept.state["at"]
    if kept.state["phase"] == "offline":
        return f"goes on from pretraining, {at['updates']:,} updates"
    return f"goes on from fine-tuning, {at['updates']:,} updates and {at['env_steps']:,} online steps"


def _fits(outs: list[Path], state: Mapping[str, Any]) -> None:
    """Check that the runs' files reach as far as a checkpoint says."""
    from o2o_smooth.training.tracking.local import FILES

    if len(state["outputs"]) != len(outs):
        raise CheckpointError(f"it was written by {len(state['outputs'])} runs, and there are {len(outs)}")
    for out, own in zip(outs, state["outputs"], strict=True):
        for kind, end in own["positions"].items():
            file = out / FILES[kind]
            size = file.stat().st_size if file.exists() else 0
            if size < end:
                raise CheckpointError(f"{file} has {size:,} bytes, and had {end:,} then")


def found_run(config: RunConfig[Any], out: Path) -> str | None:
    """What `--auto-resume` finds: `completed`, `resumable`, or None where there is no run yet.

    Raises:
        ConfigError: There is a run of other settings; the text names them.
    """
    if has_request(out):
        request = read_request(out)
        mine = next(i for i, each in enumerate(request.outs) if each.resolve() == out.resolve())
        _refuse(out, differing(config, request.configs[mine].to_dict()))
        return "resumable" if can_resume(out) else "completed"
    if status(out) == "completed":
        values = read_json(out / "manifest.json").get("config")
        _refuse(out, differing(config, values if isinstance(values, dict) else {}))
        return "completed"
    return None


def _refuse(out: Path, names: list[str]) -> None:
    if names:
        raise ConfigError(
            f"{out} holds a run of other settings ({', '.join(names)}); choose another --out, or --overwrite instead "
            f"of --auto-resume"
        )
