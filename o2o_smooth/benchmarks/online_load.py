"""How busy the learner is while the environments step: the online loop under load, without a run around it.

python -m o2o_smooth.benchmarks.online_load --device cuda --members 16 --num-envs 4 --utd 4
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.base import Agent, Metrics
from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import Task, check_vectorizer, find_task, make_vector_env
from o2o_smooth.errors import ConfigError, EnvError
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.finetune import OnlineSettings, Overlap, finetune, overlaps
from o2o_smooth.training.graphed import GraphedLearner

UPDATE_AFTER = 64
CAPACITY = 100_000
FOREVER = 10**12  # environment steps; the clock ends the loop


@dataclass(frozen=True)
class Load:
    """Options of the command."""

    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    members: int = 16
    """Population members."""
    num_envs: int = 4
    """Environments per member."""
    utd: float = 4.0
    """Updates per environment step of a member."""
    agent: str = "iql"
    """iql | cql | td3_bc | sac | td3."""
    task: str = "hopper-medium-v2"
    """Task whose environments are stepped."""
    schedule: str = "jump"
    """Weight curve; jump: the online objective alone."""
    vectorizer: Literal["auto", "sync", "async", "envpool"] = "auto"
    """See `o2o-smooth run`; auto: envpool where it can be had, else async where there are four cores or more."""
    overlap: Overlap = "auto"
    """See `o2o-smooth run`."""
    width: int = 256
    """Units in each of the two hidden layers."""
    batch_size: int = 256
    """Rows per objective and member."""
    threads: int | None = None
    """CPU threads of the learner; default: torch's choice."""
    compile: bool = False
    """Compile the update."""
    warmup_updates: int = 200
    """Updates before the clock starts."""
    seconds: float = 20.0
    """Time to measure for."""


def online_load(
    *, device: str = "cpu", members: int = 16, num_envs: int = 4, utd: float = 4.0, **options: Any
) -> dict[str, Any]:
    """Run the online loop on a task's environments and see how much of the time the learner is at work.

    Args:
        device: Where the learner is.
        members: M.
        num_envs: Environments per member.
        utd: Updates per environment step of a member.
        **options: Other fields of `Load`.

    Returns:
        The options, the vectorizer as it was chosen; `overlaps`; `cores`; `env_steps_per_s` over all members;
        `updates_per_s`, each of all members at once; `learner_share`, the part of the wall time in which the learner
        was at work: between CUDA events around each update on a GPU, in the call of the update on a CPU; and how long
        was measured, `seconds`.

    Raises:
        O2OError: The task's environment or the agent cannot be had.
    """
    load = Load(device=device, members=members, num_envs=num_envs, utd=utd, **options)
    if load.threads is not None:
        torch.set_num_threads(load.threads)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{device}' is not there: torch sees no CUDA device")
    task = find_task(load.task)
    vectorizer = _vectorizer(task) if load.vectorizer == "auto" else load.vectorizer
    envs = make_vector_env(task, members * num_envs, vectorizer=vectorizer)
    agent = _agent(load, envs)
    learner = TimedLearner(
        agent,
        batch_size=load.batch_size,
        offline_rows=_offline_rows(agent),
        online_rows=ReplayBuffer(members, CAPACITY, agent.obs_dim, agent.action_dim, device=agent.device),
    )
    assert learner.online_rows is not None
    overlap = overlaps(load.overlap, vectorizer, agent.device)
    collector = Collector(
        envs,
        members,
        learner.online_rows,
        reward_map=RewardMap(),
        discount=agent.config.discount,
        seeds=list(range(envs.num_envs)),
        overlap=overlap,
    )
    clock = Clock(load, learner)
    settings = OnlineSettings(FOREVER, utd=utd, update_after=UPDATE_AFTER, log_every=FOREVER)
    with contextlib.suppress(Enough):
        finetune(learner, collector, SmoothingController(load.schedule, members=members), settings, clock)
    wall = clock.stopped - clock.started
    return {
        **{name: getattr(load, name) for name in Load.__dataclass_fields__},
        "vectorizer": vectorizer,
        "overlaps": overlap,
        "cores": os.cpu_count(),
        "env_steps_per_s": (clock.last_env_steps - clock.first_env_steps) * members / wall,
        "updates_per_s": (agent.updates - clock.first_updates) / wall,
        "learner_share": learner.busy_s() / wall,
        "seconds": wall,
    }


class TimedLearner(GraphedLearner):
    """A learner that knows how long it has been at work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def online_updates(self, mixes: Sequence[Mix]) -> Metrics:
        """See `Learner`."""
        if self.agent.device.type == "cuda":
            event: Any = torch.cuda.Event
            begin, end = event(enable_timing=True), event(enable_timing=True)
            begin.record()
            info = super().online_updates(mixes)
            end.record()
            self._events.append((begin, end))
            return info
        begin_s = time.perf_counter()
        info = super().online_updates(mixes)
        self._seconds += time.perf_counter() - begin_s
        return info

    def busy_s(self) -> float:
        """Time spent in updates; waits for the device."""
        if self.agent.device.type == "cuda":
            torch.cuda.synchronize(self.agent.device)
        return self._seconds + sum(float(begin.elapsed_time(end)) for begin, end in self._events) / 1000.0


class Enough(Exception):
    """The time is up."""


class Clock:
    """The loop's observer: starts the measurement after the warm-up and ends it."""

    def __init__(self, load: Load, learner: TimedLearner) -> None:
        self.load, self.learner = load, learner
        self.started = self.stopped = 0.0
        self.first_env_steps = self.last_env_steps = self.first_updates = 0

    def show(self, env_steps: int) -> None:
        """See `Observer`."""
        updates = self.learner.agent.updates
        if updates < self.load.warmup_updates:
            return
        if not self.started:
            self.learner.busy_s()  # what the warm-up has left in the device's queue
            self.learner.reset()
            self.started, self.first_env_steps, self.first_updates = time.perf_counter(), env_steps, updates
        elif time.perf_counter() - self.started >= self.load.seconds:
            self.learner.busy_s()
            self.stopped, self.last_env_steps = time.perf_counter(), env_steps
            raise Enough

    def log(self, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        """See `Observer`."""

    def evaluate(self, env_steps: int) -> None:
        """See `Observer`."""


def _vectorizer(task: Task) -> str:
    try:
        check_vectorizer(task, "envpool")
    except EnvError:
        return "async" if (os.cpu_count() or 1) >= 4 else "sync"
    return "envpool"


def _agent(load: Load, envs: gym.vector.VectorEnv[Any, Any, Any]) -> Agent:
    cls = AGENTS[load.agent]
    return cls(
        envs.single_observation_space,
        envs.single_action_space,
        cls.config_class(hidden_dims=(load.width, load.width)),
        seeds=tuple(range(load.members)),
        device=load.device,
        compile=load.compile,
    )


def _offline_rows(agent: Agent, rows: int = 10_000) -> ReplayBuffer:
    """Made-up rows: the learner's time does not hang on what is in them."""
    rng = np.random.default_rng(0)
    flags = np.zeros(rows, np.bool_)
    transitions = Transitions(
        obs=rng.normal(size=(rows, agent.obs_dim)).astype(np.float32),
        action=rng.uniform(agent.action_low, agent.action_high, (rows, agent.action_dim)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_obs=rng.normal(size=(rows, agent.obs_dim)).astype(np.float32),
        terminated=flags,
        truncated=np.arange(rows) % 1000 == 999,
    )
    return ReplayBuffer.from_transitions(
        transitions, agent.members, discount=agent.config.discount, device=agent.device
    )


def main() -> None:
    """The command; prints what `online_load` returns as JSON."""
    import dataclasses
    import json

    import tyro

    load = tyro.cli(Load, prog="python -m o2o_smooth.benchmarks.online_load", description=__doc__)
    print(json.dumps(online_load(**dataclasses.asdict(load)), indent=1))


if __name__ == "__main__":
    main()
