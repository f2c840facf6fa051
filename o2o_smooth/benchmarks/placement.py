"""Where several runs train: as one stack (a single batched learner), or in processes of one thread each.

On a GPU a stack always wins. On a CPU it depends: a stack pays the fixed cost of an update once for all its members and
pretrains a seed once, but its threads share one update, and its environments are stepped in one process; processes step
environments side by side, but come in rounds where there are more runs than cores. `place` predicts both from the small
table `SPEEDS` and takes the faster one. The prediction is a function of the settings, the number of cores and that
table, never of a clock, so the same command chooses the same way again on the same machine.

Both ways give the same numbers up to float rounding. To measure the table on another machine:

    python -m o2o_smooth.benchmarks.placement
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from o2o_smooth.agents.networks import PRECISIONS, Precision
from o2o_smooth.benchmarks.speed_limit import useful_flops
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.sharing import groups, make_members
from o2o_smooth.training.threads import default_threads

Population = Literal["auto", "stack", "processes"]


@dataclass(frozen=True)
class Speed:
    """What a CPU learner costs."""

    overhead_s: float
    """Of one update, whatever its size and members."""
    flops_per_s: float
    """Useful FLOPs (`speed_limit.useful_flops`) on one thread."""
    second_thread: float
    """Share of a core's speed that each further thread adds to a stack."""
    neighbour: float
    """Share of its speed that a process keeps while every core runs one."""


# By precision, from two cores of an AMD EPYC with AVX-512 and its BF16. Measure again where the kernels or the machine
# change.
SPEEDS = {
    "fp32": Speed(overhead_s=0.2e-3, flops_per_s=75e9, second_thread=0.75, neighbour=0.92),
    "bf16": Speed(overhead_s=0.2e-3, flops_per_s=110e9, second_thread=0.72, neighbour=0.94),
}
ENV_STEP_S = {"corridor": 1e-5, "classic": 3e-5, "pointmaze": 8e-5, "mujoco": 2e-4}
"""A step of one environment, acting included, by what computes it."""
CLASSIC = ("Pendulum", "MountainCarContinuous")
START_S = 4.0  # a process imports torch and MuJoCo
PREPARE_S = 1.0  # a population reads its data, makes its environments and draws its pictures
_OBS_DIM, _ACTION_DIM, _EPISODE = 17, 6, 1000  # where nothing better is known; the hidden layers dominate


@dataclass(frozen=True)
class Placement:
    """What runs where."""

    how: Literal["stack", "processes"]
    jobs: tuple[tuple[int, ...], ...]  # runs of one learner each, by their numbers
    workers: int  # jobs at a time
    seconds: float  # predicted
    why: str  # one line for the user


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place(
    configs: Sequence[RunConfig[Any]], *, how: Population = "auto", cpus: int | None = None, speed: Speed | None = None
) -> Placement:
    """Decide where runs train.

    Args:
        configs: The runs.
        how: `stack` or `processes` to have it so; `auto`: whichever is predicted to be faster.
        cpus: Cores to use; default: all that there are.
        speed: Replaces the table.

    Raises:
        ConfigError: `how` is unknown.
    """
    if how not in ("auto", "stack", "processes"):
        raise ConfigError(f"population must be auto, stack or processes, got '{how}'")
    cpus = cpus or cores()
    found = [group.indices for group in groups(configs)]
    speed = speed or SPEEDS[getattr(configs[0], "precision", "fp32")]
    seeds = sum(len(config.seeds) for config in configs)
    what = f"{len(configs)} runs, {seeds} members"
    stack_s = sum(_job_s([configs[i] for i in group], cpus, speed) for group in found)
    together = "one learner" if len(found) == 1 else f"{len(found)} learners, one after the other"
    stack = Placement("stack", tuple(found), 1, stack_s, f"population: stack ({what} in {together})")
    if configs[0].device != "cpu":
        return _with_reason(stack, f"on {configs[0].device} members cost little more than one")
    options = [_processes(configs, found, size, cpus, speed) for size in range(1, max(map(len, found)) + 1)]
    processes = min(options, key=lambda option: option.seconds)
    if how != "auto":
        return _with_reason(stack if how == "stack" else processes, "as asked")
    best, other = (stack, processes) if stack.seconds <= processes.seconds else (processes, stack)
    text = f"predicted {_duration(best.seconds)} against {_duration(other.seconds)} as {_noun(other)}"
    return _with_reason(best, text)


def predicted_s(configs: Sequence[RunConfig[Any]], *, cpus: int = 1, speed: Speed | None = None) -> float:
    """Seconds of runs as one job on so many cores, by the table; learners that they cannot share come in turn."""
    speed = speed or SPEEDS[getattr(configs[0], "precision", "fp32")]
    return sum(_job_s([configs[i] for i in group.indices], cpus, speed) for group in groups(configs))


def _processes(
    configs: Sequence[RunConfig[Any]], found: Sequence[Sequence[int]], size: int, cpus: int, speed: Speed
) -> Placement:
    """Jobs of at most `size` runs, one thread each, longest first."""
    jobs = [tuple(group[i : i + size]) for group in found for i in range(0, len(group), size)]
    workers = min(cpus, len(jobs))
    crowded = Speed(
        speed.overhead_s, speed.flops_per_s * (speed.neighbour if workers > 1 else 1.0), 0.0, speed.neighbour
    )
    times = {job: _job_s([configs[i] for i in job], 1, crowded) for job in jobs}
    jobs.sort(key=lambda job: -times[job])
    busy = [START_S] * workers
    for job in jobs:
        busy[busy.index(min(busy))] += times[job]
    each = "" if size == 1 else f", up to {size} runs in each"
    seeds = sum(len(config.seeds) for config in configs)
    text = f"population: processes ({len(configs)} runs, {seeds} members on {workers} single-thread processes{each})"
    return Placement("processes", tuple(jobs), workers, max(busy), text)


def env_step_s(name: str) -> float:
    """Predicted seconds of a step of one environment of a task."""
    task = find_task(name)
    classic = task.domain == "other" and task.env_id.partition("-v")[0] in CLASSIC
    return ENV_STEP_S["classic" if classic else task.domain if task.domain in ENV_STEP_S else "mujoco"]


def _job_s(configs: Sequence[RunConfig[Any]], cpus: int, speed: Speed) -> float:
    """Predicted seconds of runs that share one learner on so many cores."""
    config, members = configs[0], make_members(configs)
    count = len(members.seeds)
    episode = find_task(config.task).max_episode_steps or _EPISODE
    evaluation = config.evaluation
    points = len(evaluation.online_steps(config.online_steps)) if config.online_steps else 0
    step_s = env_step_s(config.task)
    steps = config.online_steps + points * evaluation.eval_episodes * episode
    offline = 0.0
    if config.pretrained is None:
        before = len(members.firsts)
        offline = config.offline_updates * _update_s(config, before, cpus, speed)
        offline += before * evaluation.switch_episodes * episode * step_s
    # As soon as one member is in its ramp, both objectives are computed for all.
    objectives = 1 if all(c.smoothing.schedule in ("jump", "stay") for c in configs) else 2
    online = config.utd * config.online_steps * _update_s(config, count, cpus, speed, objectives)
    return PREPARE_S + offline + online + count * steps * step_s


def _update_s(config: RunConfig[Any], members: int, cpus: int, speed: Speed, objectives: int = 1) -> float:
    threads = config.threads or default_threads(config, members) or cpus
    rate = speed.flops_per_s * (1 + speed.second_thread * (min(threads, cpus) - 1))
    flops = useful_flops(
        config.hyper, obs_dim=_OBS_DIM, action_dim=_ACTION_DIM, batch=config.batch_size, members=members
    )
    return speed.overhead_s + objectives * flops / rate


def _with_reason(placement: Placement, reason: str) -> Placement:
    return Placement(placement.how, placement.jobs, placement.workers, placement.seconds, f"{placement.why}: {reason}")


def _noun(placement: Placement) -> str:
    return "a stack" if placement.how == "stack" else "processes"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


# Measuring the table

_WIDTHS, _MEMBERS, _SECONDS = (64, 256), (1, 4, 8), 3.0


def calibrate(precision: Precision) -> Speed:
    """Measure `Speed` on this machine, while nothing else runs; takes about a minute."""
    cpus = cores()
    points = [(width, members) for width in _WIDTHS for members in _MEMBERS]
    alone = {point: next(_time_updates([(*point, 1, precision)])) for point in points}
    # t = overhead + flops / rate, by least squares of the relative error.
    times = np.array([alone[point] for point in points])
    flops = np.array([_flops(*point) for point in points])
    columns = np.stack([np.ones_like(times), flops], 1) / times[:, None]
    (overhead, per_flop), *_ = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)
    largest = points[-1]
    shared = next(_time_updates([(*largest, cpus, precision)]))
    gain = (alone[largest] - overhead) / max(shared - overhead, 1e-9)
    crowd = float(np.mean(list(_time_updates([(_WIDTHS[-1], 1, 1, precision)] * cpus))))
    return Speed(
        overhead_s=float(max(overhead, 0.0)),
        flops_per_s=float(1 / per_flop),
        second_thread=float(np.clip((gain - 1) / max(cpus - 1, 1), 0.0, 1.0)),
        neighbour=float(min(alone[(_WIDTHS[-1], 1)] / crowd, 1.0)),
    )


def _flops(width: int, members: int) -> float:
    from o2o_smooth.agents import IQLConfig

    config = IQLConfig(hidden_dims=(width, width))
    return useful_flops(config, obs_dim=_OBS_DIM, action_dim=_ACTION_DIM, batch=256, members=members)


def _time_updates(cases: Sequence[tuple[int, int, int, Precision]]) -> Iterator[float]:
    """Seconds of an update of (width, members, threads, precision), each in a process of its own and all at once."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name, json.dumps(case)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(case[2])},
        )
        for case in cases
    ]
    for process in started:
        out, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the measuring process ended with code {process.returncode}")
        yield float(out)


def _worker(width: int, members: int, threads: int, precision: Precision) -> float:
    """Seconds of an IQL update, sampling included; a low quantile, since what else runs only ever adds to it."""
    import gymnasium as gym
    import torch

    from o2o_smooth.agents import IQL, IQLConfig
    from o2o_smooth.data.buffer import ReplayBuffer
    from o2o_smooth.training.learner import Learner

    torch.set_num_threads(threads)
    observations, actions = (gym.spaces.Box(-1, 1, (n,), np.float32) for n in (_OBS_DIM, _ACTION_DIM))
    config = IQLConfig(hidden_dims=(width, width))
    agent = IQL(observations, actions, config, seeds=range(members), precision=precision)
    rows = ReplayBuffer(members, 10_000, _OBS_DIM, _ACTION_DIM, shared=True)
    width_of_row = 2 * _OBS_DIM + _ACTION_DIM + 4
    rng = np.random.default_rng(0)
    rows.add(rng.uniform(0, 0.5, (1, 10_000, width_of_row)).astype(np.float32))
    learner = Learner(agent, batch_size=256, offline_rows=rows)
    times: list[float] = []
    end = time.perf_counter() + 2 * _SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        learner.offline_update()
        times.append(time.perf_counter() - begin)
    return float(np.quantile(times[len(times) // 2 :], 0.2))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_worker(*json.loads(sys.argv[1])))
    else:
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.3:
            print("other programs are busy on this machine, which spoils the measurement", file=sys.stderr)
        for precision in PRECISIONS:
            print(f'SPEEDS["{precision}"] = {calibrate(precision)}', flush=True)
