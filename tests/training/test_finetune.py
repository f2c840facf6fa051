"""The online loop: one order of things, whoever steps the environments and when."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from o2o_smooth.agents import IQL, IQLConfig
from o2o_smooth.agents.base import Metrics
from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import Task, make_vector_env
from o2o_smooth.errors import ConfigError, EnvError
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.finetune import OnlineSettings, finetune, overlaps
from o2o_smooth.training.learner import Learner
from tests.envs.counting import counting_task
from tests.envs.test_stepping import STRICT, fragile

WAYS = [("sync", False), ("sync", True), ("async", False), ("async", True)]
MEMBERS = 2


@dataclass
class Trace:
    """An observer that writes down what happened, and when."""

    agent: IQL
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def log(self, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        loss = tuple(info["critic/loss"].tolist())
        self.events.append(("log", env_steps, self.agent.updates, loss, [dict(s) for s in signals]))

    def evaluate(self, env_steps: int) -> None:
        self.events.append(("evaluate", env_steps, self.agent.updates))

    def show(self, env_steps: int) -> None:
        self.events.append(("show", env_steps, self.agent.updates))


class TracedLearner(Learner):
    """Writes down the rows that every update could see."""

    events: list[tuple[Any, ...]]

    def online_update(self, mix: Mix) -> Metrics:
        assert self.online_rows is not None
        self.events.append(("update", self.online_rows.written))
        return super().online_update(mix)


def make(
    vectorizer: str = "sync", overlap: bool = False, *, task: Task | None = None, num_envs: int = 3, interrupt: int = -1
) -> tuple[TracedLearner, Collector, Trace]:
    envs = make_vector_env(task or counting_task(), MEMBERS * num_envs, vectorizer=vectorizer, supervision=STRICT)
    seeds = tuple(range(MEMBERS))
    agent = IQL(envs.single_observation_space, envs.single_action_space, IQLConfig(hidden_dims=(8, 8)), seeds=seeds)
    rng = np.random.default_rng(0)
    width = agent.action_dim
    flags = np.zeros(50, np.bool_)
    rows = Transitions(
        obs=rng.normal(size=(50, agent.obs_dim)).astype(np.float32),
        action=rng.uniform(-1, 1, (50, width)).astype(np.float32),
        reward=rng.normal(size=50).astype(np.float32),
        next_obs=rng.normal(size=(50, agent.obs_dim)).astype(np.float32),
        terminated=flags,
        truncated=np.arange(50) == 49,
    )
    online = ReplayBuffer(MEMBERS, 1000, agent.obs_dim, width)
    learner = TracedLearner(
        agent,
        batch_size=8,
        offline_rows=ReplayBuffer.from_transitions(rows, MEMBERS, discount=0.9),
        online_rows=online,
    )
    trace = Trace(agent)
    learner.events = trace.events
    act = agent.act

    def traced(obs: Any, **kwargs: Any) -> Any:
        trace.events.append(("act", kwargs["step"], agent.updates))
        if kwargs["step"] == interrupt:
            raise KeyboardInterrupt
        return act(obs, **kwargs)

    agent.act = traced  # type: ignore[method-assign]
    collector = Collector(
        envs,
        MEMBERS,
        online,
        reward_map=RewardMap(),
        discount=0.9,
        seeds=list(range(envs.num_envs)),
        overlap=overlap,
    )
    return learner, collector, trace


SETTINGS = OnlineSettings(40, utd=0.5, update_after=10, random_steps=6, log_every=12, evaluate_at=(15, 20, 40))


def go(way: tuple[str, bool], **options: Any) -> tuple[TracedLearner, Trace]:
    learner, collector, trace = make(*way, **options)
    controller = SmoothingController("linear", ramp_steps=30, members=MEMBERS)
    finetune(learner, collector, controller, SETTINGS, trace)
    return learner, trace


def left() -> tuple[set[str], int]:
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("o2o-smooth")}
    return threads, len(multiprocessing.active_children())


def due(env_steps: int) -> int:
    """Half an update a step after the first ten."""
    return max(0, env_steps - 10) // 2


@pytest.mark.parametrize("way", WAYS)
def test_order_of_things(way: tuple[str, bool]) -> None:
    learner, trace = go(way)
    acts = [e for e in trace.events if e[0] == "act"]
    # The first six steps are random; the policy lags one vector step of three behind the learner.
    assert acts == [("act", t, due(t - 3)) for t in range(6, 40, 3)]
    updates = [written for kind, written, *_ in trace.events if kind == "update"]
    assert updates == [t for t in range(0, 43, 3) for _ in range(due(t) - due(t - 3))]
    assert learner.agent.updates == due(42)  # 40 steps are no multiple of three: the last vector step is whole
    assert [e for e in trace.events if e[0] == "evaluate"] == [("evaluate", t, due(t)) for t in (15, 21, 42)]
    assert [e[:3] for e in trace.events if e[0] == "log"] == [("log", t, due(t)) for t in (12, 24, 36)]
    assert [e for e in trace.events if e[0] == "show"] == [("show", t, due(t)) for t in range(0, 43, 3)]


def test_all_ways_end_with_the_same_bits() -> None:
    first, trace = go(WAYS[0])
    for way in WAYS[1:]:
        other, events = go(way)
        assert events.events == trace.events  # the losses and signals in the log too
        for a, b in zip(first.agent.networks.parameters(), other.agent.networks.parameters(), strict=True):
            assert torch.equal(a, b)
        assert first.online_rows is not None
        assert other.online_rows is not None
        for member in range(MEMBERS):
            numbers: NDArray[np.int64] = np.arange(42)
            np.testing.assert_array_equal(
                first.online_rows.packed_rows(member, numbers), other.online_rows.packed_rows(member, numbers)
            )
    assert left() == (set(), 0)


@pytest.mark.parametrize("way", WAYS)
def test_an_environments_error_ends_the_loop_and_leaves_nothing(
    way: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, collector, trace = make(*way, task=fragile())

    def fatal(obs: Any, **kwargs: Any) -> Any:
        return np.full((MEMBERS, 3, 1), kwargs["step"] >= 18, np.float32)

    monkeypatch.setattr(learner.agent, "act", fatal)
    settings = OnlineSettings(40, update_after=10, evaluate_at=(20,))
    with pytest.raises(EnvError, match="the joint broke"):
        finetune(learner, collector, SmoothingController("jump", members=MEMBERS), settings, trace)
    assert learner.agent.updates == 8  # those due at 18, as rows up to there are good
    assert collector.env_steps == 18
    assert left() == (set(), 0)


@pytest.mark.parametrize("where", ["act", "update", "evaluate"])
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_leaves_no_thread_and_no_process(
    way: tuple[str, bool], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    learner, collector, trace = make(*way, interrupt=12 if where == "act" else -1)
    if where == "update":
        monkeypatch.setattr(TracedLearner, "online_update", interrupt)
    if where == "evaluate":
        monkeypatch.setattr(trace, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finetune(learner, collector, SmoothingController("linear:30", members=MEMBERS), SETTINGS, trace)
    assert left() == (set(), 0)


def test_where_overlap_pays() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    auto = {(name, d.type): overlaps("auto", name, d) for name in ("sync", "async", "envpool") for d in (cpu, gpu)}
    assert [way for way, yes in auto.items() if not yes] == [("sync", "cpu")]
    assert overlaps("on", "sync", cpu)
    assert not overlaps("off", "async", gpu)
    with pytest.raises(ConfigError, match=r"overlap must be auto, on or off, got 'perhaps'"):
        overlaps("perhaps", "sync", cpu)  # type: ignore[arg-type]
