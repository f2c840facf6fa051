"""Each adaptive rule does what it says on constructed signals, in open and closed loop, and keeps its state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from o2o_smooth.smoothing import (
    ADAPTIVE_NAMES,
    SIGNALS,
    GradientAgreement,
    GradientAgreementConfig,
    JointController,
    KLGate,
    KLGateConfig,
    Linear,
    ReturnPD,
    ReturnPDConfig,
    RuleSettings,
    SmoothingController,
    TDGate,
    TDGateConfig,
    make_rule,
    rule_name,
)
from o2o_smooth.smoothing.signals import AdaptiveRule


def array(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(values, np.float64)


def pd(members: int = 1, **settings: Any) -> ReturnPD:
    return ReturnPD(ReturnPDConfig(**settings), members=members, random_return=-10.0, reference_return=90.0)


# return_pd


def test_return_pd_is_the_sources_rule() -> None:
    rule = pd()
    rule.advance(1)
    coefficient, mean = 0.4, None
    for raw, length in [(40.0, 1000), (20.0, 300), (55.0, 800), (-10.0, 50), (200.0, 1000), (0.0, 1000)]:
        value = (raw + 10) / 100
        mean = value if mean is None else mean
        coefficient += length * (-3e-5 * (1.05 - mean) + 1e-4 * max(0.0, mean - value))
        coefficient = min(max(coefficient, 0.0), 0.4)
        mean = 0.95 * mean + 0.05 * value
        rule.observe_episodes(0, [raw], lengths=[length])
        assert rule.weights()[0] == pytest.approx(1 - coefficient / 0.4, abs=1e-12)
        assert rule.signals()["pd/mean_return"][0] == pytest.approx(mean)


def test_return_pd_rises_far_from_the_target_and_falls_after_a_bad_episode() -> None:
    rule = pd()
    rule.advance(1)
    rule.observe_episodes(0, [40.0] * 10, lengths=[1000] * 10)
    before = rule.weights()[0]
    assert before == pytest.approx(10 * 1000 * 3e-5 * 0.55 / 0.4)
    rule.observe_episodes(0, [-10.0], lengths=[1000])  # 1e-4 * 0.5 against 3e-5 * 0.55
    assert rule.weights()[0] == pytest.approx(before - 1000 * (5e-5 - 3e-5 * 0.55) / 0.4)
    rule.observe_episodes(0, [40.0] * 100, lengths=[1000] * 100)
    assert rule.weights()[0] == 1.0


def test_return_pd_stands_while_the_clock_does() -> None:
    rule = pd()
    rule.observe_episodes(0, [20.0, 40.0], lengths=[1000, 1000])  # a warm-up
    assert rule.weights()[0] == 0.0
    assert rule.signals()["pd/mean_return"][0] == pytest.approx(0.95 * 0.3 + 0.05 * 0.5)
    rule.advance(1)
    rule.observe_episodes(0, [20.0], lengths=[1000])
    assert rule.weights()[0] > 0.0


def test_return_pd_needs_references_and_lengths() -> None:
    with pytest.raises(ValueError, match="the task has none"):
        ReturnPD(random_return=None, reference_return=None)
    with pytest.raises(ValueError, match="one length per return"):
        pd().observe_episodes(0, [1.0])
    with pytest.raises(ValueError, match="member 0 is nan"):
        pd().observe_episodes(0, [math.nan], lengths=[3])


# kl_gate


def test_kl_gate_advances_within_the_bound_and_pays_for_what_is_beyond_it() -> None:
    rule = KLGate(KLGateConfig(ramp_steps=1000, limit=0.5, retreat=2.0), members=4)
    rule.advance(100)
    assert not rule.weights().any()  # nothing is known yet
    rule.observe({"kl": np.zeros(4)})
    rule.advance(600)
    np.testing.assert_array_equal(rule.weights(), np.full(4, 0.5))
    rule.observe({"kl": array(0.5, 0.6, 0.75, 50.0)})  # at the bound; 20 %, 50 % and far beyond it
    rule.advance(700)
    np.testing.assert_allclose(rule.weights(), [0.6, 0.48, 0.45, 0.3], rtol=1e-12)
    assert rule.signals()["kl_gate/kl"].tolist() == [0.5, 0.6, 0.75, 50.0]


def test_kl_gate_holds_a_policy_at_the_bound() -> None:
    """Closed loop: the further w, the further the policy drifts, with a lag; the bound is where it settles."""
    rule = KLGate(KLGateConfig(ramp_steps=2000, limit=1.0, every=50))
    kl, seen = 0.0, []
    for t in range(0, 40_000, 50):
        kl += 0.05 * (4.0 * float(rule.weights()[0]) - kl)
        rule.observe({"kl": array(kl)})
        rule.advance(t + 50)
        seen.append(kl)
    assert max(seen) < 2.0  # it would be 4 without the gate
    assert np.mean(seen[-200:]) == pytest.approx(1.0, abs=0.05)
    assert rule.weights()[0] == pytest.approx(0.25, abs=0.03)


# td_gate


def test_td_gate_advances_within_the_factor_and_holds_beyond_it() -> None:
    rule = TDGate(TDGateConfig(ramp_steps=1000, factor=2.0), members=3)
    rule.observe({"td_online": array(1.9, 2.0, 2.1), "td_offline": array(1.0, 1.0, 1.0)})
    rule.advance(300)
    np.testing.assert_array_equal(rule.weights(), [0.3, 0.3, 0.0])
    rule.observe({"td_online": array(9.0, 9.0, 0.1), "td_offline": array(1.0, 4.5, 1.0)})
    rule.advance(400)
    np.testing.assert_array_equal(rule.weights(), [0.3, 0.4, 0.1])
    assert rule.signals()["td_gate/td_offline"].tolist() == [1.0, 4.5, 1.0]


def test_td_gate_lets_the_critics_go_ahead() -> None:
    """A critic that waited with the actor would see no online row, and its error there would never fall."""
    controller = SmoothingController("td_gate:1000")
    assert controller.overrides == {"critic": Linear(1000), "value": Linear(1000)}
    controller.start()
    error, actor, critic = 8.0, [], []
    for _ in range(300):
        if controller.due():
            controller.observe({"td_online": array(error), "td_offline": array(1.0)})
        controller.advance(env_steps=10)
        error *= 1 - 0.02 * float(controller.weights()["critic"][0])
        actor.append(controller.weights()["actor"][0])
        critic.append(controller.weights()["critic"][0])
    np.testing.assert_array_equal(critic, np.minimum(np.arange(1, 301) / 100, 1.0))
    opens = int(np.argmax(np.array(actor) > 0))
    assert 60 < opens < 200  # after the critic has learned
    assert actor[-1] == 1.0
    own = SmoothingController("td_gate:1000", overrides={"critic": "jump"})
    assert str(own.overrides["critic"]) == str(own.overrides["value"]) == "jump"


# gradient_agreement


@pytest.mark.parametrize(("cosine", "speed"), [(1.0, 1.0), (0.0, 0.5), (-1.0, 0.0), (0.2, 0.6), (-0.5, 0.25)])
def test_gradient_agreement_sets_the_speed(cosine: float, speed: float) -> None:
    rule = GradientAgreement(GradientAgreementConfig(ramp_steps=1000))
    rule.observe({"gradient_cosine": array(cosine)})
    rule.advance(400)
    assert rule.weights()[0] == pytest.approx(0.4 * speed)


def test_gradient_agreement_follows_a_running_mean() -> None:
    rule = GradientAgreement(GradientAgreementConfig(ramp_steps=1000, decay=0.75))
    mean = None
    for cosine in (0.8, -0.4, 0.1):
        rule.observe({"gradient_cosine": array(cosine)})
        mean = cosine if mean is None else 0.75 * mean + 0.25 * cosine
        assert rule.rate[0] == pytest.approx((1 + mean) / 2)
        assert rule.signals()["gradient_agreement/cosine"][0] == pytest.approx(mean)


def test_cosine_beyond_one_by_rounding_is_full_speed() -> None:
    rule = GradientAgreement(GradientAgreementConfig(ramp_steps=10))
    rule.observe({"gradient_cosine": array(1.0000002)})
    rule.advance(5)
    assert rule.weights()[0] == 0.5


# All of them


def feed(controller: SmoothingController, t: int, members: slice = slice(0, 4)) -> None:
    """What happens at step t to members of a population of four, from a fixed script."""
    rng = np.random.default_rng(t)
    everything = {name: rng.uniform(0.0, 2.0, 4) - (name == "gradient_cosine") for name in sorted(SIGNALS)}
    returns, lengths = rng.normal(30, 5 if t < 800 else 40, 4), rng.integers(20, 90, 4)
    for member, i in enumerate(range(4)[members]):
        controller.observe_episodes(member, [float(returns[i])], lengths=[int(lengths[i])])
    if due := controller.due():
        controller.observe({name: everything[name][members] for name in due})
    controller.advance(env_steps=20, updates=10)


def controller_of(name: str, members: int = 4, **settings: Any) -> SmoothingController:
    text = name if name == "return_pd" else f"{name}:900"
    rules = RuleSettings(pd=ReturnPDConfig(kp=1e-3, kd=1e-2), kl=KLGateConfig(every=90), td=TDGateConfig(every=110))
    return SmoothingController(
        text, members=members, random_return=0.0, reference_return=100.0, settings=rules, **settings
    )


@pytest.mark.parametrize("name", ADAPTIVE_NAMES)
@pytest.mark.parametrize("unit", ["env_steps", "updates"])
def test_state_goes_through_json_midway_and_goes_on_identically(name: str, unit: Any) -> None:
    for cut in (1, 17, 45):
        one, other = (controller_of(name, unit=unit) for _ in range(2))
        one.start()
        for t in range(cut):
            feed(one, 20 * t)
        state = json.loads(json.dumps(one.state_dict(), allow_nan=False))
        other.load_state_dict(state)
        path = []
        for t in range(cut, cut + 60):
            feed(one, 20 * t)
            feed(other, 20 * t)
            np.testing.assert_array_equal(one.weights()["actor"], other.weights()["actor"])
            np.testing.assert_equal(one.log(), other.log())
            path.append(one.weights()["actor"])
        assert one.state_dict() == other.state_dict()
        assert len(np.unique(path)) > 5  # it was not a comparison of constants


def test_member_of_a_joint_controller_is_what_it_would_be_alone() -> None:
    names = ("kl_gate", "performance_gate", "td_gate", "gradient_agreement")
    joint = JointController([controller_of(name, members=1) for name in names])
    alone = [controller_of(name, members=1) for name in names]
    assert joint.needs == {"kl", "td_online", "td_offline", "gradient_cosine"}
    for controller in (joint, *alone):
        controller.start()
    assert joint.due() == joint.needs
    asked, moved = [], []
    for t in range(0, 1600, 20):
        asked.append(joint.due())
        feed(joint, t)
        for i, controller in enumerate(alone):
            feed(controller, t, slice(i, i + 1))
        each = np.concatenate([controller.weights()["actor"] for controller in alone])
        np.testing.assert_array_equal(joint.weights()["actor"], each)
        moved.append(each)
    assert len(np.unique(np.array(moved), axis=1)[0]) == 4  # four ways of their own
    assert {"kl"} in asked  # each part at its own rhythm
    assert {"td_online", "td_offline"} in asked
    assert frozenset() in asked
    assert [part.state_dict() for part in joint.parts] == [controller.state_dict() for controller in alone]


def test_member_of_a_batched_rule_is_what_it_would_be_alone() -> None:
    for name in ADAPTIVE_NAMES:
        batched, alone = controller_of(name), [controller_of(name, members=1) for _ in range(4)]
        for controller in (batched, *alone):
            controller.start()
        for t in range(0, 1600, 20):
            feed(batched, t)
            for i, controller in enumerate(alone):
                feed(controller, t, slice(i, i + 1))
            each = np.concatenate([controller.weights()["actor"] for controller in alone])
            np.testing.assert_array_equal(batched.weights()["actor"], each)


@pytest.mark.parametrize("unit", ["env_steps", "updates"])
def test_measurements_are_due_at_a_rhythm_of_steps(unit: Any) -> None:
    controller = SmoothingController("kl_gate:1000", unit=unit, settings=RuleSettings(kl=KLGateConfig(every=50)))
    assert not controller.due()  # before the switch
    controller.start()
    seen = []
    for _ in range(40):
        if controller.due():
            seen.append(controller.t)
            controller.observe({"kl": array(0.0)})
            assert not controller.due()
        controller.advance(env_steps=8, updates=4)
    step = 8 if unit == "env_steps" else 4
    times = range(0, 40 * step, step)
    expected = [t for i, t in enumerate(times) if i == 0 or t // 50 > times[i - 1] // 50]
    assert seen == expected


def test_measurement_that_could_not_be_made_stays_due() -> None:
    controller = SmoothingController("kl_gate:1000")
    controller.start()
    controller.advance(env_steps=10)
    assert controller.due() == {"kl"}
    controller.advance(env_steps=900)
    assert controller.due() == {"kl"}


def test_curves_need_nothing() -> None:
    controller = SmoothingController("linear:100")
    controller.start()
    assert controller.needs == controller.due() == frozenset()
    controller.observe({"kl": array(math.nan)})  # is not even looked at
    assert controller.weights()["actor"][0] == 0.0


MEASURED: dict[str, Callable[[], AdaptiveRule]] = {
    "kl_gate": KLGate,
    "td_gate": TDGate,
    "gradient_agreement": GradientAgreement,
}


@pytest.mark.parametrize("name", list(MEASURED))
def test_missing_misshapen_and_infinite_signals_are_refused(name: str) -> None:
    rule = MEASURED[name]()
    good = {signal: array(0.5) for signal in rule.needs}
    for signal in rule.needs:
        with pytest.raises(ValueError, match=f"{name} needs {signal}"):
            rule.observe({k: v for k, v in good.items() if k != signal})
        with pytest.raises(ValueError, match=rf"{name}: {signal} has shape \(2,\)"):
            rule.observe(good | {signal: array(0.5, 0.5)})
        for bad in (math.nan, math.inf):
            with pytest.raises(ValueError, match=f"{name}: {signal} of member 0 is {bad}; the training has diverged"):
                rule.observe(good | {signal: array(bad)})
    rule.advance(1000)
    assert rule.weights()[0] == 0.0


@pytest.mark.parametrize("name", ADAPTIVE_NAMES)
def test_text_forms(name: str) -> None:
    assert rule_name(f"{name}:700") == rule_name(name) == name
    if name == "return_pd":
        assert isinstance(make_rule(name, random_return=0.0, reference_return=1.0), ReturnPD)
        with pytest.raises(ValueError, match="return_pd takes no length"):
            make_rule("return_pd:5000", random_return=0.0, reference_return=1.0)
        with pytest.raises(ValueError, match="ref_random and ref_expert"):
            make_rule(name)
        return
    for rule in (make_rule(f"{name}:700", 50, members=2), make_rule(name, 700, members=2)):
        assert getattr(rule, "ramp_steps", None) == 700
        assert rule.members == 2  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=f"how long. write {name}:STEPS"):
        make_rule(name)
    with pytest.raises(ValueError, match="'soon' is not a number"):
        make_rule(f"{name}:soon")
    with pytest.raises(ValueError, match=f"{name}: ramp_steps must be positive"):
        make_rule(f"{name}:0")


def test_unknown_rule_is_told_what_there_is() -> None:
    assert rule_name("linear:5") is None
    with pytest.raises(ValueError, match="kl_gate:STEPS, td_gate:STEPS, gradient_agreement:STEPS"):
        make_rule("klgate:5")


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        *[(ReturnPDConfig, name, value) for name, value in (("kp", -1.0), ("kd", math.inf), ("start", 0.0))],
        (ReturnPDConfig, "target", math.nan),
        (ReturnPDConfig, "decay", 1.0),
        *[(KLGateConfig, name, 0.0) for name in ("ramp_steps", "limit", "every")],
        (KLGateConfig, "retreat", -1.0),
        *[(TDGateConfig, name, -1.0) for name in ("ramp_steps", "factor", "every")],
        *[(GradientAgreementConfig, name, math.nan) for name in ("ramp_steps", "every", "decay")],
    ],
)
def test_setting_out_of_range_is_named(config: type, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        config(**{name: value})


def test_state_of_another_rule_or_population_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_gate: the state was taken from td_gate"):
        KLGate().load_state_dict(TDGate().state_dict())
    with pytest.raises(ValueError, match="state of 2 members, expected 3"):
        KLGate(members=3).load_state_dict(KLGate(members=2).state_dict())
