"""The soft maximum over tried actions by the native kernel against plain torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from o2o_smooth.agents.networks import MLP
from o2o_smooth.agents.pushed import soft_maximum
from o2o_smooth.kernels.cpu import HalfWay, StackedNet, Workspace
from tests.agents.stacks import needs_kernels, plain, rounded_stack, stack

TRIED = [  # members, critics, states, actions, layer norm, hidden layers
    (1, 2, 256, 30, False, (64, 64)),
    (3, 2, 50, 6, True, (40, 24)),
    (2, 1, 9, 300, True, (16,)),  # a state has more actions than a chunk has rows
    (1, 3, 7, 3, False, (24, 16, 24)),
    (1, 1, 65, 9, False, (600, 80)),  # sums longer than the half products pack at a time
]


def _tried(net: MLP, states: int, actions: int, *, bounded: bool) -> list[Tensor | None]:
    """Observations, actions, log densities and bounds."""
    generator = torch.Generator().manual_seed(5)
    joined = torch.empty(net.members, states, 23).normal_(generator=generator)
    action = torch.empty(net.members, actions, states, 6).uniform_(-1, 1, generator=generator)
    log_density = torch.empty(net.members, actions, states).normal_(generator=generator)
    bound = torch.empty(net.members, states).normal_(generator=generator) * 0.1 if bounded else None
    return [joined[..., :17], action, log_density, bound]  # rows of observations lie apart


def _soft_maximum(net: MLP, given: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Value and gradients of the parameters."""
    net = copy.deepcopy(net).to(dtype)
    obs, action, log_density, bound = (x if x is None else x.to(dtype) for x in given)
    assert obs is not None and action is not None and log_density is not None
    above = torch.empty(net.members, net.copies).normal_(generator=torch.Generator().manual_seed(6)).to(dtype)
    y = soft_maximum(net, obs, action, log_density, bound, action.shape[1] // 3)
    return [y.detach(), *torch.autograd.grad((y * above).sum(), list(net.parameters()))]


@needs_kernels
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("shape", TRIED)
def test_a_soft_maximum_has_the_value_and_gradients_of_plain_torch_in_float64(
    shape: tuple[Any, ...], bounded: bool, threads: int
) -> None:
    members, copies, states, actions, layer_norm, hidden = shape
    net = stack(members, copies, layer_norm, hidden, 1)
    given = _tried(net, states, actions, bounded=bounded)
    for a, b in zip(*(_soft_maximum(net, given, dtype) for dtype in (torch.float32, torch.float64)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-6 * float(b.abs().max()))


@pytest.mark.parametrize("shape", TRIED)
def test_a_soft_maximum_in_half_precision_is_that_of_all_rows_at_once(way: HalfWay, shape: tuple[Any, ...]) -> None:
    members, copies, states, actions, layer_norm, hidden = shape
    net = stack(members, copies, layer_norm, hidden, 1)
    net.precision = "bf16"
    given = _tried(net, states, actions, bounded=False)
    ours = _soft_maximum(net, given, torch.float32)
    obs, action, log_density, _ = given
    assert obs is not None and action is not None and log_density is not None
    above = torch.empty(members, copies).normal_(generator=torch.Generator().manual_seed(6))
    wide = torch.cat([obs.unsqueeze(1).expand(-1, actions, -1, -1), action], -1).double().flatten(1, 2)
    exact = copy.deepcopy(net).double()
    q = rounded_stack(exact, wide).view(members, copies, actions, states)
    y = torch.logsumexp(q - log_density[:, None], 2).mean(-1)
    theirs = [y.detach(), *torch.autograd.grad((y * above).sum(), list(exact.parameters()))]
    for a, b in zip(ours, theirs, strict=True):
        # Rounded before the gradient from above multiplies them, not after.
        assert float((a.double() - b).norm()) < 4e-3 * float(b.norm()), tuple(b.shape)
    single = copy.deepcopy(net)
    single.precision = "fp32"
    assert not torch.equal(_soft_maximum(single, given, torch.float32)[1], ours[1])


@needs_kernels
def test_a_soft_maximum_adds_to_what_an_update_has_deposited_and_needs_no_second_network() -> None:
    net = stack(2, 2, True, (24, 16), 1)
    given = _tried(net, 40, 6, bounded=True)
    obs, action, log_density, bound = given
    assert obs is not None and action is not None and log_density is not None

    def loss(net: MLP) -> Tensor:
        q: Tensor = net(torch.cat([obs, action[:, 0]], -1))
        return q.square().mean() + (3.0 * soft_maximum(net, obs, action, log_density, bound, 2)).sum()

    apart = torch.autograd.grad(loss(net), list(net.parameters()))
    for _ in range(2):  # the second time in memory that the first one has left
        for p in net.parameters():
            p.grad = None
        net.depositing = True
        loss(net).backward()  # type: ignore[no-untyped-call]
        net.depositing = False
        by_part = [p for part in net.parts for p in part]
        known = {id(p): g for p, g in zip(net.parameters(), apart, strict=True)}
        for p in by_part:
            assert p.grad is not None
            torch.testing.assert_close(p.grad, known[id(p)], rtol=1e-5, atol=1e-6)


@needs_kernels
def test_a_soft_maximum_shows_a_value_that_is_no_number_and_halves_a_tie() -> None:
    net = stack(1, 1, False, (8,), 1)
    given = _tried(net, 5, 6, bounded=True)
    obs, action, log_density, bound = given
    assert obs is not None and action is not None and log_density is not None and bound is not None
    for k, x in enumerate((action, log_density, bound)):
        broken = [obs, action.clone(), log_density.clone(), bound.clone()]
        (broken[k + 1] if x is not bound else broken[3]).view(-1)[-1] = torch.nan
        value, *gradients = _soft_maximum(net, broken, torch.float32)
        assert torch.isnan(value).all()
        assert torch.isnan(gradients[0]).any()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.biases[-1].fill_(0.25)
    bound.fill_(0.25)  # what every action is worth
    for a, b in zip(*(_soft_maximum(net, given, dtype) for dtype in (torch.float32, torch.float64)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


@needs_kernels
def test_a_soft_maximum_of_many_actions_takes_the_memory_of_few() -> None:
    """Not of the order of rows times features."""
    net = stack(1, 2, False, (256, 256), 1)
    sizes = []
    for actions in (30, 240):
        taken: list[int] = []
        given = _tried(net, 256, actions, bounded=False)
        with Workspace.kept_by(lambda memory, taken=taken: taken.append(memory.numel()), {}):  # type: ignore[misc]
            _soft_maximum(net, given, torch.float32)
        sizes.append(sum(taken))
    assert sizes[1] <= sizes[0] < 256 * 30 * 2 * 512


@needs_kernels
@pytest.mark.parametrize("form", ["turned", "one for all", "overlapping", "a single row"])
def test_a_soft_maximum_reads_rows_and_actions_wherever_they_lie(form: str) -> None:
    rows = 1 if form == "a single row" else 9
    net = stack(2, 2, False, (16, 8), 1)
    given = _tried(net, rows, 5, bounded=True)
    obs, action, log_density, bound = given
    assert obs is not None and action is not None and log_density is not None and bound is not None
    if form in ("turned", "a single row"):
        obs = obs.mT.contiguous().mT
    elif form == "one for all":
        obs = obs[:, :1].expand(-1, rows, -1)
    else:
        obs = torch.as_strided(obs.contiguous(), (2, rows, 17), (100, 3, 1))
    action, log_density = action.transpose(1, 2).contiguous().transpose(1, 2), log_density.mT.contiguous().mT
    bound = bound[:, :1].expand(-1, rows)
    ours, theirs = (_soft_maximum(net, [obs, action, log_density, bound], d) for d in (torch.float32, torch.float64))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-6 * float(b.abs().max()))
    wide = torch.cat([obs, obs[..., :6]], -1) if form != "one for all" else obs[:, :1].repeat(1, 1, 2)[..., :23]
    turned = wide.mT.contiguous().mT if form != "one for all" else wide.expand(-1, rows, -1)
    torch.testing.assert_close(net(turned).double(), copy.deepcopy(net).double()(turned.double()), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_gradients_of_a_soft_maximum_go_where_torch_would_have_them() -> None:
    net = stack(2, 2, False, (16, 8), 1)
    given = _tried(net, 9, 6, bounded=True)
    obs, action, log_density, bound = given
    assert obs is not None and action is not None and log_density is not None
    obs, action = obs.clone().requires_grad_(), action.clone().requires_grad_()
    parameters = list(net.parameters())

    fixed = {"obs": obs.detach(), "action": action.detach()}

    def value(**moved: Tensor) -> Tensor:
        given = fixed | moved
        return soft_maximum(net, given["obs"], given["action"], log_density, bound, 2)

    with plain():
        wanted = torch.autograd.grad(value(obs=obs, action=action).sum(), [obs, action, *parameters])
    for name, x, expected in (("obs", obs, wanted[0]), ("action", action, wanted[1])):  # not for the kernel
        found = torch.autograd.grad(value(**{name: x}).sum(), [x, *parameters])
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
    for above in (torch.ones(()).expand(2, 2), torch.ones(2, 4)[:, ::2]):
        y = value()
        for keep in (True, False):  # twice
            found = torch.autograd.grad(y, parameters, above, retain_graph=keep)
            for a, b in zip(found, wanted[2:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    net.depositing = True
    y = value()
    net.depositing = False  # what was begun as a deposit is one
    y.sum().backward()  # type: ignore[no-untyped-call]
    for p, b in zip(parameters, wanted[2:], strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, b, rtol=1e-4, atol=1e-6)
    parameters[0].requires_grad_(False)
    found = torch.autograd.grad(value().sum(), parameters[1:])
    for a, b in zip(found, wanted[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    again = torch.autograd.grad(value().sum(), parameters[1:], create_graph=True)[0].sum()
    parameters[0].requires_grad_(True)
    assert again.requires_grad  # that one was torch's own
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(value().square().sum(), parameters, create_graph=True)[0].sum().backward()  # type: ignore[no-untyped-call]


@needs_kernels
@pytest.mark.parametrize("wrong", ["members", "rows", "features", "bound", "density", "float64", "two values"])
def test_what_does_not_fit_a_soft_maximum_is_an_error_as_in_torch(wrong: str) -> None:
    net = stack(2, 2, False, (16, 8), 2 if wrong == "two values" else 1)
    given = _tried(net, 9, 6, bounded=True)
    obs, action, log_density, bound = given
    assert obs is not None and action is not None and log_density is not None and bound is not None
    if wrong == "float64":
        net = net.double()
    changed = {
        "members": (obs[:1], action, log_density, bound),
        "rows": (obs[:, :5], action, log_density, bound),
        "features": (obs[..., :12], action, log_density, bound),
        "bound": (obs, action, log_density, bound[:, :4]),
        "density": (obs, action, log_density[:, :, :4], bound),
    }
    with pytest.raises((RuntimeError, ValueError)):
        soft_maximum(net, *changed.get(wrong, (obs, action, log_density, bound)), 2)


@needs_kernels
def test_a_soft_maximum_broadcasts_as_torch_does_and_bears_no_rows() -> None:
    net = stack(2, 2, False, (16, 8), 1)
    obs, action, log_density, bound = _tried(net, 9, 6, bounded=True)
    assert obs is not None and action is not None and log_density is not None and bound is not None
    for density, low, bounded in (
        (log_density[:, :, :1], bound, 2),
        (log_density, bound[:, :1], 2),
        (log_density, bound, -2),
    ):
        found = soft_maximum(net, obs, action, density, low, bounded)
        with plain():
            torch.testing.assert_close(found, soft_maximum(net, obs, action, density, low, bounded))
    # As torch has it: of no rows there is no mean, and somebody has to act.
    empty = soft_maximum(net, obs[:, :0], action[:, :, :0], log_density[:, :, :0])
    assert empty.isnan().all()
    for gradient in torch.autograd.grad(empty.nan_to_num().sum(), list(net.parameters())):
        assert not gradient.any()
    with pytest.raises(RuntimeError, match="0 elements"):
        soft_maximum(net, obs, action[:, :0], log_density[:, :0])


@needs_kernels
@pytest.mark.parametrize("members", [1, 3, 9, 31])
@pytest.mark.parametrize("lanes", [1, 2, 7, 64, 96])
def test_shares_of_a_soft_maximum_keep_all_threads_and_stay_few(members: int, lanes: int) -> None:
    net = StackedNet(members, 2, (23, 64, 64, 1), layer_norm=False)
    view = net._view(256, 2, False)[0]
    parts, gradient, _ = net._shares(view, 256, 30, 6, lanes)
    one = net._shares(view, 256, 30, 6, 1)
    assert one[0] == 1 and gradient == parts * one[1]
    units = 2 * members * parts
    assert parts == 1 or units < 4 * lanes + 2 * members
    turns = -(-units // lanes)
    # Of the threads' time; where there are four shares a thread, whoever is done takes the next. 32 chunks at most.
    assert units / (turns * lanes) >= 0.9 or units >= 4 * lanes or parts == 32


@needs_kernels
def test_the_room_of_a_soft_maximum_is_for_the_threads_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread of the program may change their number meanwhile."""
    asked: list[int] = []

    def more_each_time() -> int:
        asked.append(1)
        return len(asked)

    net = stack(1, 2, False, (64, 64), 1)
    given = _tried(net, 256, 30, bounded=False)
    wanted = _soft_maximum(net, given, torch.float64)
    monkeypatch.setattr("o2o_smooth.kernels.cpu.threads", more_each_time)
    found = _soft_maximum(net, given, torch.float32)
    assert len(asked) == 2  # once forward, once backward
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=1e-5)
