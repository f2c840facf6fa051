"""Where the time of a real run goes: act, step, write, sample, update, evaluate, log.

A short run (pretrain, switch, fine-tune) is done by `training.run.run` as any other, with a clock around the functions
that do each part. A part's time excludes the parts inside it, except that all of an evaluation or audit counts as such.
Where environments step in a thread of their own, their time overlaps the rest and shares can add up to more than 1.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from o2o_smooth.benchmarks.speed_own import agent_config
from o2o_smooth.benchmarks.speed_slices import CpuWatch
from o2o_smooth.envs import find_task, make_vector_env
from o2o_smooth.errors import EnvError
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.run import run

if TYPE_CHECKING:
    from o2o_smooth.benchmarks.speed import SpeedConfig

LOOP = ("act", "step", "wait", "write", "sample", "update", "evaluate", "audit", "log")
AROUND = ("set up", "keep")
TARGETS: dict[str, tuple[str, ...]] = {
    "act": ("o2o_smooth.agents.base:Agent.act",),
    "step": (
        "o2o_smooth.envs.inline:InlineVectorEnv.step",
        "o2o_smooth.envs.workers:WorkerVectorEnv.step_async",
        "o2o_smooth.envs.workers:WorkerVectorEnv.step_wait",
    ),
    "wait": ("o2o_smooth.data.collect:Collector.wait",),
    "write": (
        "o2o_smooth.data.collect:Collector.finish",
        "o2o_smooth.data.buffer:ReplayBuffer.add",
        "o2o_smooth.data.buffer:ReplayBuffer.set_mc_returns",
    ),
    "sample": (
        "o2o_smooth.data.buffer:ReplayBuffer.gather",
        "o2o_smooth.draws:Draws.integers",
        "o2o_smooth.data.buffer:concatenate",
    ),
    "update": (
        "o2o_smooth.agents.base:Agent.update",
        "o2o_smooth.agents.base:Agent.gradient_report",
        "o2o_smooth.training.graphed:GraphedLearner._launch",  # sampling included, and on a GPU alone
    ),
    "evaluate": ("o2o_smooth.training.evaluate:Evaluator.run",),
    "audit": ("o2o_smooth.training.audit:Audit.measure", "o2o_smooth.training.tracking:Tracker.audit"),
    "log": (
        "o2o_smooth.training.tracking:Tracker.metrics",
        "o2o_smooth.training.tracking:Tracker.evaluation",
    ),
    "set up": (
        "o2o_smooth.training.prepare:prepare",
        "o2o_smooth.data.buffer:ReplayBuffer.from_transitions",
        "o2o_smooth.training.parity:check_parity",
    ),
    "keep": (
        "o2o_smooth.training.checkpoint:save_checkpoint",
        "o2o_smooth.training.online_data:write_online",
        "o2o_smooth.training.pictures:draw_run",
    ),
}
DATA_ROWS = 5_000
RUN_S = 8.0  # each half of a run takes about this long
WARM_UPDATES, MOST_STEPS = 20, 2_000


class PartClock:
    """Adds up how long the parts of a program take, by thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.main_s = 0.0  # in any part, in the thread that made the clock
        self._main = threading.get_ident()
        self._local = threading.local()
        self._lock = threading.Lock()

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as `part`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack: list[list[Any]] = self._local.__dict__.setdefault("stack", [])
            if stack and stack[-1][0] in (part, "evaluate", "audit", *AROUND):  # they take in all that happens inside
                return function(*args, **kwargs)
            inner: list[Any] = [part, 0.0]  # name, and seconds of the parts inside it
            stack.append(inner)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - begin
                stack.pop()
                if stack:
                    stack[-1][1] += elapsed
                with self._lock:
                    self.seconds[part] += elapsed - inner[1]
                    self.calls[part] += 1
                    if not stack and threading.get_ident() == self._main:
                        self.main_s += elapsed

        return timed


@contextmanager
def part_clock() -> Iterator[PartClock]:
    """A clock around every function of `TARGETS` for the length of a `with` block.

    Raises:
        AttributeError: A function is not where `TARGETS` says.
    """
    clock = PartClock()
    undo: list[tuple[Any, str, Any]] = []
    try:
        for part, paths in TARGETS.items():
            for path in paths:
                module_name, _, dotted = path.partition(":")
                owner: Any = importlib.import_module(module_name)
                *classes, name = dotted.split(".")
                for inner in classes:
                    owner = getattr(owner, inner)
                for holder in (owner,) if classes else _holders(owner, name):
                    original = vars(holder)[name]
                    bound_to_class = isinstance(original, classmethod)
                    function = original.__func__ if bound_to_class else original
                    timed: Any = clock.wrap(part, function)
                    undo.append((holder, name, original))
                    setattr(holder, name, classmethod(timed) if bound_to_class else timed)
        yield clock
    finally:
        for holder, name, original in reversed(undo):
            setattr(holder, name, original)


def _holders(module: Any, name: str) -> list[Any]:
    """A function's module, and those of ours that imported it by name."""
    function = getattr(module, name)
    ours = [m for key, m in list(sys.modules.items()) if key.startswith("o2o_smooth.")]
    return [m for m in ours if vars(m).get(name) is function]


def split(clock: PartClock, wall_s: float) -> dict[str, Any]:
    """Seconds and shares of the loop's parts; `other` is the main thread's time in none of them."""
    around = sum(clock.seconds[part] for part in AROUND)
    loop_s = wall_s - around
    seconds = {part: clock.seconds[part] for part in LOOP}
    seconds["other"] = max(0.0, wall_s - clock.main_s)
    return {
        "loop_s": loop_s,
        "around_s": around,
        "seconds": seconds,
        "shares": {part: value / loop_s for part, value in seconds.items()},
        "calls": {part: clock.calls[part] for part in LOOP},
    }


def default_task() -> str:
    """Hopper where MuJoCo is installed, else a task that comes with gymnasium."""
    return "Hopper-v5" if find_spec("mujoco") is not None else "Pendulum-v1"


def measure_run(
    settings: RunConfig[Any], *, offline_updates: int, online_steps: int | None, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do a run in two halves and split the time of each.

    Args:
        settings: The run; its budgets and folder are set here.
        offline_updates: Before the switch.
        online_steps: After it, per member; None: as many as the offline updates' rate promises for `RUN_S`.
        folder: Where the runs are written; each half gets a folder in it.

    Returns:
        Splits of pretraining and of fine-tuning, with `updates_per_s`, `contended` (others used the CPU), and of
        fine-tuning `env_steps_per_s` (of all members, whole loop) and `env_steps_per_stepping_s` (environments alone).
    """
    threads, watch = torch.get_num_threads(), CpuWatch()
    halves: list[dict[str, Any]] = []
    try:
        for part in ("offline", "online"):
            if part == "online" and online_steps is None:
                per_step = settings.utd / halves[0]["updates_per_s"]
                online_steps = settings.update_after + int(min(MOST_STEPS, max(20.0, RUN_S / per_step)))
            half = replace(
                settings,
                out=str(folder / part),
                overwrite=True,
                offline_updates=offline_updates,
                online_steps=(online_steps or 0) if part == "online" else 0,
                pretrained=str(folder / "offline") if part == "online" else None,
            )
            with part_clock() as clock:
                before, begin = watch.others(), time.perf_counter()
                run(half, Silent())
                wall_s = time.perf_counter() - begin
                result = split(clock, wall_s)
                result["contended"] = watch.spoiled(before, watch.others(), wall_s) is not None
            updates = offline_updates
            if part == "online" and online_steps is not None:
                result["env_steps"] = online_steps
                updates = int(settings.utd * max(0, online_steps - settings.update_after))
                steps = online_steps * len(settings.seeds)
                result["env_steps_per_s"] = steps / result["loop_s"]
                result["env_steps_per_stepping_s"] = steps / max(result["seconds"]["step"], 1e-9)
            result["updates_per_s"] = updates / result["loop_s"]
            halves.append(result)
    finally:
        torch.set_num_threads(threads)
    return halves[0], halves[1]


def run_settings(
    task: str, agent: str, data: Path, *, members: int, threads: int, device: str, **rest: Any
) -> RunConfig[Any]:
    """A run as a user would start it, with little evaluation."""
    return RunConfig(
        hyper=agent_config(agent, (256,) * (3 if agent == "cql" else 2)),
        smoothing=SmoothingConfig("linear", ramp_steps=500),
        evaluation=EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=500),
        task=task,
        agent=agent,
        dataset=str(data),
        seeds=tuple(range(members)),
        threads=threads,
        device=device,
        **rest,
    )


def record_random(task_id: str, rows: int, path: Path) -> Path:
    """Write steps of uniformly random actions to an .npz file in D4RL's layout; it returns the path.

    Raises:
        EnvError: The task's actions are no Box.
    """
    task = find_task(task_id)
    envs = make_vector_env(task, 1)
    try:
        if not isinstance(envs.single_action_space, gym.spaces.Box):
            raise EnvError(f"{task_id}: actions must be a Box, got {envs.single_action_space}")
        box, generator = envs.single_action_space, np.random.default_rng(0)
        obs, _ = envs.reset(seed=0)
        columns: dict[str, list[Any]] = defaultdict(list)
        for step in range(rows):
            action = generator.uniform(box.low, box.high, (1, *box.shape)).astype(np.float32)
            following, reward, terminated, truncated, _ = envs.step(action)
            columns["observations"].append(obs[0])
            columns["actions"].append(action[0])
            columns["rewards"].append(reward[0])
            columns["terminals"].append(terminated[0])
            columns["timeouts"].append(truncated[0] or step == rows - 1)
            obs = following
    finally:
        envs.close()
    arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
    np.savez(path, **arrays)
    return path


def split_runs(config: SpeedConfig, folder: Path, progress: ProgressSink) -> list[dict[str, Any]]:
    """The split of a run of the first agent, for each population size.

    Raises:
        O2OError: The task cannot be made.
    """
    task = config.task or default_task()
    agent, threads = config.agents[0], max(config.thread_counts)
    data = record_random(task, DATA_ROWS, folder / "random.npz")
    found = []
    sizes = dict.fromkeys(config.members)
    for i, members in enumerate(sizes):
        progress.update("short real runs", i, len(sizes), f"{agent} on {task}, {members} members")
        settings = run_settings(task, agent, data, members=members, threads=threads, device=config.device)
        # A process's first updates import, build and record, which would be most of so short a run; the second run
        # tells how many updates take long enough.
        for _ in range(2):
            steps = settings.update_after + WARM_UPDATES
            first, _ = measure_run(settings, offline_updates=WARM_UPDATES, online_steps=steps, folder=folder)
        updates = int(min(MOST_STEPS, max(WARM_UPDATES, RUN_S * first["updates_per_s"])))
        offline, online = measure_run(settings, offline_updates=updates, online_steps=None, folder=folder)
        about = {"task": task, "agent": agent, "members": members, "threads": threads, "utd": settings.utd}
        found += [{**about, "phase": "offline", **offline}, {**about, "phase": "online", **online}]
    progress.update("short real runs", len(sizes), len(sizes))
    return found
