"""A plan for people: what is shared, how much there is to do, how long it may take, what it needs."""

from __future__ import annotations

from collections.abc import Sequence

from o2o_smooth.benchmarks.cells import from_dict
from o2o_smooth.benchmarks.job_size import job_disk
from o2o_smooth.benchmarks.plan import Plan
from o2o_smooth.benchmarks.study import PlannedJob, Study
from o2o_smooth.benchmarks.study_view import duration
from o2o_smooth.benchmarks.suite import Suite
from o2o_smooth.training.memory_check import gib


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
    memory = [(job.memory, job.id) for job in jobs if job.memory is not None]
    disk = 0
    unknown: set[str] = set()
    for job in jobs:
        for values in job.configs if job.kind != "data" else ():
            config = from_dict(values)
            size = job_disk(config)
            disk += size or 0
            unknown |= {config.task} if size is None else set()
    lines = []
    if memory:
        most, where = max(memory)
        lines.append(f"memory: at most {gib(most)} a job ({where}); disk: about {gib(disk)}")
    if unknown:
        lines.append(f"memory and disk not known for {', '.join(sorted(unknown))}: its environment cannot be made here")
    return lines
