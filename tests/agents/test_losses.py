"""Every loss equals a float64 numpy reference on hand-made rows, and its gradient equals finite differences of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import SACObjectiveConfig
from o2o_smooth.smoothing.objective import Objective
from tests.agents.helpers import make_agent, three_rows
from tests.agents.reference import Reference, parameters

CASES: list[tuple[str, str | None, str, dict[str, Any]]] = [
    ("iql", "sac", "offline", {}),
    ("iql", "sac", "online", {}),
    ("iql", "td3", "online", {}),
    ("iql", "sac", "offline", {"critic_layer_norm": True, "expectile": 0.9, "beta": 10.0}),
    ("cql", "sac", "offline", {"cql_actions": 3}),
    ("cql", "sac", "online", {"cql_actions": 3, "num_critics": 3}),
    ("cql", "td3", "online", {"cql_actions": 2}),
    ("cql", "sac", "offline", {"cql_actions": 2, "calibrated": True}),
    ("cql", "sac", "offline", {"cql_actions": 3, "max_target_backup": True}),
    ("cql", "sac", "offline", {"cql_actions": 2, "max_target_backup": True, "sac": SACObjectiveConfig()}),
    ("cql", "sac", "offline", {"cql_actions": 2, "cql_target_gap": 0.4}),
    ("td3_bc", "td3", "offline", {}),
    ("td3_bc", "td3", "online", {"critic_layer_norm": True}),
    ("sac", None, "offline", {}),
    ("td3", None, "offline", {}),
]


def _case(name: str, online: str | None, side: str, settings: dict[str, Any]) -> tuple[Any, Objective, Any, Reference]:
    agent = make_agent(name, online, **settings)
    objective = agent.offline if side == "offline" else agent.online
    batch = agent.encode(three_rows())
    noise = {k: agent.draws.normal(k, 0, (n, 3, 2)) for k, n in objective.normal_noise.items()}
    noise |= {k: agent.draws.uniform(k, 0, (n, 3, 2)) for k, n in objective.uniform_noise.items()}
    ln = bool(settings.get("critic_layer_norm"))
    return agent, objective, (batch, noise), Reference(agent, batch, noise, ln=ln)


@pytest.mark.parametrize(("name", "online", "side", "settings"), CASES)
def test_loss_equals_float64_reference(name: str, online: str | None, side: str, settings: dict[str, Any]) -> None:
    agent, objective, (batch, noise), reference = _case(name, online, side, settings)
    terms = objective.terms(batch, noise, frozenset(objective.components))
    assert set(terms) == set(objective.components)
    fixed = parameters(agent)
    for component, term in terms.items():
        expected = [reference.loss(objective.name, component, m, fixed) for m in range(2)]
        np.testing.assert_allclose(term.loss.detach().numpy(), expected, rtol=1e-10, atol=1e-12, err_msg=component)


@pytest.mark.parametrize(("name", "online", "side", "settings"), CASES)
def test_gradient_equals_finite_differences(name: str, online: str | None, side: str, settings: dict[str, Any]) -> None:
    """And no component's loss reaches another component's parameters."""
    agent, objective, (batch, noise), reference = _case(name, online, side, settings)
    groups = agent.networks.component_parameters()
    names = {id(p): n for n, p in agent.networks.named_parameters()}
    rng = np.random.default_rng(0)
    for component in objective.components:
        agent.networks.zero_grad(set_to_none=True)
        objective.terms(batch, noise, frozenset([component]))[component].loss.sum().backward()  # type: ignore[no-untyped-call]
        for other, group in groups.items():
            for parameter in group:
                key = names[id(parameter)]
                if other != component:
                    assert parameter.grad is None or not parameter.grad.any(), f"{component} reaches {key}"
                    continue
                gradient = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
                entries = list(np.ndindex(*parameter.shape))
                for k in rng.choice(len(entries), size=min(6, len(entries)), replace=False):
                    index = entries[k]
                    numeric = _difference(reference, objective.name, component, key, index)
                    assert gradient[index] == pytest.approx(numeric, rel=2e-5, abs=2e-7), f"{component}: {key}{index}"


def _difference(reference: Reference, objective: str, component: str, key: str, index: tuple[int, ...]) -> float:
    m, h = index[0], 1e-6
    values = []
    for sign in (1, -1):
        live = dict(reference.fixed)
        live[key] = live[key].copy()
        live[key][index] += sign * h
        values.append(reference.loss(objective, component, m, live))
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("name", ["iql", "cql", "td3_bc", "sac", "td3"])
def test_truncated_step_bootstraps_and_terminated_does_not(name: str) -> None:
    agent = make_agent(name, hidden_dims=(16, 16))  # wide enough that no input meets dead units only
    batch = agent.encode(three_rows())
    for objective in (agent.offline, agent.online):
        noise = {k: agent.draws.normal(k, 0, (n, 3, 2)) for k, n in objective.normal_noise.items()}
        target = objective.critic_target(batch, noise)
        assert torch.equal(target[:, 1], batch.reward[:, 1])  # terminated: the reward alone
        moved = objective.critic_target(batch._replace(next_obs=batch.next_obs + 1.0), noise)
        changed = target != moved
        assert not changed[:, 1].any()
        assert changed[:, 0].all()
        assert changed[:, 2].all()  # truncated: the successor counts
        flipped = objective.critic_target(batch._replace(truncated=1 - batch.truncated), noise)
        assert torch.equal(flipped, target)


def test_tanh_log_prob_is_right_where_the_naive_form_cancels() -> None:
    from o2o_smooth.agents.heads import tanh_log_prob

    u = torch.tensor([[0.0], [2.0], [9.0], [-15.0]], dtype=torch.float64)
    zero = torch.zeros_like(u)
    # log(1 - tanh(u)^2) = -2 log cosh(u), computed by log1p for large |u|
    log_cosh = u.abs() + torch.log1p(torch.exp(-2 * u.abs())) - np.log(2.0)
    expected = (-0.5 * np.log(2 * np.pi) + 2 * log_cosh).squeeze(-1)
    torch.testing.assert_close(tanh_log_prob(zero, zero, u), expected, rtol=1e-13, atol=0)
    single = tanh_log_prob(zero.float(), zero.float(), u.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=0)
