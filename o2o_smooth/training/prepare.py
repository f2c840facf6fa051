"""Everything that can fail before a run begins: names, files, shapes, what belongs together; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.agents.devices import find_device
from o2o_smooth.data.dataset import Dataset, check_fits
from o2o_smooth.data.extent import Extent, extent
from o2o_smooth.data.holdout import Holdout, choose_holdout
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.sources import load_dataset
from o2o_smooth.envs import Task, check_vectorizer, find_task, make_env
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.smoothing import COMPONENTS, SmoothingController
from o2o_smooth.training.checkpoint import SwitchRecord, load_checkpoint
from o2o_smooth.training.compiling import decide
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.disk import check_writable, room_warning
from o2o_smooth.training.hygiene import require_fits
from o2o_smooth.training.memory import Shape
from o2o_smooth.training.memory_check import MemoryCheck
from o2o_smooth.training.progress import ProgressSink, when_slow
from o2o_smooth.training.replacing import check_replaceable
from o2o_smooth.training.sharing import Members, make_members, require_shared

RETURN_RANGE = 1000.0


@dataclass(frozen=True)
class Arm:
    """One of the runs that share a population."""

    config: RunConfig[Any]
    out: Path
    name: str | None  # what the display calls it
    members: range  # its part of the population
    pretrained_as: tuple[int, ...]  # the same before the switch


@dataclass
class Prepared:
    """Everything that can fail before a run, or several that share a population, begins, done."""

    config: RunConfig[Any]  # of the first arm; what arms share stands in each
    task: Task
    dataset: Dataset | None
    reward_map: RewardMap
    agent: Agent  # as it is pretrained, or forked
    forked: SwitchRecord | None
    arms: tuple[Arm, ...]
    members: Members
    holdout: Holdout
    """Offline episodes that no update sees."""

    @property
    def out(self) -> Path:
        """The first arm's folder."""
        return self.arms[0].out


def default_out(config: RunConfig[Any]) -> Path:
    """runs/TASK-AGENT-SCHEDULE, in characters that every file system takes."""
    text = f"{config.task}-{config.agent}-{config.smoothing.schedule}"
    return Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def prepare(config: RunConfig[Any], progress: ProgressSink) -> Prepared:
    """Load and check everything a run needs, writing nothing (but a made dataset).

    Raises:
        O2OError: With the cause and the cure.
    """
    return prepare_population([config], progress)


def prepare_population(
    configs: Sequence[RunConfig[Any]],
    progress: ProgressSink,
    names: Sequence[str | None] | None = None,
    *,
    resumed: Sequence[Path] | None = None,
) -> Prepared:
    """The same for runs that share one learner.

    Args:
        configs: The runs.
        progress: Where progress goes.
        names: What the display calls them.
        resumed: Their folders, where they go on in them.

    Raises:
        O2OError: With the cause and the cure; also where the runs cannot share a learner.
    """
    require_shared(configs)
    names = names or [None] * len(configs)
    outs = list(resumed or [Path(c.out) if c.out is not None else default_out(c) for c in configs])
    for out, each in zip(outs, configs, strict=True):
        if resumed is None:
            check_out(out, each)
        if [o.resolve() for o in outs].count(out.resolve()) > 1:
            raise ConfigError(f"two runs would write to {out}; give each an --out of its own")
    config = configs[0]
    members = make_members(configs)
    device = find_device(config.device)
    task = find_task(config.task)
    if config.online_steps > 0:
        check_vectorizer(task, config.vectorizer)
        for each in configs:
            make_controller(each, task, members=1)  # rather than at the switch
    env = make_env(task)
    obs_space, action_space = env.observation_space, env.action_space
    env.close()
    check, shape = MemoryCheck(), Shape(_width(obs_space), _width(action_space), task.domain)
    reads = any(needs_dataset(each) for each in configs)
    data = extent(task, config.dataset, patient=False) if reads else None
    check(configs, shape, data, progress.note, members=len(members.seeds))
    forked = None
    compiled = decide(config.compile, device, config.offline_updates + int(config.online_steps * config.utd))
    agent_class = AGENTS[config.agent]
    if config.pretrained is not None:
        agent, forked = load_checkpoint(
            Path(config.pretrained),
            device=device,
            compile=compiled,
            precision=config.precision,
            online=config.online,
            hyper=members.hyper,
            seeds=members.seeds,
            overrides=members.overrides,
        )
        _check_fork(config, agent, forked, task)
    else:
        agent = agent_class(
            obs_space,
            action_space,
            members.hyper,
            online=config.online,
            seeds=[members.seeds[m] for m in members.firsts],
            overrides=[members.overrides[m] for m in members.firsts],
            device=device,
            compile=compiled,
            precision=config.precision,
        )
    if config.online_steps > 0:
        require_fits(agent, config.hygiene, config.anchors, offline_rows=reads)
    dataset = None
    if reads:
        dataset = load_dataset(
            task,
            dataset=config.dataset,
            provenance=config.provenance,
            action_box=(agent.action_low, agent.action_high),
            progress=when_slow(progress.update),
            log=progress.note,
        )
        check_fits(dataset, agent.obs_dim, agent.action_dim)
        if data is None or data.rows is None:
            rows = dataset.transitions.rows
            found = Extent(dataset.id, len(dataset.transitions), mapped=isinstance(rows, np.memmap))
            check(configs, shape, found, progress.note, members=len(members.seeds))
        _warn_of_units(dataset, agent, progress)
        if forked is not None and forked.dataset is not None and forked.dataset["provenance"] != dataset.provenance:
            raise CheckpointError(
                f"{config.pretrained} was pretrained on {forked.dataset['provenance']} data, and this run calls them "
                f"{dataset.provenance}; leave --provenance out"
            )
        if forked is not None and forked.dataset is not None and forked.dataset["sha256"] != dataset.sha256:
            raise CheckpointError(
                f"{config.pretrained} was pretrained on {forked.dataset['id']} (other contents than {dataset.id} has "
                f"now); retaining other data than that would not be a fork. Give --dataset or pretrain again"
            )
    elif any(each.smoothing.regime != "discard" and not _purely_online(each) for each in configs):
        raise ConfigError(
            f"regime {config.smoothing.regime} keeps offline rows, but there is no offline data without offline "
            f"updates; use --regime discard or --schedule jump"
        )
    scale = task.reward_scale if config.reward_scale is None else config.reward_scale
    if config.hyper.normalize_rewards and config.reward_scale is None:
        scale *= forked.reward_scale / task.reward_scale if forked is not None else _return_range_scale(dataset)
    shift = task.reward_shift if config.reward_shift is None else config.reward_shift
    if forked is not None and (scale, shift) != (forked.reward_scale, forked.reward_shift):
        raise CheckpointError(
            f"{config.pretrained} was pretrained with rewards * {forked.reward_scale:g} + {forked.reward_shift:g}, "
            f"this run asks for * {scale:g} + {shift:g}; leave --reward-scale and --reward-shift as they were"
        )
    if (line := room_warning(config, shape, outs[0], len(members.seeds))) is not None:
        progress.note(line)
    return Prepared(
        config,
        task,
        dataset,
        RewardMap(scale, shift),
        agent,
        forked,
        _arms(configs, outs, names, members),
        members,
        _holdout(config, dataset, forked),
    )


def _holdout(config: RunConfig[Any], dataset: Dataset | None, forked: SwitchRecord | None) -> Holdout:
    """What is held out; a fork leaves out what its checkpoint was not trained on."""
    if forked is not None:
        try:
            ranges = tuple((int(first), int(stop)) for first, stop in forked.held_out)
        except (TypeError, ValueError):
            raise CheckpointError(
                f"{config.pretrained}: held_out in its run.json is no list of [first, stop]"
            ) from None
        return Holdout(ranges, "" if ranges else "the checkpoint's pretraining held nothing out")
    if dataset is None:
        return Holdout(remark="there are no offline data")
    return choose_holdout(dataset.transitions, config.switch.holdout)


def _arms(
    configs: Sequence[RunConfig[Any]], outs: Sequence[Path], names: Sequence[str | None], members: Members
) -> tuple[Arm, ...]:
    arms, first = [], 0
    for config, out, name in zip(configs, outs, names, strict=True):
        own = range(first, first + len(config.seeds))
        arms.append(Arm(config, out, name, own, tuple(members.pretrained_as[m] for m in own)))
        first = own.stop
    return tuple(arms)


def _return_range_scale(dataset: Dataset | None) -> float:
    """The factor that brings the range of the data's returns to 1000; 1 where all are the same."""
    if dataset is None:
        return 1.0
    returns = dataset.transitions.episode_returns
    width = float(returns.max() - returns.min())
    return RETURN_RANGE / width if width > 0 else 1.0


def make_controller(config: RunConfig[Any], task: Task, *, members: int) -> SmoothingController:
    """The controller of a run's members.

    Raises:
        ConfigError: An adaptive rule that needs what the task does not have.
    """
    return config.smoothing.controller(
        members=members,
        lanes=config.num_envs,
        random_return=task.ref_random,
        reference_return=task.ref_expert,
        rules=config.adaptive.rules(),
    )


def needs_dataset(config: RunConfig[Any]) -> bool:
    """Whether the run reads offline rows."""
    if config.pretrained is None and config.offline_updates > 0:
        return True
    if config.online_steps == 0:
        return False
    if config.anchors.needs_offline_rows:
        return config.dataset is not None or config.pretrained is not None
    if config.smoothing.regime == "discard":
        return False
    return config.dataset is not None or (config.pretrained is not None and not _purely_online(config))


def _purely_online(config: RunConfig[Any]) -> bool:
    """Whether no offline row can ever be drawn: a jump without an offline share."""
    smoothing = config.smoothing
    overrides = [getattr(smoothing, f"{name}_schedule") for name in COMPONENTS]
    share = smoothing.regime == "mixed" or smoothing.offline_fraction or smoothing.offline_fraction_end
    return smoothing.schedule == "jump" and not any(overrides) and not share


def _warn_of_units(dataset: Dataset, agent: Agent, progress: ProgressSink) -> None:
    """Say where the data's actions lie outside the task's box; a little is rounding, much is another unit."""
    if dataset.outside:
        share = dataset.outside / len(dataset.transitions)
        progress.note(
            f"warning: {share:.1%} of the data's actions lie outside the task's action box ({agent.action_low.min():g} "
            f"to {agent.action_high.max():g}) and were clipped. Is their unit right?"
        )


def check_out(out: Path, config: RunConfig[Any]) -> None:
    """Refuse a folder that a run may not write to.

    Raises:
        ConfigError: It holds something that must not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another --out")
    check_writable(out)
    if out.is_dir() and any(path.name != "resume" for path in out.iterdir()):
        if not config.overwrite:
            if (out / "resume" / "run.json").is_file():
                raise ConfigError(
                    f"{out} holds a run that was stopped; go on with it: o2o-smooth resume {out}; or choose another "
                    f"--out, or --overwrite to replace it"
                )
            raise ConfigError(f"{out} is not empty; choose another --out, or --overwrite to replace the run there")
        check_replaceable(out)
        if config.pretrained is not None and out.resolve() in [
            p.resolve() for p in (Path(config.pretrained), *Path(config.pretrained).parents)
        ]:
            raise ConfigError(f"--out {out} would replace the checkpoint of --pretrained; choose another folder")


def _check_fork(config: RunConfig[Any], agent: Agent, record: SwitchRecord, task: Task) -> None:
    if agent.name != config.agent:
        raise CheckpointError(f"{config.pretrained} holds an {agent.name} agent; use --agent {agent.name}")
    if record.task != task.id:
        raise CheckpointError(f"{config.pretrained} was pretrained on {record.task}, not on {task.id}")


def _width(space: Any) -> int:
    return int(space.shape[0])
