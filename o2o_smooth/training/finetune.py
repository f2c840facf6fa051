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
from dataclasses import dataclass
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

Overlap = Literal["auto", "on", "off"]
RECENT = 10  # episodes of a member that collect/return is the mean of
NORMS_EVERY = 100  # updates between measurements of gradient norms where the curve is in effective weight


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
) -> None:
    """Interact and update until the budget is spent; the collector is closed at the end, whatever happens."""
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
    returns: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(agent.members)]
    info: Metrics = {}
    cosines: dict[str, Tensor] = {}  # of the next line of the log alone: they are not measured once a ramp has ended
    updates = 0
    next_log = 0
    controller.start()
    try:
        measured = Signals(learner, controller) if controller.needs else None
        while True:
            t = collector.env_steps
            if t < settings.env_steps:
                collector.start(uniform if t < settings.random_steps else explore)
            while updates < (until := settings.updates_due(t)):
                if audit is not None:
                    audit.look(t, updates, controller.mix())
                    until = min(until, audit.due)
                if controller.weight_in == "effective":
                    if updates % NORMS_EVERY == 0:
                        cosines = measure_gradients(learner, controller)
                    until = min(until, updates - updates % NORMS_EVERY + NORMS_EVERY)
                mixes = []
                for _ in range(until - updates):
                    mixes.append(controller.mix())
                    controller.advance(updates=1)
                info = learner.online_updates(mixes)
                updates = until
            if measured is not None:
                measured.measure()
            if audit is not None and updates:
                audit.look(t, updates, controller.mix())
            if t >= next_log and info:
                next_log = t + settings.log_every
                if any(controller.mix().kind(c) == "mixed" for c in COMPONENTS):
                    cosines = measure_gradients(learner, controller, mixed_only=True)
                signals = controller.log()
                for m in range(agent.members):
                    if returns[m]:
                        signals[m]["collect/return"] = float(np.mean(returns[m]))
                observer.log(t, {**info, **cosines}, signals)
                cosines = {}
            if points and t >= points[0]:
                while points and t >= points[0]:
                    points.pop(0)
                collector.wait()  # environments of one process may share state with those of the evaluation
                observer.evaluate(t)
            observer.show(t)
            if t >= settings.env_steps:
                if audit is not None:
                    audit.finish(t, updates, controller.mix())
                return
            for episode in collector.finish():
                controller.observe_episodes(
                    episode.member, [episode.episode_return], lane=episode.lane, lengths=[episode.length]
                )
                returns[episode.member].append(episode.episode_return)
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
