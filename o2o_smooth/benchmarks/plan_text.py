"""A plan for people: what is shared, how much there is to do, how long it may take, what it needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from o2o_smooth.agents.settings import leaves
from o2o_smooth.benchmarks.cells import from_dict
from o2o_smooth.benchmarks.plan import Plan
from o2o_smooth.benchmarks.study import PlannedJob, Study
from o2o_smooth.benchmarks.study_view import duration
from o2o_smooth.benchmarks.suite import Suite
from o2o_smooth.data.extent import extent
from o2o_smooth.envs import find_task, make_env
from o2o_smooth.errors import O2OError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.memory import Shape, predict
from o2o_smooth.training.memory_check import gib
from o2o_smooth.training.prepare import needs_dataset

_MOMENTS = 4  # parameters, targets and Adam's two moments, at most
_BYTES = 4


def plan_text(suite: Suite, plan: Plan, study: Study | None) -> str:
    """The whole text.

    Args:
        suite: Where it comes from.
        plan: What is to be done.
        study: What is there already.
    """
    lines = [f"{suite.name}: {suite.description}"]
    if study is not None:
        done = sum(study.progress(job).state == "done" for job in study.jobs)
        lines.append(f"planned already: {len(study.jobs)} jobs, {done} of them done; new: {len(plan.jobs)}")
    if not plan.jobs:
        return "\n".join([*lines, "nothing to plan"]) + "\n"
    seeds = {seed for run in plan.runs for seed in run.seeds}
    counts = {kind: [job for job in plan.jobs if job.kind == kind] for kind in ("data", "pretrain", "arms")}
    members = sum(len(run.seeds) for run in plan.runs)
    lines.append(
        f"{len({run.task for run in plan.runs})} tasks, {len({run.agent for run in plan.runs})} agents, "
        f"{len({run.arm for run in plan.runs})} arms, {len(seeds)} seeds: {len(plan.runs)} run folders, {members} runs"
    )
    shared = sum(len(job.configs[0]["seeds"]) for job in counts["pretrain"])
    lines.append(
        f"{len(plan.jobs)} jobs: {len(counts['data'])} make or fetch data, {len(counts['pretrain'])} pretrain "
        f"({shared} pretrainings for {members} runs), {len(counts['arms'])} go on from them"
    )
    for kind in ("data", "pretrain", "arms"):
        lines += [_line(job) for job in counts[kind]]
    total = sum(job.updates for job in plan.jobs)
    busy = sum(job.predicted_s for job in plan.jobs)
    lines.append(
        f"{total:,} updates in all; about {duration(plan.seconds)} on {plan.workers} workers ({duration(busy)} of "
        f"work), by this package's table of a CPU's speed"
    )
    return "\n".join([*lines, *_needs(plan.jobs)]) + "\n"


def _line(job: PlannedJob) -> str:
    after = f", after {len(job.needs)}" if job.needs else ""
    return f"  {job.id}: {job.title} ({job.updates:,} updates, {duration(job.predicted_s)}{after})"


def _needs(jobs: Sequence[PlannedJob]) -> list[str]:
    """Memory of the largest job and disk of all, where tasks can be looked at."""
    memory: list[tuple[int, str]] = []
    disk = 0
    unknown: set[str] = set()
    shapes: dict[str, Shape | None] = {}
    for job in jobs:
        if job.kind == "data":
            continue
        configs = [from_dict(values) for values in job.configs]
        task = configs[0].task
        if task not in shapes:
            shapes[task] = _shape(configs[0])
        shape = shapes[task]
        if shape is None:
            unknown.add(task)
            continue
        members = sum(len(config.seeds) for config in configs)
        memory.append((_memory(configs[0], shape, members), job.id))
        disk += sum(_disk(config, shape) for config in configs)
    lines = []
    if memory:
        most, where = max(memory)
        lines.append(f"memory: at most {gib(most)} a job ({where}); disk: about {gib(disk)}")
    if unknown:
        lines.append(f"memory and disk not known for {', '.join(sorted(unknown))}: its environment cannot be made here")
    return lines


def _shape(config: RunConfig[Any]) -> Shape | None:
    task = find_task(config.task)
    try:
        env = make_env(task)
    except O2OError:
        return None
    spaces: Any = (env.observation_space, env.action_space)
    env.close()
    return Shape(spaces[0].shape[0], spaces[1].shape[0], task.domain)


def _memory(config: RunConfig[Any], shape: Shape, members: int) -> int:
    data = None
    if needs_dataset(config):
        data = extent(find_task(config.task), config.dataset, patient=False)
    return predict(config, shape, data, members=members).host


def _disk(config: RunConfig[Any], shape: Shape) -> int:
    """Bytes of checkpoints and collected rows, roughly."""
    widths: tuple[int, ...] = leaves(config.hyper)["hidden_dims"]
    inputs = shape.obs_dim + shape.action_dim
    network = inputs * widths[0] + sum(a * b for a, b in itertools.pairwise(widths)) + widths[-1]
    networks = 2 + 2 * int(config.hyper.num_critics)
    checkpoints = (2 if config.online_steps else 1) * _MOMENTS * networks * network
    rows = config.online_steps * (2 * shape.obs_dim + shape.action_dim + 4) if config.save_online else 0
    return _BYTES * len(config.seeds) * (checkpoints + rows)
