"""Anchors against float64 written from their formulas, and their gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.fisher import component_fisher
from o2o_smooth.agents.storage import take_members
from o2o_smooth.smoothing.anchors import Anchors, Decay, gaussian_kl
from o2o_smooth.smoothing.objective import Mix
from tests.agents import reference
from tests.agents.helpers import make_agent, three_rows

EDGE = 0.02


def moved(agent: Agent, seed: int = 5) -> None:
    """Move all networks away from where they are."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in agent.networks.parameters():
        parameter.data += 0.1 * torch.empty_like(parameter).normal_(generator=rng)


def test_decay_never_falls_below_its_floor() -> None:
    coefficient = Decay(2.0, 0.5, 0.3)
    assert [coefficient(t) for t in range(5)] == [2.0, 1.0, 0.5, 0.3, 0.3]
    assert [Decay(2.0)(t) for t in (0, 10**9)] == [2.0, 2.0]
    assert (Decay().on, Decay(1.0).on, Decay(0.0, 1.0, 0.1).on) == (False, True, True)


def test_kl_of_gaussians_is_the_closed_form_and_its_integral() -> None:
    rng = np.random.default_rng(0)
    mean0, log_std0, mean, log_std = (torch.as_tensor(rng.normal(size=(1, 1, 1))) for _ in range(4))
    found = gaussian_kl(mean0, log_std0, mean, log_std).item()
    grid = np.linspace(-60, 60, 400_001)

    def log_density(x: Any, m: Tensor, s: Tensor) -> Any:
        return -0.5 * ((x - m.item()) / math.exp(s.item())) ** 2 - s.item() - 0.5 * math.log(2 * math.pi)

    p0 = log_density(grid, mean0, log_std0)
    integral = float(np.sum(np.exp(p0) * (p0 - log_density(grid, mean, log_std))) * (grid[1] - grid[0]))
    assert found == pytest.approx(integral, rel=1e-6)
    two = gaussian_kl(*(torch.cat([x, x], -1) for x in (mean0, log_std0, mean, log_std)))
    assert two.item() == pytest.approx(2 * found)  # a sum over dimensions
    assert gaussian_kl(mean, log_std, mean, log_std).item() == pytest.approx(0.0, abs=1e-12)


# What each adds to the gradients


def by_hand(kind: str, agent: Agent, p0: reference.Params, p: reference.Params, m: int) -> float:
    """An anchor's value for one member, with loops over rows; its coefficient is 1."""
    losses = []
    for row in reference.rows(three_rows(), m):
        if not agent.networks.actor.stochastic:
            now, then = (np.tanh(reference.mlp(q, "actor.net", m, 0, row["obs"])) for q in (p, p0))
            losses.append(np.mean((now - (then if kind == "kl" else row["action"])) ** 2))
            continue
        (mean0, std0), (mean, std) = (reference.gaussian(q, m, row["obs"]) for q in (p0, p))
        if kind == "kl":
            terms = np.log(std / std0) + (std0**2 + (mean0 - mean) ** 2) / (2 * std**2) - 0.5
            losses.append(terms.sum())
        else:
            u = np.arctanh(np.clip(row["action"], -(1 - EDGE), 1 - EDGE))
            losses.append(-reference.log_density(mean, std, u))
    return float(np.mean(losses))


def pulled(anchors: Anchors, t: int = 0, moving: tuple[str, ...] = ("actor", "critic", "value")) -> dict[str, Tensor]:
    rows = three_rows()
    return anchors.pull(t, moving, online_obs=rows.obs, offline_obs=rows.obs, offline_action=rows.action)


@pytest.mark.parametrize("kind", ["kl", "bc"])
@pytest.mark.parametrize("name", ["iql", "td3_bc"])
def test_policy_anchors_have_the_value_and_gradient_of_the_formula(kind: str, name: str) -> None:
    agent = make_agent(name)
    coefficient = Decay(3.0, 0.5, 0.1)
    anchors = Anchors(agent.networks, edge=EDGE, **{kind: coefficient})  # type: ignore[arg-type]
    start = reference.parameters(agent)
    moved(agent)
    info = pulled(anchors, t=2)
    live = reference.parameters(agent)
    values = info[f"actor/anchor_{kind}"].mean(-1)
    assert info[f"actor/anchor_{kind}_coefficient"].tolist() == [0.75, 0.75]
    rng = np.random.default_rng(2)
    for m in range(2):
        assert values[m].item() == pytest.approx(by_hand(kind, agent, start, live, m), rel=1e-9)
        for key, parameter in agent.networks.actor.named_parameters():
            assert parameter.grad is not None
            full = f"actor.{key}"
            for _ in range(3):
                at = (m, *(int(rng.integers(n)) for n in parameter.shape[1:]))
                sides = []
                for step in (1e-5, -1e-5):
                    nudged = {**live, full: live[full].copy()}
                    nudged[full][at] += step
                    sides.append(by_hand(kind, agent, start, nudged, m))
                slope = 0.75 * (sides[0] - sides[1]) / 2e-5
                assert parameter.grad[at].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), (full, at)
    others = [p for n, p in agent.networks.named_parameters() if not n.startswith("actor.")]
    assert all(p.grad is None for p in others)


def test_kl_is_zero_at_the_switch_and_bc_is_not() -> None:
    agent = make_agent("iql")
    info = pulled(Anchors(agent.networks, kl=Decay(1.0), bc=Decay(1.0)))
    assert info["actor/anchor_kl"].abs().max() < 1e-12
    assert info["actor/anchor_bc"].abs().min() > 0


@pytest.mark.parametrize("parts", ["actor", "critic", "all"])
def test_l2_and_ewc_add_exactly_their_derivative_to_what_is_there(parts: str) -> None:
    agent = make_agent("iql", critic_layer_norm=True)
    rows = three_rows()
    anchors = Anchors(agent.networks, l2=0.3, ewc=0.7, parts=parts)
    anchors.fisher = component_fisher(agent.networks, anchors.held, rows.obs, rows.action)
    components = {"actor": ["actor"], "critic": ["critic", "value"], "all": ["actor", "critic", "value"]}[parts]
    parameters = agent.networks.component_parameters()
    start = {name: [p.detach().clone() for p in ps] for name, ps in parameters.items()}
    moved(agent)
    for ps in parameters.values():
        for p in ps:
            p.grad = torch.full_like(p, 0.5)
    info = pulled(anchors)
    for name, ps in parameters.items():
        squares = np.zeros(2)
        weighted = np.zeros(2)
        for i, p in enumerate(ps):
            away = (p.detach() - start[name][i]).numpy()
            expected = np.full(p.shape, 0.5)
            if name in components:
                fisher = anchors.fisher[name][i].numpy()
                assert fisher.shape == p.shape
                expected += 0.3 * 2 * away + 0.7 * fisher * away
                squares += (away**2).reshape(2, -1).sum(1)
                weighted += (fisher * away**2).reshape(2, -1).sum(1)
            assert p.grad is not None
            np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-12, atol=1e-14)
        if name in components:
            np.testing.assert_allclose(info[f"{name}/anchor_l2"], 0.3 * squares, rtol=1e-12)
            np.testing.assert_allclose(info[f"{name}/anchor_ewc"], 0.35 * weighted, rtol=1e-12)
        else:
            assert f"{name}/anchor_l2" not in info


def test_a_component_that_does_not_move_is_left_alone() -> None:
    agent = make_agent("iql")
    anchors = Anchors(agent.networks, kl=Decay(1.0), bc=Decay(1.0), l2=1.0, parts="all")
    moved(agent)
    info = pulled(anchors, moving=("critic",))
    assert set(info) == {"critic/anchor_l2"}
    assert all(p.grad is None for p in agent.networks.actor.parameters())
    with pytest.raises(RuntimeError, match="Fisher information"):
        pulled(Anchors(agent.networks, ewc=1.0))


# Members and state


def test_a_member_is_anchored_as_it_would_be_alone() -> None:
    both = make_agent("iql")
    alone = take_members(both, [1])
    gradients = []
    for agent, members in ((both, slice(0, 2)), (alone, slice(1, 2))):
        rows = three_rows()
        rows = rows._replace(**{n: getattr(rows, n)[members] for n in rows._fields})
        anchors = Anchors(agent.networks, kl=Decay(1.0), bc=Decay(0.5), ewc=2.0, l2=0.1, parts="all")
        anchors.fisher = component_fisher(agent.networks, anchors.held, rows.obs, rows.action)
        agent.update(rows, mix=Mix.uniform(1.0, agent.members))
        agent.optimizer.zero_grad()
        anchors.pull(
            1, {"actor", "critic", "value"}, online_obs=rows.obs, offline_obs=rows.obs, offline_action=rows.action
        )
        gradients.append([p.grad for ps in agent.networks.component_parameters().values() for p in ps])
    found = 0
    for x, y in zip(*gradients, strict=True):
        if x is not None and y is not None:
            torch.testing.assert_close(x[1:], y, rtol=1e-10, atol=1e-13)
            found += 1
    assert found > 12


def test_state_goes_round() -> None:
    agent = make_agent("cql")
    rows = three_rows()
    kept = Anchors(agent.networks, kl=Decay(1.0), ewc=2.0, parts="all")
    kept.fisher = component_fisher(agent.networks, kept.held, rows.obs, rows.action)
    state = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    assert all(len(tensor) == agent.members for tensor in state.values())
    moved(agent)
    fresh = Anchors(agent.networks, kl=Decay(1.0), ewc=2.0, parts="all")
    fresh.load_state_dict(state)
    assert fresh.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in fresh.state_dict().items())
    del state["fisher.actor.1"]
    with pytest.raises(ValueError, match=r"'fisher\.actor\.1' is missing"):
        fresh.load_state_dict(state)
