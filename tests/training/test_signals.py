"""What adaptive rules look at is measured on the right rows, at the right time, and disturbs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents.probes import kl_from, policy_snapshot, td_error
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.smoothing import KLGateConfig, RuleSettings, SmoothingController, TDGateConfig
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.finetune import finetune
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.signals import FEWEST, ROWS, Signals
from tests.training.test_finetune import MEMBERS, SETTINGS, TracedLearner, make


class Spy(SmoothingController):
    """Keeps what it was told, and when."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def observe(self, signals: Any) -> None:
        self.seen.append((self.t, dict(signals)))
        super().observe(signals)


def spy(rule: str, every: float = 15.0) -> Spy:
    rules = RuleSettings(kl=KLGateConfig(every=every), td=TDGateConfig(every=every))
    return Spy(f"{rule}:60", members=MEMBERS, settings=rules)


def full(rows: int) -> TracedLearner:
    """A learner with so many online rows, whose policy has moved since."""
    learner, collector, _ = make(num_envs=1)
    assert learner.online_rows is not None
    width = learner.online_rows._rows.shape[1]
    numbers = np.random.default_rng(1).normal(size=(MEMBERS, rows, width)).astype(np.float32)
    numbers[..., -3:-1] = 0.0
    learner.online_rows.add(numbers)
    collector.close()
    return learner


def test_kl_is_that_from_the_policy_at_the_switch_on_the_latest_rows() -> None:
    learner = full(1300)  # the ring of 1000 has come round
    agent, controller = learner.agent, spy("kl_gate")
    signals = Signals(learner, controller)
    then = policy_snapshot(agent)
    learner.offline_updates(5)
    controller.start()
    signals.measure()
    ((_, found),) = controller.seen
    assert learner.online_rows is not None
    latest = np.arange(1300 - ROWS, 1300)
    obs = torch.from_numpy(
        np.stack([learner.online_rows.packed_rows(m, latest)[:, : agent.obs_dim] for m in range(MEMBERS)])
    )
    expected = kl_from(then, agent, obs).double().numpy() / agent.action_dim
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-6)
    assert (found["kl"] > 0).all()


def test_td_errors_are_those_of_the_online_objective_on_fresh_and_on_fixed_offline_rows() -> None:
    learner = full(300)
    controller = spy("td_gate")
    signals = Signals(learner, controller)
    controller.start()
    signals.measure()
    learner.offline_updates(3)
    controller.advance(env_steps=15)
    signals.measure()
    assert [t for t, _ in controller.seen] == [0, 15]
    before, after = (values for _, values in controller.seen)
    assert set(before) == {"td_online", "td_offline"}
    assert learner.online_rows is not None
    latest = torch.arange(300 - ROWS, 300).expand(MEMBERS, -1)
    expected = td_error(learner.agent, learner.online_rows.gather(latest))
    np.testing.assert_allclose(after["td_online"], expected.double().numpy(), rtol=1e-6)
    assert (before["td_offline"] != after["td_offline"]).all()  # the critics have moved, the rows have not
    again = Signals(learner, controller)
    controller.advance(env_steps=15)
    again.measure()
    np.testing.assert_array_equal(controller.seen[2][1]["td_offline"], after["td_offline"])


def test_nothing_is_measured_before_there_are_rows() -> None:
    learner = full(FEWEST - 1)
    controller = spy("kl_gate")
    signals = Signals(learner, controller)
    controller.start()
    signals.measure()
    assert not controller.seen
    assert controller.due() == {"kl"}


@pytest.mark.parametrize("rule", ["kl_gate", "td_gate", "gradient_agreement"])
def test_measuring_moves_nothing(rule: str) -> None:
    learner = full(300)
    agent, controller = learner.agent, spy(rule)
    learner.offline_updates(1)
    before = {k: v.clone() for k, v in agent.networks.state_dict().items()}
    counters = agent.updates, agent.acts
    controller.start()
    Signals(learner, controller).measure()
    assert len(controller.seen) == 1
    assert (agent.updates, agent.acts) == counters
    for name, value in agent.networks.state_dict().items():
        assert torch.equal(value, before[name])
    other = full(300)
    other.offline_updates(1)
    mix = Mix.uniform(0.5, MEMBERS)
    for each in (learner, other):
        each.online_updates([mix] * 3)
    for mine, theirs in zip(agent.networks.parameters(), other.agent.networks.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_loop_measures_what_is_due_as_a_function_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o2o_smooth.training.signals.FEWEST", 9)
    seen = []
    for way in (("sync", False), ("sync", True)):
        learner, collector, trace = make(*way)
        controller = spy("kl_gate", every=10.0)
        finetune(learner, collector, controller, SETTINGS, trace)
        seen.append(controller.seen)
    assert [t for t, _ in seen[0]] == [9, 12, 21, 30, 39 + 3]  # steps come in threes
    for (t, values), (t_other, others) in zip(*seen, strict=True):
        assert t == t_other
        np.testing.assert_array_equal(values["kl"], others["kl"])


def test_a_curve_makes_nobody_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("o2o_smooth.training.finetune.Signals", refuse)
    for schedule in ("linear:30", "performance_gate:30"):
        learner, collector, trace = make()
        finetune(learner, collector, SmoothingController(schedule, members=MEMBERS, lanes=3), SETTINGS, trace)


def test_diverged_networks_end_the_run_in_words() -> None:
    learner = full(100)
    controller = spy("td_gate")
    signals = Signals(learner, controller)
    controller.start()
    with torch.no_grad():
        next(iter(learner.agent.networks.critic.parameters()))[1] = torch.nan
    with pytest.raises(
        O2OError, match=r"td_gate: td_offline of member 1 is nan; the training has diverged; .*LayerNorm"
    ):
        signals.measure()


def test_rule_that_nobody_can_serve_is_refused_at_the_switch() -> None:
    learner: Learner = full(100)
    learner.offline_rows = None
    with pytest.raises(ConfigError, match="offline rows"):
        Signals(learner, spy("td_gate"))
    strange = spy("kl_gate")
    strange.rule.needs = frozenset({"luck"})  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="nobody measures luck"):
        Signals(learner, strange)
