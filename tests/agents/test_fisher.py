"""The Fisher information against quadrature and gradients row by row, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents.fisher import component_fisher, diagonal_fisher, policy_scores
from tests.agents.helpers import make_agent, three_rows


def test_the_policys_fisher_is_the_expected_squared_score_over_its_own_actions() -> None:
    """By quadrature over the noise, exact for such polynomials, through the density of the squashed action."""
    agent = make_agent("sac")
    actor, obs = agent.networks.actor, three_rows().obs
    found = diagonal_fisher(actor.net, obs, policy_scores(actor))
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    expected = [np.zeros(p.shape) for p in actor.parameters()]
    mean, log_std = (x.detach() for x in actor.distribution(obs))
    for a, wa in zip(nodes, weights, strict=True):
        for b, wb in zip(nodes, weights, strict=True):
            action = torch.tanh(mean + log_std.exp() * torch.tensor([a, b]))
            for row in range(3):
                log_prob = actor.log_prob(obs[:, row : row + 1], action[:, row : row + 1], edge=1e-14).sum()
                scores = torch.autograd.grad(log_prob, list(actor.parameters()))
                for total, score in zip(expected, scores, strict=True):
                    total += wa * wb * score.numpy() ** 2 / 3
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["td3_bc", "iql"])
def test_other_networks_fisher_is_that_of_a_unit_gaussian(name: str) -> None:
    agent = make_agent(name, critic_layer_norm=True, actor_layer_norm=True, num_critics=3)
    networks, rows = agent.networks, three_rows()
    names = [name for name in ("actor", "critic", "value") if name != "value" or networks.value is not None]
    fisher = component_fisher(networks, names, rows.obs, rows.action)
    outputs = {"critic": networks.q(rows.obs, rows.action)}
    if networks.value is not None:
        outputs["value"] = networks.v(rows.obs)
    if not networks.actor.stochastic:
        outputs["actor"] = networks.actor.mode(rows.obs).flatten(1)  # rows and dimensions
    for component, output in outputs.items():
        parameters = networks.component_parameters()[component]
        expected = [np.zeros(p.shape) for p in parameters]
        for value in torch.unbind(output, -1):
            for total, gradient in zip(expected, _squares(value, parameters), strict=True):
                total += gradient / 3
        for mine, theirs in zip(fisher[component], expected, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-10, atol=1e-14)


def _squares(value: Tensor, parameters: list[Any]) -> list[Any]:
    """Squared gradients of one row's outputs, which are independent: (M,) or (M, E)."""
    found = torch.autograd.grad(value.sum(), parameters, retain_graph=True)
    return [g.numpy() ** 2 for g in found]


def test_fisher_of_many_rows_is_the_mean_of_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, obs = make_agent("sac"), three_rows().obs
    actor = agent.networks.actor
    whole = diagonal_fisher(actor.net, obs, policy_scores(actor))
    monkeypatch.setattr("o2o_smooth.agents.fisher.FISHER_ROWS", 2)
    for a, b in zip(whole, diagonal_fisher(actor.net, obs, policy_scores(actor)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
