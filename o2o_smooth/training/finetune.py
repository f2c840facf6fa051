"""The online loop: acting, writing, updating, and when what is measured; a function of environment steps alone.

One order for every way to step the environments. At `t` environment steps, with the rows of all of them in the buffer:

    act       on the observations at t, with the parameters of the updates that were due before: those of t - n, where n
              environments per member step together
    step      the environments begin the step from t to t + n
    update    the updates due at t, on rows up to t
    measure   log and evaluation at t, after its updates
    write     the step's rows: t becomes t + n

The policy thus lags one vector step behind the learner, and in return stepping and updating need nothing of each other:
with overlap they run at the same time, without it in turn, and the numbers are the same to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents.base import Metrics
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.collect import Collector, random_policy
from o2o_smooth.data.transfer import fetch, to_device
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS
from o2o_smooth.training.audit import Audit
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.seeding import Stream, generator
from o2o_smooth.training.signals import Signals
from o2o_smooth.training.stopping import Stopped

Overlap = Literal["auto", "on", "off"]
NORMS_EVERY = 100  # updates between measurements of gradient norms where the curve is in effective weight
RECENT = 10  # episodes in the mean that is logged
GROUP = {"cpu": 64}  # updates between two looks at whether somebody wants to stop; other devices: `GROUP_ELSEWHERE`
GROUP_ELSEWHERE = 1024


@dataclass(frozen=True)
class OnlineSettings:
    """What the loop counts by; steps are environment steps per member."""

    env_steps: int
    """Budget."""
    utd: float = 1.0
    """Updates per environment step."""
    update_after: int = 64
    """Steps before the first update."""
    warm_up_steps: int = 0
    """First steps that the policy collects as it is: no update, and the controller's clock stands."""
    random_steps: int = 0
    """First steps with uniformly random actions."""
    log_every: int = 1000
    """Steps between calls of `log`."""
    evaluate_at: Sequence[int] = ()
    """Steps at which `evaluate` is called, in order."""
    streams: Sequence[int] = ()
    """`RunConfig.online_stream` of every member, for the random actions; default: 0 for all."""

    def updates_due(self, env_steps: int) -> int:
        """Updates that must have been done once so many steps have been taken."""
        return int(self.utd * max(0, env_steps - max(self.update_after, self.warm_up_steps)))

    def clock(self, env_steps: int) -> int:
        """What the controller's clock shows once so many steps have been taken."""
        return max(0, env_steps - self.warm_up_steps)


class Observer(Protocol):
    """What is told of the loop's course; `env_steps` are per member."""

    def log(self, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        """Write down the metrics (M,) of the latest update and one mapping of signals per member."""

    def evaluate(self, env_steps: int) -> None:
        """Evaluate the policy."""

    def show(self, env_steps: int) -> None:
        """Show how far the loop is."""


class Pauses(Protocol):
    """Who keeps checkpoints, and knows of requests to stop."""

    def due(self) -> bool:
        """Whether a checkpoint is wanted now, or somebody wants to stop."""

    def stopping(self) -> bool:
        """Whether somebody wants to stop."""

    def keep(self, capture: Callable[[], dict[str, Any]]) -> None:
        """Keep a checkpoint of the loop; raises where it is to stop."""


@dataclass
class Course:
    """How far the loop is, beside what its parts know themselves."""

    members: int
    updates: int = 0
    next_log: int = 0
    evaluated: int = 0
    """Evaluation points that are done."""
    info: Metrics = field(default_factory=dict)
    cosines: dict[str, Tensor] = field(default_factory=dict)
    """Of the next line of the log alone: they are not measured once a ramp has ended."""

    def __post_init__(self) -> None:
        self.returns: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(self.members)]

    def state(self) -> dict[str, Any]:
        """The course as a tree."""
        return {
            "updates": self.updates,
            "next_log": self.next_log,
            "evaluated": self.evaluated,
            "info": dict(self.info),
            "cosines": dict(self.cosines),
            "returns": [list(own) for own in self.returns],
        }

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state` gave."""
        self.updates, self.next_log, self.evaluated = (int(state[k]) for k in ("updates", "next_log", "evaluated"))
        self.info = {name: torch.as_tensor(value, device=device) for name, value in state["info"].items()}
        self.cosines = {name: torch.as_tensor(value, device=device) for name, value in state["cosines"].items()}
        self.returns = [deque(map(float, own), maxlen=RECENT) for own in state["returns"]]


def overlaps(setting: Overlap, vectorizer: str, device: torch.device) -> bool:
    """Whether environments step while the learner works; this decides about time, never about results.

    `auto` overlaps where it was seen to pay: with environments that compute outside of this process's Python (on two
    cores async gained 12 % at width 256 and a third at width 64, envpool 4 %), and with a learner on a GPU, which
    would idle otherwise. A learner on the CPU and environments in a thread of the same process take turns at Python's
    lock: nothing was gained at width 256, and a tenth lost at width 64.

    Raises:
        ConfigError: There is no such setting.
    """
    if setting not in get_args(Overlap):
        raise ConfigError(f"overlap must be auto, on or off, got {setting!r}")
    if setting != "auto":
        return setting == "on"
    return device.type != "cpu" or vectorizer != "sync"


def finetune(
    learner: Learner,
    collector: Collector,
    controller: SmoothingController,
    settings: OnlineSettings,
    observer: Observer,
    audit: Audit | None = None,
    *,
    pauses: Pauses | None = None,
    resumed: Mapping[str, Any] | None = None,
) -> None:
    """Interact and update until the budget is spent; the collector is closed at the end, whatever happens.

    A checkpoint is kept before a step begins, or, where somebody wants to stop, also while one is under way: then its
    results are kept, and the loop goes on behind its beginning. Everything that is done there knows by itself whether
    it has been done at this moment already.

    Args:
        learner: The learner.
        collector: What collects; of a resumed loop with its state restored.
        controller: Told of the course; of a resumed loop with its state restored.
        settings: What the loop counts by.
        observer: Told of the course.
        audit: Looks at the agent; of a resumed loop with its state restored.
        pauses: Keeps checkpoints; default: nobody.
        resumed: What `pauses` was given, of the loop that this one goes on with.
    """
    agent = learner.agent
    streams = settings.streams or [0] * agent.members
    generators = [generator(s, Stream.RANDOM_ACTIONS, k) for s, k in zip(agent.seeds, streams, strict=True)]
    uniform = random_policy(agent.action_low, agent.action_high, generators)

    def explore(obs: FloatArray) -> FloatArray | Callable[[], NDArray[Any]]:
        with learner.acting():
            if agent.device.type == "cpu":
                return agent.act(obs, deterministic=False, step=collector.env_steps)
            # The actions are fetched when the environments need them: here nobody waits for the device.
            return fetch(agent.act(to_device(obs, agent.device), deterministic=False, step=collector.env_steps))

    points = list(settings.evaluate_at)
    group = GROUP.get(agent.device.type, GROUP_ELSEWHERE)
    course = Course(agent.members)
    measured: Signals | None = None

    def capture() -> dict[str, Any]:
        return {
            "course": course.state(),
            "random": [rng.bit_generator.state for rng in generators],
            "signals": None if measured is None else measured.state(),
        }

    try:
        if resumed is None:
            controller.start()
        measured = Signals(learner, controller) if controller.needs else None
        if resumed is not None:
            course.load_state(resumed["course"], agent.device)
            for rng, state in zip(generators, resumed["random"], strict=True):
                rng.bit_generator.state = state
            if measured is not None:
                tensors = {name: torch.as_tensor(value) for name, value in resumed["signals"].items()}
                measured.load_state(tensors)
        while True:
            t = collector.env_steps
            if not collector.busy:
                if pauses is not None and pauses.due():
                    pauses.keep(capture)
                if t < settings.env_steps:
                    collector.start(uniform if t < settings.random_steps else explore)
            while course.updates < (until := settings.updates_due(t)):
                if pauses is not None and pauses.stopping():
                    pauses.keep(capture)
                if audit is not None:
                    audit.look(t, course.updates, controller.mix())
                    until = min(until, audit.due)
                if controller.weight_in == "effective":
                    if course.updates % NORMS_EVERY == 0:
                        course.cosines = measure_gradients(learner, controller)
                    until = min(until, course.updates - course.updates % NORMS_EVERY + NORMS_EVERY)
                until = min(until, course.updates + group)
                mixes = []
                for _ in range(until - course.updates):
                    mixes.append(controller.mix())
                    controller.advance(updates=1)
                course.info = learner.online_updates(mixes)
                course.updates = until
            if measured is not None:
                measured.measure()
            if audit is not None and course.updates:
                audit.look(t, course.updates, controller.mix())
            if t >= course.next_log and course.info:
                course.next_log = t + settings.log_every
                if any(controller.mix().kind(c) == "mixed" for c in COMPONENTS):
                    course.cosines = measure_gradients(learner, controller, mixed_only=True)
                signals = controller.log()
                for m, recent in enumerate(course.returns):
                    if recent:
                        signals[m]["collect/return"] = float(np.mean(list(recent)))
                    if collector.dropped_episodes[m]:
                        signals[m]["collect/dropped_episodes"] = float(collector.dropped_episodes[m])
                observer.log(t, {**course.info, **course.cosines}, signals)
                course.cosines = {}
            if course.evaluated < len(points) and t >= points[course.evaluated]:
                collector.wait()  # environments of one process may share state with those of the evaluation
                try:
                    observer.evaluate(t)
                except Stopped:
                    if pauses is not None:
                        pauses.keep(capture)
                    raise
                course.evaluated = sum(point <= t for point in points)
            observer.show(t)
            if t >= settings.env_steps:
                if audit is not None:
                    audit.finish(t, course.updates, controller.mix())
                return
            for episode in collector.finish():
                controller.observe_episodes(
                    episode.member, [episode.episode_return], lane=episode.lane, lengths=[episode.length]
                )
                course.returns[episode.member].append(episode.episode_return)
            controller.advance(env_steps=settings.clock(collector.env_steps) - settings.clock(t))
    finally:
        collector.close()


def measure_gradients(
    learner: Learner, controller: SmoothingController, *, mixed_only: bool = False
) -> dict[str, Tensor]:
    """Tell the controller both objectives' gradient norms; returns their cosines (M,) per component, as metrics."""
    report = learner.gradients(controller.mix())
    controller.observe_gradients(
        {
            name: (g.norm_offline.double().cpu().numpy(), g.norm_online.double().cpu().numpy())
            for name, g in report.items()
        },
        mixed_only=mixed_only,
    )
    return {f"smoothing/{name}_gradient_cosine": g.cosine for name, g in report.items()}
