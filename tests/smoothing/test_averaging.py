"""Averages of parameters against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from o2o_smooth.smoothing.averaging import EMA, SFA, between

SHAPES = ((2, 3, 4), (2, 1, 4), (2,))


def made(seed: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    rng = np.random.default_rng(seed)
    return [nn.Parameter(torch.as_tensor(rng.normal(size=shape)).to(dtype)) for shape in SHAPES]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0, -0.5, 1.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_point_of_the_line_is_exact_at_both_ends(share: float, dtype: torch.dtype) -> None:
    for a, b in zip(made(0, dtype), made(1, dtype), strict=True):
        found = between(a, b, share)
        expected = (1 - share) * a.detach().double() + share * b.detach().double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        if share in (0.0, 1.0):
            assert torch.equal(found, b if share else a)
        assert not found.requires_grad


def test_every_member_may_have_its_own_place_on_the_line() -> None:
    for a, b in zip(made(0), made(1), strict=True):
        found = between(a, b, [0.25, 1.0])
        torch.testing.assert_close(found[0], 0.75 * a[0].detach() + 0.25 * b[0].detach())
        assert torch.equal(found[1], b[1])


def test_sfa_goes_part_of_the_way_back_at_its_steps_alone() -> None:
    parameters = made(0)
    start = [p.detach().numpy().copy() for p in parameters]
    sfa = SFA(parameters, every=3, share=0.25, total=7)
    expected = [x.copy() for x in start]
    pulled = []
    for step in range(1, 8):
        for p, x in zip(parameters, expected, strict=True):
            p.data += step
            x += step
        assert sfa.due_in(step - 1) == {1: 3, 2: 2, 3: 1, 4: 3, 5: 2, 6: 1, 7: 1}[step]
        if sfa.after(step):
            pulled.append(step)
        if step in (3, 6, 7):  # every three, and at the end
            expected = [0.75 * x + 0.25 * s for x, s in zip(expected, start, strict=True)]
        for p, x in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-12)
    assert pulled == [3, 6, 7]
    assert not sfa.after(0)
    for mine, x in zip(sfa.start, start, strict=True):  # which is not carried along
        np.testing.assert_array_equal(mine.numpy(), x)


def test_the_running_mean_follows_and_takes_the_parameters_place_only_within() -> None:
    parameters = made(0)
    expected = [p.detach().numpy().copy() for p in parameters]
    ema = EMA(parameters, decay=0.9)
    for step in range(5):
        for i, p in enumerate(parameters):
            p.data += step
            expected[i] = 0.9 * expected[i] + 0.1 * p.detach().numpy()
        ema.update()
    raw = [(p.data_ptr(), p.detach().numpy().copy()) for p in parameters]
    with pytest.raises(KeyError), ema.applied():
        for p, x in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-12)
        raise KeyError
    for p, (pointer, values) in zip(parameters, raw, strict=True):
        assert p.data_ptr() == pointer
        np.testing.assert_array_equal(p.detach().numpy(), values)


@pytest.mark.parametrize("make", [lambda ps: SFA(ps, every=2, share=0.5, total=4), lambda ps: EMA(ps, decay=0.5)])
def test_state_goes_round_and_what_does_not_fit_is_refused(make: type[SFA | EMA]) -> None:
    kept, fresh = make(made(0)), make(made(1))  # type: ignore[call-arg]
    state = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    fresh.load_state_dict(state)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name])
    name = next(iter(state))
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        fresh.load_state_dict({**state, name: torch.zeros(7)})
    with pytest.raises(ValueError, match="is missing"):
        fresh.load_state_dict({})
