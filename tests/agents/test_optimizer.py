"""Adam for a population against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

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
