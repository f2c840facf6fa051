"""One controller for members that follow schedules of their own: each part is what it would be alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.smoothing import (
    COMPONENTS,
    JointController,
    Linear,
    OfflineShare,
    PerformanceGate,
    PerformanceGateConfig,
    SmoothingController,
)


def _gate(members: int = 1) -> PerformanceGate:
    config = PerformanceGateConfig(ramp_steps=40, ramp_episodes=1, yardstick=4, window=1)
    return PerformanceGate(config, members=members)


def _parts() -> list[SmoothingController]:
    return [
        SmoothingController("jump"),
        SmoothingController(_gate(2), members=2),
        SmoothingController("linear", ramp_steps=50, overrides={"critic": "hold:20+linear:30"}, members=2),
        SmoothingController("linear:8", unit="updates"),
    ]


def _drive(controllers: list[SmoothingController], firsts: list[int]) -> None:
    """The same course of events for controllers of members that begin at `firsts`; returns lie on a curve."""
    for controller in controllers:
        controller.start()
    for t in range(6):
        for controller, first in zip(controllers, firsts, strict=True):
            for m in range(controller.members):
                first_ones = [10.0, 10.1, 9.9, 10.0] if t == 0 else []
                controller.observe_episodes(m, [*first_ones, 10.0 - 3.0 * (t % 3) * (first + m)])
            controller.advance(env_steps=10)
            controller.advance(updates=1)
            norms = (np.arange(6.0) + 1 + t, np.arange(6.0) * 2 + 1)
            own = slice(first, first + controller.members)
            controller.observe_gradients({"actor": (norms[0][own], norms[1][own])}, mixed_only=True)


def test_every_part_is_what_it_would_be_alone() -> None:
    joint, alone = JointController(_parts()), _parts()
    assert joint.members == 6
    assert not joint.weights()["actor"].any()
    assert joint.mix().offline_fraction == 1.0  # before the switch
    _drive([joint], [0])
    _drive(alone, [0, 1, 3, 5])
    for name in COMPONENTS:
        expected = np.concatenate([part.weights()[name] for part in alone])
        np.testing.assert_array_equal(joint.weights()[name], expected)
        assert len(set(expected.tolist())) > 2
    np.testing.assert_equal(joint.log(), [row for part in alone for row in part.log()])
    assert "gate/bar" in joint.log()[1]
    assert "gate/bar" not in joint.log()[0]
    assert [part.state_dict() for part in joint.parts] == [part.state_dict() for part in alone]
    assert alone[0].state_dict()["norms"] == {}  # out of its ramp: not told
    assert np.isnan(joint.effective_weights()["actor"][0])
    assert joint.mix().offline_fraction == 0.0


def test_state_goes_through_json_and_goes_on() -> None:
    joint = JointController(_parts())
    _drive([joint], [0])
    copy = JointController(_parts())
    copy.load_state_dict(json.loads(json.dumps(joint.state_dict())))
    for controller in (joint, copy):
        controller.observe_episodes(2, [50.0])
        controller.advance(env_steps=10)
        controller.advance(updates=1)
    for name in COMPONENTS:
        np.testing.assert_array_equal(copy.weights()[name], joint.weights()[name])
    np.testing.assert_equal(copy.log(), joint.log())
    with pytest.raises(ValueError, match="4 parts, this controller has 3"):
        JointController(_parts()[:3]).load_state_dict(joint.state_dict())
    with pytest.raises(ValueError, match="another kind of smoothing rule"):
        JointController(_parts()[::-1]).load_state_dict(joint.state_dict())


def test_a_component_is_pure_only_where_all_members_are() -> None:
    joint = JointController.per_member(["jump", "linear:10", "stay"])
    joint.start()
    kinds = []
    for steps in (0, 5, 20):
        joint.advance(env_steps=steps)
        kinds.append(joint.mix().kind("actor"))
    assert kinds == ["mixed", "mixed", "mixed"]
    ramps = JointController.per_member(["hold:5+linear:10", "linear:10"])
    ramps.start()
    seen = [ramps.mix().kind("actor")]
    for _ in range(4):
        ramps.advance(env_steps=5)
        seen.append(ramps.mix().kind("actor"))
    assert seen == ["offline", "mixed", "mixed", "online", "online"]


def test_schedules_per_member_take_lengths_and_overrides_of_their_own() -> None:
    joint = JointController.per_member(
        ["linear", Linear(40), _gate(), "linear"],
        ramp_steps=[20, None, None, 80],
        overrides=[None, {"critic": "jump"}, None, {"actor": "linear"}],
    )
    joint.start()
    joint.advance(env_steps=10)
    weights = joint.weights()
    assert weights["actor"].tolist() == [0.5, 0.25, 0.0, 0.125]
    assert weights["critic"].tolist() == [0.5, 1.0, 0.0, 0.125]
    assert weights["value"].tolist() == weights["critic"].tolist()


def test_losses_of_ones_own_blend_per_member() -> None:
    joint = JointController.per_member(["jump", "linear:10", "stay"])
    joint.start()
    joint.advance(env_steps=5)
    blended = joint.blend(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0]))
    assert blended.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ([{"mode": "target"}, {}], "share mode, got loss and target"),
        ([{"weight_in": "effective"}, {}], "share weight_in"),
        ([{"offline_share": 0.5}, {}], "offline share of their batches, got 0.5 and 0.0"),
        ([{"offline_share": OfflineShare(0.5, 0.0, Linear(n))} for n in (10, 20)], "got 0.5 to 0.0"),
        (
            [{"offline_share": OfflineShare(0.5, 0.0, Linear(10)), "unit": unit} for unit in ("env_steps", "updates")],
            r"counts \(unit\)",
        ),
    ],
)
def test_what_members_must_share_is_refused_in_words(settings: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        JointController([SmoothingController("jump", **s) for s in settings])


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="ramp_steps has 1 entries for 2 members"):
        JointController.per_member(["linear", "linear"], ramp_steps=[5])
    with pytest.raises(ValueError, match="at least one part"):
        JointController([])
    joint = JointController.per_member(["jump"])
    joint.start()
    with pytest.raises(ValueError, match="started already"):
        joint.start()
