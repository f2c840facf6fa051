from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from o2o_smooth.smoothing import (
    COMPONENTS,
    Cosine,
    Jump,
    Linear,
    OfflineShare,
    PerformanceGate,
    PerformanceGateConfig,
    SmoothingController,
    Stay,
    make_rule,
)
from o2o_smooth.smoothing.controller import NORM_DECAY
from o2o_smooth.smoothing.objective import effective_weight

GATE = PerformanceGateConfig(ramp_steps=1000, ramp_episodes=1)
STEADY = [9.9, 10.0, 10.0, 10.1]  # a yardstick after four episodes


def started(*args: Any, **settings: Any) -> SmoothingController:
    controller = SmoothingController(*args, **settings)
    controller.start()
    return controller


def refuse() -> Tensor:
    raise AssertionError("a loss without weight was computed")


def norms(offline: float, online: float, members: int = 1) -> tuple[Any, Any]:
    return np.full(members, offline), np.full(members, online)


# The clock


def test_before_the_start_everything_is_offline_and_time_stands_still() -> None:
    controller = SmoothingController("jump", members=2)
    controller.advance(env_steps=100, updates=100)
    controller.observe_episodes(0, [1.0])
    assert controller.t == 0
    mix = controller.mix()
    assert all(mix.kind(name) == "offline" for name in COMPONENTS)
    assert mix.offline_fraction == 1.0
    controller.start()
    assert all(controller.mix().kind(name) == "online" for name in COMPONENTS)
    assert controller.mix().offline_fraction == 0.0


def test_episodes_before_the_start_are_not_the_yardstick() -> None:
    rule = PerformanceGate()
    controller = SmoothingController(rule)
    controller.observe_episodes(0, [100.0] * 4)
    controller.start()
    controller.observe_episodes(0, STEADY)
    stick = rule.yardstick(0)
    assert stick is not None
    assert stick.mean == pytest.approx(10.0)


def test_second_start_is_refused() -> None:
    with pytest.raises(ValueError, match="started already"):
        started("jump").start()


@pytest.mark.parametrize(("unit", "t", "w"), [("env_steps", 30, 0.3), ("updates", 50, 0.5)])
def test_curve_counts_its_own_unit(unit: Any, t: int, w: float) -> None:
    controller = started("linear:100", unit=unit)
    for _ in range(10):
        controller.mix()  # a cached mix must not hide that time went on
        controller.advance(env_steps=3)
        controller.mix()
        controller.advance(updates=5)
    assert (controller.t, controller.env_steps, controller.updates) == (t, 30, 50)
    assert {name: weight.tolist() for name, weight in controller.weights().items()} == {
        name: [w] for name in COMPONENTS
    }


@pytest.mark.parametrize(("unit", "w"), [("env_steps", 0.5), ("updates", 0.25)])
def test_gate_counts_the_controllers_unit(unit: Any, w: float) -> None:
    controller = started(PerformanceGate(GATE), unit=unit)
    controller.observe_episodes(0, STEADY)
    controller.advance(env_steps=500, updates=250)
    assert controller.weights()["critic"].tolist() == [w]


# Weights


def test_override_holds_for_its_component_and_value_follows_the_critic() -> None:
    controller = started("linear:100", overrides={"critic": "jump"})
    controller.advance(env_steps=50)
    weights = {name: float(w[0]) for name, w in controller.weights().items()}
    assert weights == {"actor": 0.5, "critic": 1.0, "value": 1.0, "temperature": 0.5}


def test_values_own_override_wins_over_the_critics() -> None:
    controller = started("jump", overrides={"critic": Stay(), "value": "linear", "actor": Cosine(100)}, ramp_steps=200)
    controller.advance(env_steps=50)
    weights = {name: float(w[0]) for name, w in controller.weights().items()}
    assert weights == pytest.approx({"actor": 0.5, "critic": 0.0, "value": 0.25, "temperature": 1.0})


def test_curves_may_override_a_gate() -> None:
    controller = started("performance_gate:1000", overrides={"critic": "jump"}, members=2)
    mix = controller.mix()
    assert {name: mix.kind(name) for name in COMPONENTS} == {
        "actor": "offline",
        "critic": "online",
        "value": "online",
        "temperature": "offline",
    }


def test_users_own_curve_is_a_schedule() -> None:
    controller = started(lambda t: min(1.0, t / 10))
    controller.advance(env_steps=5)
    assert controller.weights()["actor"].tolist() == [0.5]


def test_weights_handed_out_are_copies() -> None:
    controller = started("linear:10")
    controller.weights()["actor"][:] = 0.7
    assert controller.weights()["actor"].tolist() == [0.0]


def test_offline_share_is_annealed_on_its_own() -> None:
    controller = started("jump", offline_share=OfflineShare(0.5, 0.1, Linear(100)))
    shares = []
    for _ in range(5):
        shares.append(controller.mix().offline_fraction)
        controller.advance(env_steps=50)
    assert shares == [0.5, pytest.approx(0.3), 0.1, 0.1, 0.1]
    fixed = started("linear:10", offline_share=0.25)
    fixed.advance(env_steps=100)
    assert fixed.mix().offline_fraction == 0.25


def test_offline_share_out_of_range_or_without_a_way_is_refused() -> None:
    with pytest.raises(ValueError, match="start must lie"):
        OfflineShare(1.5)
    with pytest.raises(ValueError, match="end must lie"):
        OfflineShare(0.5, -0.1, Jump())
    with pytest.raises(ValueError, match="schedule other than stay"):
        OfflineShare(0.5, 0.0)


# Effective weights


@given(st.floats(0, 1), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_curve_in_effective_weight_gives_that_share_of_the_gradient(w: float, off: float, on: float) -> None:
    controller = started(lambda _: w, weight_in="effective")
    controller.observe_gradients({"actor": norms(off, on)})
    raw = controller.weights()["actor"]
    assert effective_weight(raw, *norms(off, on))[0] == pytest.approx(w, abs=1e-9)
    assert controller.effective_weights()["actor"][0] == pytest.approx(w, abs=1e-9)
    assert controller.weights()["critic"].tolist() == [w]  # no norms yet: the curve itself


def test_effective_weight_is_exact_at_the_ends() -> None:
    controller = started("linear:100", weight_in="effective")
    controller.observe_gradients({name: norms(17.3, 0.07) for name in COMPONENTS})
    assert controller.mix().kind("actor") == "offline"
    controller.advance(env_steps=50)
    assert controller.mix().kind("actor") == "mixed"
    controller.advance(env_steps=50)
    assert controller.mix().kind("actor") == "online"


def test_raw_curve_only_reports_the_effective_weight() -> None:
    controller = started(lambda _: 0.5)
    controller.observe_gradients({"actor": norms(10.0, 1.0)})
    assert controller.weights()["actor"].tolist() == [0.5]
    assert controller.effective_weights() == {"actor": pytest.approx([1 / 11])}


def test_matched_gradients_are_of_one_norm_so_nothing_is_translated() -> None:
    controller = started(lambda _: 0.5, mode="matched", weight_in="effective")
    controller.observe_gradients({"actor": norms(10.0, 1.0)})
    assert controller.weights()["actor"].tolist() == [0.5]
    assert controller.effective_weights()["actor"].tolist() == [0.5]


def test_norms_are_a_running_mean_per_member() -> None:
    controller = started(lambda _: 0.5, members=2)
    controller.observe_gradients({"actor": (np.array([1.0, 2.0]), np.array([4.0, 1.0]))})
    controller.observe_gradients({"actor": (np.array([3.0, 2.0]), np.array([4.0, 5.0]))})
    old, new = NORM_DECAY, 1 - NORM_DECAY
    expected = effective_weight(np.full(2, 0.5), np.array([old + new * 3, 2.0]), np.array([4.0, old + new * 5]))
    np.testing.assert_allclose(controller.effective_weights()["actor"], expected)


def test_norms_are_needed_only_in_effective_weight_and_only_once() -> None:
    assert not started("linear:10").needs_gradients
    controller = started("linear:10", weight_in="effective")
    assert controller.needs_gradients
    controller.observe_gradients({"actor": norms(1.0, 1.0)})
    assert not controller.needs_gradients


# Losses of the user's own


def test_blend_at_the_ends_returns_the_very_tensor_and_never_calls_the_other_loss() -> None:
    loss = torch.tensor(3.0, requires_grad=True)
    controller = started("linear:10")
    assert controller.blend(lambda: loss, refuse) is loss
    controller.advance(env_steps=10)
    assert controller.blend(refuse, lambda: loss) is loss
    assert controller.blend(torch.tensor(1.0), loss) is loss


def test_blend_is_the_weighted_sum() -> None:
    controller = started("linear:10", overrides={"critic": "linear:40"})
    controller.advance(env_steps=5)
    x = torch.tensor(2.0, requires_grad=True)
    loss = controller.blend(lambda: x.square(), lambda: 10 * x)
    assert loss.item() == 12.0
    loss.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.item() == 7.0
    assert controller.blend(torch.tensor(8.0), torch.tensor(0.0), "critic").item() == 7.0


def test_blend_weighs_members_apart() -> None:
    controller = started(PerformanceGate(GATE, members=3), members=3)
    controller.observe_episodes(1, STEADY)
    controller.advance(env_steps=250)
    controller.observe_episodes(2, STEADY)
    controller.advance(env_steps=250)
    a, b = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 5.0])
    assert controller.blend(a, b).tolist() == [1.0, 3.0, 2.0]


def test_gradient_is_continuous_from_end_to_end() -> None:
    controller = started("cosine:1000")
    theta = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    offline: Callable[[], Tensor] = lambda: (theta - 1).square().sum()  # noqa: E731
    online: Callable[[], Tensor] = lambda: (theta.exp() * torch.tensor([2.0, -3.0])).sum()  # noqa: E731

    def gradient() -> Tensor:
        (g,) = torch.autograd.grad(controller.blend(offline, online), theta)
        return g

    path = [gradient()]
    for _ in range(1000):
        controller.advance(env_steps=1)
        path.append(gradient())
    ends = [torch.autograd.grad(loss(), theta)[0] for loss in (offline, online)]
    assert torch.equal(path[0], ends[0])
    assert torch.equal(path[-1], ends[1])
    steps = torch.stack([(b - a).norm() for a, b in pairwise(path)])
    assert steps.max() < 1.01 * (torch.pi / 2) * (ends[1] - ends[0]).norm() / 1000


@pytest.mark.parametrize("t", [0, 5, 10])
@pytest.mark.parametrize(
    ("members", "shape", "words"),
    [
        (1, (4,), r"a scalar or of shape \(1,\).*\(4,\)"),
        (1, (1, 1), "a scalar"),
        (3, (), r"of shape \(3,\), one per member.*\(\)"),
        (3, (4,), r"of shape \(3,\), one per member"),
        (3, (3, 1), r"of shape \(3,\), one per member"),
    ],
)
def test_loss_that_does_not_fit_the_members_is_refused_at_once(
    t: int, members: int, shape: tuple[int, ...], words: str
) -> None:
    controller = started("linear:10", members=members)
    controller.advance(env_steps=t)
    with pytest.raises(ValueError, match=words):
        controller.blend(torch.zeros(shape), torch.zeros(shape))


def test_losses_of_two_shapes_are_refused() -> None:
    controller = started(lambda _: 0.5)
    with pytest.raises(ValueError, match=r"one shape, got \(\) and \(1,\)"):
        controller.blend(torch.tensor(1.0), torch.ones(1))


def test_blend_refuses_an_unknown_component_and_a_mode_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no component 'policy'; there are actor, critic"):
        started("jump").blend(torch.tensor(1.0), torch.tensor(1.0), "policy")
    with pytest.raises(ValueError, match="'matched'"):
        started("jump", mode="matched").blend(torch.tensor(1.0), torch.tensor(1.0))


# The log


def test_log_has_a_row_per_member_with_every_column() -> None:
    controller = started(PerformanceGate(GATE, members=2), members=2, offline_share=0.5)
    for member in range(2):
        controller.observe_episodes(member, STEADY)
    controller.advance(env_steps=500)
    controller.observe_episodes(1, [0.0])
    controller.advance(env_steps=250)
    controller.observe_gradients({"actor": norms(1.0, 1.0, members=2)})
    rows = controller.log()
    weights = {f"smoothing/{name}_weight": 0.75 for name in COMPONENTS}
    rest = {"data/offline_fraction": 0.5, "smoothing/actor_effective_weight": 0.75}
    seen = {"running_return": 10.0, "bar": 8.5, "switch_return": 10.0, "evidence": 0.0, "verdict": 1.0}
    assert rows[0] == pytest.approx({**weights, **rest, **{f"gate/{name}": value for name, value in seen.items()}})
    assert rows[1]["smoothing/critic_weight"] == 0.0
    assert rows[1]["gate/running_return"] == pytest.approx(8.0)
    assert rows[1]["gate/verdict"] == -1.0
    assert rows[1]["gate/evidence"] > 1.0
    assert all(type(value) is float for row in rows for value in row.values())


def test_curve_logs_no_signals() -> None:
    (row,) = started("linear:10").log()
    assert set(row) == {*(f"smoothing/{name}_weight" for name in COMPONENTS), "data/offline_fraction"}


# Keeping


@pytest.mark.parametrize("schedule", ["cosine:300", "performance_gate:1000"])
def test_state_goes_through_json_and_goes_on_identically(schedule: str) -> None:
    def make() -> SmoothingController:
        return SmoothingController(
            schedule, members=2, weight_in="effective", offline_share=OfflineShare(0.5, 0.0, Linear(600))
        )

    def step(controller: SmoothingController, k: int) -> None:
        controller.observe_episodes(k % 2, [10.0 + k % 7 / 7])
        controller.observe_gradients({"actor": (np.array([1.0 + k, 2.0]), np.array([3.0, 1.0 + k]))})
        controller.advance(env_steps=25, updates=10)

    first, second = make(), make()
    first.start()
    for k in range(12):
        step(first, k)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    np.testing.assert_equal(second.log(), first.log())
    for k in range(12, 40):
        step(first, k)
        step(second, k)
        np.testing.assert_equal(second.log(), first.log())
    assert second.state_dict() == first.state_dict()


def test_state_of_a_controller_that_has_not_started_goes_on_offline() -> None:
    other = SmoothingController("jump")
    other.load_state_dict(SmoothingController("jump").state_dict())
    assert other.mix().kind("actor") == "offline"
    other.start()
    assert other.mix().kind("actor") == "online"


@pytest.mark.parametrize(
    ("have", "given"), [("linear:10", "performance_gate:10"), ("performance_gate:10", "linear:10")]
)
def test_state_of_another_kind_of_rule_is_refused(have: str, given: str) -> None:
    controller = SmoothingController(have)
    with pytest.raises(ValueError, match="another kind of smoothing rule"):
        controller.load_state_dict(started(given).state_dict())
    assert not controller.started


def test_state_of_another_population_is_refused_and_changes_nothing() -> None:
    controller = SmoothingController("performance_gate:10", members=3)
    with pytest.raises(ValueError, match="state of 2 members, expected 3"):
        controller.load_state_dict(started("performance_gate:10", members=2).state_dict())
    assert not controller.started


# What cannot be


def test_gate_reads_its_text_form() -> None:
    rule = make_rule("performance_gate:700", 5000, members=2, random_return=-3.0)
    assert isinstance(rule, PerformanceGate)
    assert (rule.config.ramp_steps, rule.members, rule.random_return) == (700.0, 2, -3.0)
    default = make_rule("performance_gate", 5000)
    assert isinstance(default, PerformanceGate)
    assert default.config == PerformanceGateConfig(ramp_steps=5000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "gate"}, "no curve 'gate'.*adaptive: performance_gate:STEPS"),
        ({"schedule": "performance_gate"}, "how long"),
        ({"schedule": "performance_gate:soon"}, "'soon' is not a number"),
        ({"schedule": "performance_gate:-1"}, "ramp_steps must be positive"),
        ({"unit": "steps"}, "env_steps or updates, got 'steps'"),
        ({"weight_in": "log"}, "raw or effective, got 'log'"),
        ({"mode": "sum"}, "loss, target, matched, projected, got 'sum'"),
        ({"overrides": {"policy": "jump"}}, "no component 'policy'; there are actor, critic, value, temperature"),
        ({"overrides": {"actor": "liner"}}, "no curve 'liner'"),
        ({"schedule": PerformanceGate(members=2), "members": 3}, "2 members, the controller 3"),
        ({"offline_share": 2.0}, "offline share"),
    ],
)
def test_setting_that_cannot_be_is_refused_when_the_controller_is_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SmoothingController(**cast(Any, settings))


def test_users_curve_that_leaves_the_unit_interval_is_named() -> None:
    with pytest.raises(ValueError, match="weight of actor"):
        started(lambda _: 1.5).mix()
