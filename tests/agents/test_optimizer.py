"""Adam for a population against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from o2o_smooth.agents.device_adam import following
from o2o_smooth.agents.optimizer import MemberAdam

SHAPES = ((3, 2, 4, 5), (3, 1, 5), (3,))


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.empty(s, dtype=torch.float64).normal_(generator=generator)) for s in SHAPES]


def _fill(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = torch.empty_like(p).normal_(generator=generator)


def test_all_members_together_are_torchs_adam() -> None:
    ours, theirs = _parameters(), _parameters()
    adam, reference = MemberAdam({"actor": ours}, {"actor": 0.01}), torch.optim.Adam(theirs, lr=0.01)
    for step in range(20):
        _fill(ours, step)
        _fill(theirs, step)
        adam.step({"actor": np.ones(3, bool)})
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_each_member_steps_as_it_would_alone() -> None:
    """Whatever the others do: the reference steps one member's slice with torch's Adam only when its mask is set."""
    rng = np.random.default_rng(1)
    masks = rng.random((30, 3)) < 0.6
    ours = _parameters()
    adam = MemberAdam({"actor": ours}, {"actor": 0.01})
    alone = [[nn.Parameter(p.detach()[m : m + 1].clone()) for p in _parameters()] for m in range(3)]
    references = [torch.optim.Adam(ps, lr=0.01) for ps in alone]
    for step, mask in enumerate(masks):
        _fill(ours, step)
        for m in range(3):
            if mask[m]:
                for mine, p in zip(alone[m], ours, strict=True):
                    assert p.grad is not None
                    mine.grad = p.grad[m : m + 1].clone()
                references[m].step()
        adam.step({"actor": mask})
    assert adam.steps["actor"].tolist() == masks.sum(0).tolist()
    for m in range(3):
        for mine, p in zip(alone[m], ours, strict=True):
            torch.testing.assert_close(p[m : m + 1], mine, rtol=1e-10, atol=1e-13)


def test_state_round_trip_and_what_is_missing_or_does_not_fit() -> None:
    ours, again = _parameters(), _parameters()
    adam, copy = (MemberAdam({"actor": ps}, {"actor": 0.01}) for ps in (ours, again))
    _fill(ours, 0)
    adam.step({"actor": np.array([True, False, True])})
    state = {k: v.clone() for k, v in adam.state_tensors().items()}
    copy.load_state_tensors(state)
    assert copy.steps["actor"].tolist() == [1, 0, 1]
    assert all(torch.equal(a, b) for a, b in zip(copy.first["actor"], adam.first["actor"], strict=True))
    with pytest.raises(ValueError, match="state of actor is missing"):
        copy.load_state_tensors({})
    copy.load_state_tensors({}, fresh=["actor"])
    with pytest.raises(ValueError, match="does not fit"):
        copy.load_state_tensors({**state, "actor.first.0": torch.zeros(2)})


# The device's step


@pytest.mark.parametrize("rates", [0.01, [0.01, 0.003, 0.02]])
@pytest.mark.parametrize("tau", [0.1, [0.1, 0.5, 0.02]])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_the_step_on_the_device_is_the_plain_one(rates: Any, tau: Any, share: float) -> None:
    """Members together and apart, components that pause, targets that move for some."""
    rng = np.random.default_rng(3)
    rates, tau = (np.array(x) if isinstance(x, list) else x for x in (rates, tau))
    made = []
    for _ in range(2):
        parameters = {"actor": _parameters(), "critic": _parameters()[:2]}
        targets = {"critic": [p.detach() * 0.5 for p in parameters["critic"]]}
        made.append((parameters, targets, MemberAdam(parameters, dict.fromkeys(parameters, rates), targets)))
    (plain_parameters, plain_targets, plain), (parameters, targets, ours) = made
    apart = 0
    for step in range(25):
        active = {name: rng.random(3) <= share for name in parameters if step % 5 < 3 or name == "actor"}
        moving = rng.random(3) <= share
        for mine in (plain_parameters, parameters):
            for name in mine:
                _fill(mine[name], step)
        plain.step(active, moving=moving, tau=tau)
        device = ours.on_device
        device.upload()
        together = frozenset(name for name, mask in active.items() if name in device.level() and mask.all())
        apart += len(active) - len(together)
        device.step(
            {name: [p.grad for p in parameters[name] if p.grad is not None] for name in active},
            {name: torch.from_numpy(mask.astype(np.float32)) for name, mask in active.items()},
            together,
            following(moving),
            torch.from_numpy(moving.astype(np.float32)),
            tau,
        )
        device.count(active)
    assert (apart == 0) == (share == 1.0 and isinstance(rates, float))
    expected, found = plain.state_tensors(), ours.state_tensors()
    assert found["actor.steps"].dtype == torch.int64
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)
    for name in parameters:
        torch.testing.assert_close(parameters[name], plain_parameters[name], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(targets["critic"], plain_targets["critic"], rtol=1e-10, atol=1e-13)


def test_loaded_step_counts_reach_the_device() -> None:
    def stepped(adam: MemberAdam, parameters: list[nn.Parameter], step: int) -> None:
        _fill(parameters, step)
        adam.on_device.upload()
        gradients = {"actor": [p.grad for p in parameters if p.grad is not None]}
        adam.on_device.step(gradients, {}, frozenset({"actor"}))
        adam.on_device.count({"actor": np.ones(3, bool)})

    first, second = _parameters(), _parameters()
    a, b = MemberAdam({"actor": first}, {"actor": 0.01}), MemberAdam({"actor": second}, {"actor": 0.01})
    for step in range(5):
        stepped(a, first, step)
    stepped(b, second, 99)
    b.load_state_tensors({name: value.clone() for name, value in a.state_tensors().items()})
    for mine, theirs in zip(second, first, strict=True):
        mine.data.copy_(theirs)
    stepped(a, first, 5)
    stepped(b, second, 5)
    for mine, theirs in zip(second, first, strict=True):
        assert torch.equal(mine, theirs)
    assert b.steps["actor"].tolist() == [6, 6, 6]


# At the switch


def test_a_reset_component_goes_on_as_a_fresh_one_and_the_others_as_they_were() -> None:
    def made() -> tuple[dict[str, list[nn.Parameter]], MemberAdam]:
        parameters = {"actor": _parameters(), "critic": _parameters()}
        return parameters, MemberAdam(parameters, {"actor": 0.01, "critic": 0.02})

    def step(parameters: dict[str, list[nn.Parameter]], adam: MemberAdam, t: int) -> None:
        for ps in parameters.values():
            _fill(ps, t)
        adam.step(dict.fromkeys(parameters, np.ones(3, bool)))

    (parameters, adam), (untouched, other) = made(), made()
    for t in range(4):
        step(parameters, adam, t)
        step(untouched, other, t)
    adam.reset(["actor"])
    assert adam.steps["actor"].tolist() == [0, 0, 0]
    fresh = [nn.Parameter(p.detach().clone()) for p in parameters["actor"]]
    reference = torch.optim.Adam(fresh, lr=0.01)
    for t in range(4, 7):
        step(parameters, adam, t)
        step(untouched, other, t)
        _fill(fresh, t)
        reference.step()
    for mine, theirs in zip(parameters["actor"], fresh, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    for mine, theirs in zip(parameters["critic"], untouched["critic"], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["plain", "native"])
@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
def test_rates_that_change_between_steps_are_torchs(dtype: torch.dtype, device: bool) -> None:
    ours, theirs = ([nn.Parameter(p.detach().to(dtype)) for p in _parameters()] for _ in range(2))
    adam, reference = MemberAdam({"actor": ours}, {"actor": 0.0}), torch.optim.Adam(theirs)
    for step in range(8):
        rate = 0.01 * min(1.0, (step + 1) / 5)
        adam.set_rates({"actor": rate})
        reference.param_groups[0]["lr"] = rate
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.empty_like(p).normal_(generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        if device:
            adam.on_device.upload()
            adam.on_device.step({"actor": [p.grad for p in ours if p.grad is not None]}, {}, frozenset({"actor"}))
            adam.on_device.count({"actor": np.ones(3, bool)})
        else:
            adam.step({"actor": np.ones(3, bool)})
        reference.step()
    rtol, atol = (1e-12, 1e-14) if dtype == torch.float64 else (1e-4, 1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)
