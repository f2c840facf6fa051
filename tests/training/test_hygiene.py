"""What happens at the switch and around online updates besides smoothing: each setting does what it says, alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.training.config import AnchorConfig, AveragingConfig, HygieneConfig
from o2o_smooth.training.finetune import OnlineSettings, finetune
from o2o_smooth.training.hygiene import Hygiene, TendedLearner
from tests.training import test_finetune as loop
from tests.training.recording import Recorder
from tests.training.test_graphed import ACTION_DIM, BATCH, CAPACITY, OBS_DIM, OFFLINE_ROWS, make_agent, rows

OFF = HygieneConfig(), AnchorConfig(), AveragingConfig()
UPDATES = 24


def make_learner(
    name: str = "iql", online: str = "sac", *, members: int = 2, device: str = "cpu", **options: Any
) -> TendedLearner:
    """A learner of a float64 agent that has learned a little offline."""
    agent = make_agent(name, online, members, device=device)
    offline = ReplayBuffer(members, OFFLINE_ROWS, OBS_DIM, ACTION_DIM, shared=True, device=device)
    offline.add(rows(OFFLINE_ROWS, 1, 0))
    collected = ReplayBuffer(members, CAPACITY, OBS_DIM, ACTION_DIM, device=device)
    # A member's rows hang on its place alone, so that one alone has those that it has among others.
    collected.add(np.concatenate([rows(9, 1, 40 + m) for m in range(members)]))
    learner = TendedLearner(agent, batch_size=BATCH, offline_rows=offline, online_rows=collected, **options)
    learner.offline_updates(8)
    if agent.networks.log_alpha is not None:
        agent.networks.log_alpha.data -= torch.arange(1.0, members + 1.0, device=device)  # as if it had been learned
    return learner


def tended(
    *groups: Any, name: str = "iql", online: str = "sac", members: int = 2, **options: Any
) -> tuple[TendedLearner, Hygiene]:
    """The same at the switch, with some groups of settings."""
    learner = make_learner(name, online, members=members, **options)
    chosen: list[Any] = [next((g for g in groups if isinstance(g, type(off))), off) for off in OFF]
    hygiene = learner.tend(*chosen, updates=UPDATES)
    assert hygiene is not None
    return learner, hygiene


def everything(agent: Agent) -> dict[str, Tensor]:
    """Networks, moments and step counts."""
    tensors = {**agent.networks.state_dict(), **{f"adam.{k}": v for k, v in agent.optimizer.state_tensors().items()}}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """Beginnings of the names of the tensors that differ."""
    names = (name.removeprefix("adam.").split(".")[0] for name in a if not torch.equal(a[name], b[name]))
    return {"temperature" if name == "log_alpha" else name for name in names}


def ones(count: int, weight: float = 1.0, members: int = 2) -> list[Mix]:
    return [Mix.uniform(weight, members)] * count


# Off


def test_everything_off_is_the_learner_itself() -> None:
    learner = make_learner()
    assert learner.tend(*OFF, updates=UPDATES) is None
    assert learner.tend(HygieneConfig(warm_up_steps=100), *OFF[1:], updates=UPDATES) is None
    assert (learner.hygiene, learner.agent.pull, learner.agent.frozen) == (None, None, {})


# Warm-up


@pytest.mark.parametrize("way", loop.WAYS)
def test_warm_up_collects_without_updates_and_without_the_clock(way: tuple[str, bool]) -> None:
    learner, collector, trace = loop.make(*way)
    settings = OnlineSettings(40, utd=0.5, update_after=4, warm_up_steps=14, log_every=1)
    controller = SmoothingController("linear", ramp_steps=20, members=loop.MEMBERS)
    finetune(learner, collector, controller, settings, trace)
    first = next(event for event in trace.events if event[0] == "update")
    assert first == ("update", 18)  # three environments a step: 15 is past the warm-up, but no update is due yet
    weights = {event[1]: event[4][0]["smoothing/actor_weight"] for event in trace.events if event[0] == "log"}
    assert min(weights) == 18
    for t, weight in weights.items():
        assert weight == pytest.approx(min(1.0, (t - 14) / 20)), t
    assert [event[2] for event in trace.events if event[:2] == ("show", 40 - 40 % 3 + 3)] == [int(0.5 * (42 - 14))]
    acted = [event for event in trace.events if event[0] == "act"]
    assert [step for _, step, updates in acted if updates == 0][:6] == [0, 3, 6, 9, 12, 15]


def test_warm_up_and_update_after_do_not_add_up() -> None:
    settings = OnlineSettings(1000, update_after=64, warm_up_steps=100)
    assert [settings.updates_due(t) for t in (64, 100, 101, 200)] == [0, 0, 1, 100]
    assert [settings.clock(t) for t in (0, 64, 100, 101, 200)] == [0, 0, 0, 1, 100]
    assert OnlineSettings(1000, update_after=64, warm_up_steps=10).updates_due(65) == 1
    assert [OnlineSettings(1000).clock(t) for t in (0, 7)] == [0, 7]


# Critic first


@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("td3_bc", "td3"), ("cql", "sac")])
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_critic_first_holds_the_policy_with_its_moments_and_nothing_else(name: str, online: str, weight: float) -> None:
    learner, _ = tended(HygieneConfig(critic_first_updates=4), name=name, online=online)
    plain = make_learner(name, online)
    start = everything(learner.agent)
    learner.online_updates(ones(1, weight))
    plain.online_updates(ones(1, weight))
    assert differing(everything(learner.agent), everything(plain.agent)) <= {"actor", "temperature"}
    learner.online_updates(ones(3, weight))
    now = everything(learner.agent)
    changed = differing(now, start)
    assert not changed & {"actor", "temperature"}
    assert changed >= ({"critic", "target_critic", "value"} if name == "iql" and weight < 1 else {"critic"})
    learner.online_updates(ones(2, weight))
    assert "actor" in differing(everything(learner.agent), now)
    assert learner.agent.frozen == {}


# Optimiser


@pytest.mark.parametrize("components", ["actor", "critic, value", "all"])
def test_reset_clears_the_named_moments_alone(components: str) -> None:
    plain = make_learner("cql")
    learner, _ = tended(HygieneConfig(reset_optimizer=components), name="cql")
    named = set(COMPONENTS) if components == "all" else {c.strip() for c in components.split(",")}
    before, after = everything(plain.agent), everything(learner.agent)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == named - {"value"}
    for name in changed:
        assert not after[name].any()
    assert all(name.startswith("adam.") for name in changed)
    learner.online_updates(ones(2))
    assert learner.agent.optimizer.steps["critic"].tolist() == ([2, 2] if "critic" in named else [10, 10])


def test_rewarmed_rates_rise_linearly_and_are_exactly_themselves_at_the_end() -> None:
    learner, hygiene = tended(HygieneConfig(rewarm_updates=4, reset_optimizer="all"))
    parameter = learner.agent.networks.critic.weights[0]
    rate = learner.agent.optimizer.learning_rates["critic"].copy()
    sizes = []
    for _ in range(6):
        before = parameter.detach().clone()
        learner.online_updates(ones(1))
        sizes.append((learner.agent.optimizer.learning_rates["critic"] / rate).tolist())
        if len(sizes) == 1:  # Adam's first step is the rate times the gradient's sign
            step = (parameter.detach() - before).abs().flatten(1)
            assert step.max(1).values.tolist() == pytest.approx((rate / 4).tolist(), rel=1e-4)
    assert sizes == [[0.25] * 2, [0.5] * 2, [0.75] * 2, [1.0] * 2, [1.0] * 2, [1.0] * 2]
    assert hygiene.alone == ""


def test_the_policys_rates_rise_from_its_own_first_update() -> None:
    learner, _ = tended(HygieneConfig(rewarm_updates=2, critic_first_updates=3))
    rates = learner.agent.optimizer.learning_rates
    full = {name: rate.copy() for name, rate in rates.items()}
    seen = []
    for _ in range(6):
        learner.online_updates(ones(1))
        seen.append({name: float((rates[name] / full[name])[0]) for name in rates})
    assert [s["critic"] for s in seen] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [s["actor"] for s in seen] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert [s["temperature"] for s in seen] == [s["actor"] for s in seen]


# Temperature


def log_alpha(learner: TendedLearner) -> Tensor:
    found = learner.agent.networks.log_alpha
    assert found is not None
    return found.detach()


def test_a_reset_temperature_is_each_members_own_start_and_nothing_else_moves() -> None:
    plain = everything(make_learner("cql").agent)
    learner, _ = tended(HygieneConfig(switch_temperature="reset"), name="cql")
    assert log_alpha(learner).tolist() == [0.0, 0.0]  # CQL starts at 1
    after = everything(learner.agent)
    assert {name for name in plain if not torch.equal(plain[name], after[name])} == {"log_alpha"}
    agent = make_agent("iql", "sac", overrides=[{"initial_temperature": t} for t in (0.1, 0.5, 2.0)])
    assert agent.networks.log_alpha is not None
    agent.networks.log_alpha.data -= 1.0
    Hygiene(agent, HygieneConfig(switch_temperature="reset"), AnchorConfig(), AveragingConfig(), updates=1)
    assert agent.networks.log_alpha.tolist() == pytest.approx(np.log([0.1, 0.5, 2.0]).tolist())


def test_an_interpolated_temperature_follows_each_members_curve_and_is_learned_from_its_end() -> None:
    learner, hygiene = tended(HygieneConfig(switch_temperature="interpolate"))
    carried, initial = log_alpha(learner).clone(), np.log(0.1)
    curves = [(0.0, 0.0), (0.2, 0.5), (0.6, 1.0), (0.8, 1.0), (1.0, 0.5)]
    for i, weights in enumerate(curves):
        w = np.array(weights)
        info = learner.online_updates([Mix(dict.fromkeys(COMPONENTS, w))])
        steps = learner.agent.optimizer.steps["temperature"].tolist()
        for m in range(2):
            if m == 1 and i >= 2:
                assert steps[m] == i - 1  # learned from its end on, also where its weight goes back
                if i > 2:
                    assert log_alpha(learner)[m] != pytest.approx(initial, abs=1e-9)
                continue
            expected = (1 - w[m]) * carried[m].item() + w[m] * initial
            if w[m] < 1:
                assert log_alpha(learner)[m].item() == pytest.approx(expected, rel=1e-12)
                assert steps[m] == 0
            else:
                assert info["online/temperature/alpha"][m].item() == pytest.approx(
                    0.1
                )  # it starts there, and is learned
                assert steps[m] == 1
    assert hygiene.alone == ""


# Anchors


def test_anchors_see_the_rows_of_the_losses_and_count_updates() -> None:
    learner, hygiene = tended(AnchorConfig(anchor_kl=1.0, anchor_kl_decay=0.5, anchor_kl_floor=0.2, anchor_bc=2.0))
    plain = make_learner()
    assert hygiene.anchors is not None
    infos = [learner.online_updates(ones(1)) for _ in range(4)]
    assert [float(i["actor/anchor_kl_coefficient"][0]) for i in infos] == [1.0, 0.5, 0.25, 0.2]
    assert [float(i["actor/anchor_bc_coefficient"][1]) for i in infos] == [2.0] * 4
    assert infos[0]["actor/anchor_kl"].abs().max() < 1e-12
    assert infos[3]["actor/anchor_kl"].min() > 0
    agent = plain.agent
    assert plain.offline_rows is not None
    batch = agent.encode(plain.offline_rows.gather(agent.draws.integers("offline_rows", 8, BATCH, OFFLINE_ROWS)))
    expected = -agent.networks.actor.log_prob(batch.obs, batch.action, edge=0.02).mean(-1)
    torch.testing.assert_close(infos[0]["actor/anchor_bc"], expected.detach())
    plain.online_updates(ones(1))
    learner, _ = tended(AnchorConfig(anchor_bc=2.0))
    learner.online_updates(ones(1))
    assert differing(everything(learner.agent), everything(agent)) == {"actor"}


@pytest.mark.parametrize("anchor", ["anchor_kl", "anchor_l2", "anchor_ewc"])
@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("td3_bc", "td3")])
def test_a_strong_anchor_keeps_the_policy_near_the_switch(anchor: str, name: str, online: str) -> None:
    obs = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 50, OBS_DIM)))
    free = make_learner(name, online)
    strong: dict[str, Any] = {anchor: 1000.0}
    held, _ = tended(AnchorConfig(**strong), name=name, online=online)
    start = free.agent.act(obs)
    away = []
    for learner in (free, held):
        learner.online_updates(ones(UPDATES))
        away.append(float((learner.agent.act(obs) - start).abs().mean()))
    assert away[1] < 0.75 * away[0]


# Averaging


@pytest.mark.parametrize(("parts", "moved"), [("actor", {"actor"}), ("critic", {"critic", "value"}), ("all", None)])
def test_sfa_goes_back_after_its_share_of_the_updates(parts: Any, moved: set[str] | None) -> None:
    plain = make_learner()
    start = everything(plain.agent)
    learner, _ = tended(AveragingConfig(sfa_period=0.25, sfa_share=0.3, sfa_parts=parts))
    for each in (plain, learner):
        each.online_updates(ones(5, 0.5))
    assert differing(everything(plain.agent), everything(learner.agent)) == set()
    for each in (plain, learner):
        each.online_updates(ones(1, 0.5))  # the sixth of 24
    now, expected = everything(learner.agent), everything(plain.agent)
    for name, value in expected.items():
        head = name.split(".")[0]
        if head in (moved or {"actor", "critic", "value"}):
            value = 0.7 * value + 0.3 * start[name]
        torch.testing.assert_close(now[name], value, rtol=1e-12, atol=1e-15)


def test_the_running_mean_acts_and_the_raw_actor_trains() -> None:
    plain = make_learner()
    learner, hygiene = tended(AveragingConfig(ema_decay=0.8))
    actor = list(plain.agent.networks.actor.parameters())
    mean = [p.detach().clone() for p in actor]
    for _ in range(5):
        plain.online_updates(ones(1))
        learner.online_updates(ones(1))
        mean = [0.8 * m + 0.2 * p.detach() for m, p in zip(mean, actor, strict=True)]
    assert differing(everything(plain.agent), everything(learner.agent)) == set()
    obs = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 4, OBS_DIM)))
    with learner.acting():
        acted = learner.agent.act(obs)
    assert torch.equal(learner.agent.act(obs), plain.agent.act(obs))
    assert not torch.equal(acted, plain.agent.act(obs))
    with torch.no_grad():
        for p, m in zip(actor, mean, strict=True):
            p.copy_(m)
    torch.testing.assert_close(acted, plain.agent.act(obs), rtol=1e-12, atol=1e-14)
    assert hygiene.ema is not None


# Together

EVERYTHING = (
    HygieneConfig(critic_first_updates=3, reset_optimizer="actor", rewarm_updates=4, switch_temperature="interpolate"),
    AnchorConfig(anchor_kl=0.5, anchor_kl_decay=0.9, anchor_bc=0.1, anchor_ewc=5.0, anchor_l2=0.1, anchor_parts="all"),
    AveragingConfig(sfa_period=0.3, ema_decay=0.9),
)


def curve(count: int, members: Sequence[int] = (0, 1)) -> list[Mix]:
    """Members whose ramps are of different lengths."""
    lengths = np.array([6.0, 15.0])[list(members)]
    return [Mix(dict.fromkeys(COMPONENTS, np.clip(t / lengths, 0.0, 1.0)), offline_fraction=0.4) for t in range(count)]


def test_a_member_is_what_it_would_be_alone() -> None:
    both, tending = tended(*EVERYTHING)
    alone, own = tended(*EVERYTHING, members=1)
    both.online_updates(curve(UPDATES))
    alone.online_updates(curve(UPDATES, [0]))
    mine, theirs = everything(both.agent), everything(alone.agent)
    (tensors, state), (others, other) = tending.state_dict(), own.state_dict()
    assert state == other == {"updates": UPDATES}
    assert tensors.keys() == others.keys()
    for name, value in {**theirs, **others}.items():
        if name not in ("obs_mean", "obs_std", "action_center", "action_half"):
            torch.testing.assert_close(({**mine, **tensors})[name][:1], value, rtol=1e-9, atol=1e-11, msg=name)


def test_the_state_of_one_goes_on_in_another() -> None:
    learner, hygiene = tended(*EVERYTHING)
    learner.online_updates(curve(UPDATES)[:8])
    tensors, state = hygiene.state_dict()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    other, resumed = tended(*EVERYTHING)
    other.agent.networks.load_state_dict(learner.agent.networks.state_dict())
    other.agent.optimizer.load_state_tensors(
        {name: tensor.clone() for name, tensor in learner.agent.optimizer.state_tensors().items()}
    )
    other.agent.updates = learner.agent.updates
    resumed.load_state_dict(tensors, state)
    for each in (learner, other):
        each.online_updates(curve(UPDATES)[8:])
    assert differing(everything(learner.agent), everything(other.agent)) == set()
    first, second = hygiene.state_dict()[0], resumed.state_dict()[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("ema.mean.0", "temperature.carried", "sfa.start.1", "anchors.actor0.0"):
        with pytest.raises(ValueError, match="is missing"):
            resumed.load_state_dict({k: v for k, v in tensors.items() if k != name}, state)
    picked, _ = hygiene.state_dict([1])
    assert all(torch.equal(picked[name][0], first[name][1]) for name in first)


@pytest.mark.parametrize(("name", "online"), [("iql", "sac"), ("td3_bc", "td3")])
@pytest.mark.parametrize(
    ("groups", "captures"),
    [
        ((HygieneConfig(critic_first_updates=5, reset_optimizer="all"), AveragingConfig(sfa_period=0.4)), True),
        ((HygieneConfig(rewarm_updates=5),), True),  # once they have risen
        ((AnchorConfig(anchor_kl=1.0, anchor_ewc=1.0),), False),
        ((AveragingConfig(ema_decay=0.9),), False),
    ],
    ids=["critic_first", "rewarm", "anchors", "ema"],
)
def test_updates_in_graphs_are_those_without(name: str, online: str, groups: Any, captures: bool) -> None:
    recorder = Recorder()
    graphed, _ = tended(*groups, name=name, online=online, capture=recorder)
    plain, _ = tended(*groups, name=name, online=online)
    before = recorder.recorded + recorder.warmed_up
    for learner in (plain, graphed):
        learner.online_updates(ones(UPDATES - 4, 0.5))
        learner.online_updates(ones(4, 1.0))
    mine, theirs = everything(graphed.agent), everything(plain.agent)
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-9, atol=1e-11, msg=key)
    assert (recorder.recorded + recorder.warmed_up > before) == captures


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "groups", [EVERYTHING, (HygieneConfig(critic_first_updates=5), AveragingConfig(sfa_period=0.4))]
)
def test_updates_on_a_gpu_are_those_without_graphs(groups: Any) -> None:
    graphed, plain = (tended(*groups, device="cuda", graphs=graphs)[0] for graphs in ("on", "off"))
    for learner in (graphed, plain):
        learner.online_updates(curve(UPDATES))
    mine, theirs = everything(graphed.agent), everything(plain.agent)
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-8, atol=1e-10, msg=key)
