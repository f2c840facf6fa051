"""Updates on the device, several a launch, against the plain learner; graphs are stood in for by `recording`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.data.collect import Collector
from o2o_smooth.data.holdout import RowMap
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.draws import CounterDraws
from o2o_smooth.envs import make_vector_env
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.training.config import Regime
from o2o_smooth.training.finetune import OnlineSettings, finetune
from o2o_smooth.training.graphed import GraphedLearner
from o2o_smooth.training.launch import Work
from o2o_smooth.training.learner import Learner
from tests.envs.counting import counting_task
from tests.training.recording import Recorder, Watch

OBS_DIM, ACTION_DIM, BATCH = 3, 2, 6
OFFLINE_ROWS, CAPACITY = 40, 25
AGENTS_AND_ONLINE = [
    ("iql", "sac"),
    ("iql", "td3"),
    ("iql", "same"),
    ("cql", "sac"),
    ("cql", "td3"),
    ("td3_bc", "td3"),
    ("sac", "same"),
    ("td3", "same"),
]


def rows(n: int, rings: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(rings, n, 2 * OBS_DIM + ACTION_DIM + 1)).astype(np.float32)
    return pack(
        normal[..., :OBS_DIM],
        np.tanh(normal[..., -1 - ACTION_DIM : -1]),
        normal[..., -1],
        normal[..., OBS_DIM : 2 * OBS_DIM],
        rng.random((rings, n)) < 0.2,
        np.zeros((rings, n), np.bool_),
        np.zeros((rings, n), np.float32),
    )


def make_agent(
    name: str, online: str, members: int = 3, *, device: str = "cpu", double: bool = True, **options: Any
) -> Agent:
    cls = AGENTS[name]
    settings: dict[str, Any] = {"hidden_dims": (8, 8), **({"cql_actions": 2} if name == "cql" else {})}
    agent = cls(
        gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32),
        cls.config_class(**settings),
        online=online,
        seeds=tuple(range(5, 5 + members)),
        device=device,
        **options,
    )
    if double:
        agent.double()
    agent.draws = CounterDraws(agent.seeds, device, agent.dtype)
    agent.set_normalizer(np.array([0.1, -0.2, 0.3]), np.array([1.1, 0.9, 2.0]))
    return agent


def make_learner(agent: Agent, regime: Regime = "retain", *, plain: bool = False, **options: Any) -> Learner:
    """A learner with offline rows and an online buffer that has begun to fill."""
    offline = ReplayBuffer(agent.members, OFFLINE_ROWS, OBS_DIM, ACTION_DIM, shared=True, device=agent.device)
    offline.add(rows(OFFLINE_ROWS, 1, 0))
    online = ReplayBuffer(agent.members, CAPACITY, OBS_DIM, ACTION_DIM, device=agent.device)
    online.add(rows(7, agent.members, 1))
    common: dict[str, Any] = {"batch_size": BATCH, "offline_rows": offline, "online_rows": online, "regime": regime}
    return Learner(agent, **common) if plain else GraphedLearner(agent, **common, **options)


def ramp(members: int, t: int, mode: Any = "loss", *, apart: bool = True) -> Mix:
    """Weights at a moment, of members whose ramps begin and end apart, and of components that start later."""
    lengths = np.array([8.0, 12.0, 20.0, 16.0])[:members] if apart else np.full(members, 12.0)
    starts = np.array([0.0, 4.0, 2.0, 6.0])[:members] if apart else np.zeros(members)
    weights = {name: np.clip((t - 2 * i - starts) / lengths, 0.0, 1.0) for i, name in enumerate(COMPONENTS)}
    return Mix(weights, offline_fraction=max(0.0, 0.6 - 0.05 * t), mode=mode)


def collect(learner: Learner, step: int) -> None:
    """A few more online rows, until the ring goes round."""
    assert learner.online_rows is not None
    learner.online_rows.add(rows(3, learner.agent.members, 100 + step))


def course(learner: Learner, mode: Any = "loss", *, back: bool = True, apart: bool = True) -> list[dict[str, Any]]:
    """Pretraining, a ramp with several updates a step, the end of it, and the way back; the metrics at the ends."""
    members = learner.agent.members
    seen = [learner.offline_updates(21)]
    metrics = [{name: value.clone() for name, value in seen[-1].items()}]
    for t in range(0, 30, 3):
        info = learner.online_updates([ramp(members, t + i, mode, apart=apart) for i in range(3)])
        metrics.append({name: value.clone() for name, value in info.items()})
        collect(learner, t)
    for weight in (1.0, 0.0, 0.4) if back else (1.0,):
        info = learner.online_updates([replace(Mix.uniform(weight, members, mode), offline_fraction=0.5)] * 5)
        metrics.append({name: value.clone() for name, value in info.items()})
    return metrics


def assert_equal(a: Agent, b: Agent, *, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Networks, targets, moments and counters."""
    assert a.updates == b.updates
    mine, theirs = a.networks.state_dict(), b.networks.state_dict()
    mine |= {f"optimizer.{k}": v for k, v in a.optimizer.state_tensors().items()}
    theirs |= {f"optimizer.{k}": v for k, v in b.optimizer.state_tensors().items()}
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=rtol, atol=atol), name


def assert_metrics(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], **close: Any) -> None:
    assert [list(m) for m in mine] == [list(m) for m in theirs]
    for a, b in zip(mine, theirs, strict=True):
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], **close)


@pytest.mark.parametrize(("name", "online"), AGENTS_AND_ONLINE)
@pytest.mark.parametrize("regime", ["retain", "mixed", "discard"])
def test_launches_are_the_updates_of_the_plain_learner(name: str, online: str, regime: Regime) -> None:
    plain = make_learner(make_agent(name, online), regime, plain=True)
    graphed = make_learner(make_agent(name, online), regime, capture=Recorder())
    assert_metrics(course(graphed), course(plain), rtol=1e-7, atol=1e-9)
    assert_equal(graphed.agent, plain.agent, rtol=1e-7, atol=1e-9)


def test_launches_pass_over_held_out_rows_too() -> None:
    plain = make_learner(make_agent("iql", "sac"), plain=True)
    graphed = make_learner(make_agent("iql", "sac"), capture=Recorder())
    for each in (plain, graphed):
        assert each.offline_rows is not None
        whole = each.offline_rows._rows
        each.offline_rows._map = RowMap(((0, 5), (20, 30)), len(whole), whole.device)
        each.offline_rows._written -= 15
        whole[:5], whole[20:30] = torch.nan, torch.nan
    assert_metrics(course(graphed), course(plain), rtol=1e-7, atol=1e-9)
    assert_equal(graphed.agent, plain.agent, rtol=1e-7, atol=1e-9)
    assert all(torch.isfinite(p).all() for p in graphed.agent.networks.parameters())


@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("cql", "sac"), ("td3_bc", "td3"), ("iql", "td3")])
@pytest.mark.parametrize("mode", ["target", "matched", "projected"])
def test_every_way_to_blend(name: str, online: str, mode: str) -> None:
    plain = make_learner(make_agent(name, online), plain=True)
    graphed = make_learner(make_agent(name, online), capture=Recorder())
    assert_metrics(course(graphed, mode), course(plain, mode), rtol=1e-7, atol=1e-9)
    assert_equal(graphed.agent, plain.agent, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "online", "overrides"),
    [
        ("iql", "sac", [{"expectile": 0.6, "actor_lr": 1e-3}, {"tau": 0.02, "value_lr": 1e-4}, {"discount": 0.9}]),
        ("td3_bc", "td3", [{"bc_alpha": 1.0}, {"critic_lr": 1e-3, "target_noise": 0.3}, {"tau": 0.05}]),
        ("cql", "sac", [{"cql_weight": 1.0}, {"temperature_lr": 1e-3}, {"cql_weight": 3.0, "critic_lr": 1e-4}]),
    ],
)
def test_members_with_settings_of_their_own(name: str, online: str, overrides: list[dict[str, float]]) -> None:
    plain = make_learner(make_agent(name, online, overrides=overrides), plain=True)
    graphed = make_learner(make_agent(name, online, overrides=overrides), capture=Recorder())
    assert_metrics(course(graphed), course(plain), rtol=1e-7, atol=1e-9)
    assert_equal(graphed.agent, plain.agent, rtol=1e-7, atol=1e-9)


def test_a_member_learns_as_it_does_alone() -> None:
    together = make_learner(make_agent("iql", "sac", 2), capture=Recorder())
    alone = make_learner(make_agent("iql", "sac", 1), capture=Recorder())
    mixes = [Mix.uniform(w, 1) for w in (0.0, 0.25, 0.5)]
    assert isinstance(alone.online_rows, ReplayBuffer)
    alone.online_rows = ReplayBuffer(1, CAPACITY, OBS_DIM, ACTION_DIM)
    alone.online_rows.add(rows(7, 2, 1)[:1])
    for learner in (together, alone):
        learner.offline_updates(20)
        for mix in mixes:
            learner.online_updates([Mix({k: np.repeat(w, learner.agent.members) for k, w in mix.weights.items()})] * 4)
    for mine, theirs in zip(alone.agent.networks.parameters(), together.agent.networks.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs[:1], rtol=1e-9, atol=1e-11)


def graphed(name: str, online: str, members: int = 3, **options: Any) -> tuple[GraphedLearner, Recorder]:
    recorder = Recorder()
    learner = make_learner(make_agent(name, online, members), capture=recorder, **options)
    assert isinstance(learner, GraphedLearner)
    return learner, recorder


def test_one_graph_serves_pretraining() -> None:
    learner, recorder = graphed("iql", "sac")
    learner.offline_updates(96)
    assert (len(learner.programs), recorder.warmed_up, recorder.recorded) == (1, 1, 1)
    assert [len(launch.steps) for launch in learner.programs] == [16]
    learner.offline_updates(5)  # 4 + 1
    assert len(learner.programs) == 3


def test_a_moving_weight_or_share_or_buffer_captures_nothing() -> None:
    learner, recorder = graphed("iql", "sac")
    for t in range(50):
        # Every component is mixed for every member; the offline rows go from most of the batch to one.
        weights = {name: np.array([0.1, 0.2, 0.3]) + 0.012 * t for name in COMPONENTS}
        learner.online_updates([Mix(weights, offline_fraction=0.8 - 0.012 * t)] * 2)
        collect(learner, t)
    assert (len(learner.programs), recorder.recorded) == (1, 1)


def test_a_phase_that_comes_back_captures_nothing() -> None:
    learner, recorder = graphed("td3_bc", "td3")
    counts = []
    for weight in (0.0, 0.5, 1.0) * 3:
        for _ in range(4):
            learner.online_updates([Mix.uniform(weight, 3)] * 2)
        counts.append((len(learner.programs), recorder.recorded))
    # One for each phase: the actor moves at every second update, which is one place in a launch of two.
    assert counts == [(1, 1), (2, 2), (3, 3)] + [(3, 3)] * 6


def test_single_updates_have_a_graph_for_each_place_in_the_rhythm() -> None:
    learner, recorder = graphed("td3_bc", "td3")
    for _ in range(10):
        learner.online_updates([Mix.uniform(0.5, 3)])
    assert recorder.recorded == 2


def test_members_that_end_their_ramps_at_different_times_share_graphs() -> None:
    learner, recorder = graphed("iql", "same", 4)
    mixed = []
    for t in range(40):
        learner.online_updates([ramp(4, t)])
        mixed.append(recorder.recorded)
    # Which components have which terms is all that counts: it changes a few times, and not with every member.
    kinds = {tuple(ramp(4, t).kind(c) for c in COMPONENTS) for t in range(40)}
    assert len({launch.steps[0].plan for launch in learner.programs}) == len(kinds)
    assert len(learner.programs) <= 2 * len(kinds)  # once with all members in step, once with some of them


def test_a_launch_reads_nothing_back_and_takes_nothing_from_the_host() -> None:
    learner, _ = graphed("cql", "sac")
    mixes = [ramp(3, 6 + i) for i in range(3)]
    for _ in range(3):
        learner.online_updates(mixes)
        learner.offline_updates(16)
    with Watch():  # type: ignore[no-untyped-call]
        for t in range(4):
            learner.online_updates([ramp(3, 6 + t + i) for i in range(3)])
            learner.offline_updates(16)
    with pytest.raises(RuntimeError, match="makes the host wait"), Watch():  # type: ignore[no-untyped-call]
        float(learner.offline_update()["critic/loss"][0])


def test_what_was_replaced_is_captured_anew() -> None:
    """Another agent at the switch, and no more offline rows: graphs of the old ones would go on with the old ones."""
    a, b = (
        make_learner(make_agent("iql", "sac"), "discard", **way) for way in ({"plain": True}, {"capture": Recorder()})
    )
    for learner in (a, b):
        learner.offline_updates(32)
        learner.agent = make_agent("iql", "sac", 3)
        learner.offline_rows = None
        for _ in range(3):
            learner.online_updates([Mix.uniform(0.3, 3)] * 4)
    assert_equal(b.agent, a.agent)


def test_updates_of_other_makers_count() -> None:
    """The plain update of the same agent in between moves the same counters."""
    a, b = (make_learner(make_agent("td3_bc", "td3"), **way) for way in ({"plain": True}, {"capture": Recorder()}))
    for learner in (a, b):
        for _ in range(3):
            learner.offline_updates(3)
            learner.agent.update(learner._offline_batch())
    assert_equal(b.agent, a.agent)


class Broken(Recorder):
    def __call__(self, work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_updates_go_on_where_they_cannot_be_captured() -> None:
    plain = make_learner(make_agent("iql", "sac"), plain=True)
    broken = make_learner(make_agent("iql", "sac"), capture=Broken())
    expected = course(plain)
    with pytest.warns(RuntimeWarning, match="CUDA graphs are off.*not permitted") as told:
        found = course(broken)
    assert len(told) == 1
    assert_metrics(found, expected, rtol=1e-7, atol=1e-9)
    assert_equal(broken.agent, plain.agent, rtol=1e-7, atol=1e-9)


def test_a_failed_capture_is_an_error_where_graphs_were_asked_for() -> None:
    learner = make_learner(make_agent("iql", "sac"), capture=Broken(), graphs="on")
    with pytest.raises(ConfigError, match=r"asked for.*not permitted"):
        learner.offline_updates(64)


def test_graphs_need_a_gpu_where_they_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        make_learner(make_agent("iql", "sac"), graphs="on")


def test_on_the_cpu_it_is_the_plain_learner() -> None:
    plain = make_learner(make_agent("iql", "sac"), plain=True)
    same = make_learner(make_agent("iql", "sac"))
    assert_metrics(course(same), course(plain), rtol=0, atol=0)
    assert_equal(same.agent, plain.agent, rtol=0, atol=0)
    assert isinstance(same, GraphedLearner)
    assert not same.programs


def test_metrics_that_were_written_over_are_not_read() -> None:
    learner, _ = graphed("iql", "sac")
    info = learner.offline_updates(4)
    assert torch.isfinite(info["critic/loss"]).all()
    learner.offline_updates(1)
    with pytest.raises(RuntimeError, match="written over"):
        info["critic/loss"]


def test_rows_that_are_missing_are_named() -> None:
    learner, _ = graphed("iql", "sac")
    learner.offline_rows = None
    with pytest.raises(ConfigError, match="offline rows, and the run has none"):
        learner.offline_updates(2)
    learner, _ = graphed("iql", "sac")
    learner.online_rows = ReplayBuffer(3, CAPACITY, OBS_DIM, ACTION_DIM)
    with pytest.raises(ConfigError, match="online rows, and none are collected"):
        learner.online_updates([Mix.uniform(1.0, 3)])
    agent = make_agent("sac", "same").double()  # with the CPU's own draws again
    with pytest.raises(ConfigError, match="CounterDraws"):
        make_learner(agent, capture=Recorder()).offline_updates(1)


class AsItStands:
    """Does the work every time anew."""

    def warm_up(self, work: Work) -> None:
        work()

    def __call__(self, work: Work) -> Work:
        return work


@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("td3_bc", "td3"), ("cql", "sac")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_single_precision_too(name: str, online: str, precision: str) -> None:
    """Not recorded: on the CPU native kernels take part, which torch does not see."""
    plain = make_learner(make_agent(name, online, double=False, precision=precision), plain=True)
    ours = make_learner(make_agent(name, online, double=False, precision=precision), capture=AsItStands())
    course(plain, back=False)
    course(ours, back=False)
    close = 1e-4 if precision == "fp32" else 1e-2
    assert_equal(ours.agent, plain.agent, rtol=close, atol=close)


class Log:
    """An observer that keeps every line of metrics."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def log(self, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        self.lines.append({name: value.clone() for name, value in info.items()})

    def evaluate(self, env_steps: int) -> None:
        pass

    def show(self, env_steps: int) -> None:
        pass


@pytest.mark.parametrize("weight_in", ["raw", "effective"])
def test_interaction_goes_on_as_with_the_plain_learner(weight_in: Any) -> None:
    """The whole loop, with six updates a vector step, weights that move with updates, and measured gradients."""
    logs = []
    for way in ({"plain": True}, {"capture": Recorder()}):
        learner = make_learner(make_agent("iql", "sac", 2), **way)
        learner.offline_updates(10)
        learner.online_rows = rows_of = ReplayBuffer(2, CAPACITY, OBS_DIM, ACTION_DIM)
        collector = Collector(
            make_vector_env(counting_task(), 6, vectorizer="sync"),
            2,
            rows_of,
            reward_map=RewardMap(scale=0.1),
            discount=0.9,
            seeds=list(range(6)),
        )
        controller = SmoothingController("linear", ramp_steps=60, unit="updates", members=2, weight_in=weight_in)
        log = Log()
        finetune(learner, collector, controller, OnlineSettings(60, utd=2.0, update_after=6, log_every=9), log)
        logs.append((log.lines, learner))
    (theirs, plain), (mine, graphed) = logs
    assert len(mine) > 3
    assert_metrics(mine, theirs, rtol=1e-7, atol=1e-9)
    assert_equal(graphed.agent, plain.agent, rtol=1e-7, atol=1e-9)
    assert isinstance(graphed, GraphedLearner)
    assert any(program.replay is not None for program in graphed.programs.values())
