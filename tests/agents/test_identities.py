"""What smoothing must reduce to: pure steps at the ends, annealed weights for CQL and TD3+BC, continuity between."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS, Agent, CQLConfig, TD3BCConfig
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS, MODES, Mix, Mode, Objective
from tests.agents.helpers import ACT, OBS, make_agent, three_rows

PAIRS = [(name, online) for name, cls in AGENTS.items() for online in cls.online_choices if online != "same"]


def _parameters(agent: Agent) -> list[torch.Tensor]:
    return [p.detach().clone() for p in agent.networks.state_dict().values()]


def _equal(a: Agent, b: Agent) -> bool:
    return all(torch.equal(x, y) for x, y in zip(_parameters(a), _parameters(b), strict=True))


def _forbid(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"{objective.name} was computed without weight")

    for method in ("terms", "critic_target"):
        monkeypatch.setattr(objective, method, refuse)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_step_at_weight_zero_is_the_pure_offline_step(
    name: str, online: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pure, smoothed = (make_agent(name, online) for _ in range(2))
    _forbid(smoothed.online, monkeypatch)
    offline, other = three_rows(), three_rows()._replace(reward=torch.ones(2, 3, dtype=torch.float64))
    for _ in range(4):
        pure.update(offline)
        smoothed.update(offline, other, mix=Mix.uniform(0.0, 2, mode))
    assert _equal(pure, smoothed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_step_at_weight_one_is_the_pure_online_step(
    name: str, online: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pure online agent knows no other objective: its offline side is replaced by the online one."""
    pure, smoothed = (make_agent(name, online) for _ in range(2))
    pure.offline = pure.online
    _forbid(smoothed.offline, monkeypatch)
    offline, other = three_rows(), three_rows()._replace(reward=torch.ones(2, 3, dtype=torch.float64))
    for _ in range(4):
        pure.update(other)
        smoothed.update(offline, other, mix=Mix.uniform(1.0, 2, mode))
    assert _equal(pure, smoothed)


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_a_member_at_either_end_of_a_mixed_population_takes_the_pure_step(name: str, online: str) -> None:
    """Weights 0 and 1 side by side: the blend's graph, and yet each member moves as in its pure step."""
    batch, other = three_rows(), three_rows()._replace(reward=torch.ones(2, 3, dtype=torch.float64))
    blended, offline, on = (make_agent(name, online) for _ in range(3))
    mix = Mix({c: np.array([0.0, 1.0]) for c in COMPONENTS})
    for _ in range(5):
        blended.update(batch, other, mix=mix)
        offline.update(batch, other, mix=Mix.uniform(0.0, 2))
        on.update(batch, other, mix=Mix.uniform(1.0, 2))
    for key, value in blended.networks.named_parameters():
        torch.testing.assert_close(value[0], offline.networks.get_parameter(key)[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(value[1], on.networks.get_parameter(key)[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("w", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("mode", ["loss", "target"])
def test_cql_to_sac_on_one_batch_is_annealing_the_cql_weight(w: float, mode: Mode) -> None:
    smoothed = make_agent("cql", "sac", cql_actions=3)
    assert isinstance(smoothed.config, CQLConfig)
    annealed = make_agent("cql", "sac", cql_actions=3, cql_weight=(1 - w) * smoothed.config.cql_weight)
    for _ in range(3):
        smoothed.update(three_rows(), mix=Mix.uniform(w, 2, mode))
        annealed.update(three_rows())
    for a, b in zip(_parameters(smoothed), _parameters(annealed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("w", [0.2, 0.5, 0.9])
def test_td3_bc_to_td3_on_one_batch_is_annealing_the_bc_weight(w: float) -> None:
    smoothed = make_agent("td3_bc", "td3")
    annealed = make_agent("td3_bc", "td3")
    full = annealed.offline.terms

    def weighted(batch: Any, noise: Any, want: Any, critic_target: Any = None) -> Any:
        terms = full(batch, noise, want, critic_target)
        if "actor" in terms:  # the loss without BC, plus what is left of BC
            pure = annealed.online.terms(batch, noise, frozenset(["actor"]))["actor"]
            bc = terms["actor"].loss - pure.loss
            terms["actor"] = terms["actor"]._replace(loss=pure.loss + (1 - w) * bc)
        return terms

    annealed.offline.terms = weighted  # type: ignore[method-assign]
    for _ in range(4):
        smoothed.update(three_rows(), mix=Mix.uniform(w, 2))
        annealed.update(three_rows())
    for a, b in zip(_parameters(smoothed), _parameters(annealed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_losses_are_continuous_at_the_switch_and_at_the_end_of_the_ramp(name: str, online: str) -> None:
    """A tiny weight changes the losses by a tiny amount, on both ends and in all modes that change losses."""
    source = three_rows()
    target = three_rows()._replace(reward=torch.ones(2, 3, dtype=torch.float64))
    for end, tiny in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        for mode in MODES:
            at, near = (make_agent(name, online) for _ in range(2))
            at.updates = near.updates = 1  # the actor's turn also where it is delayed
            exact = at.update(source, target, mix=Mix.uniform(end, 2, mode))
            close = near.update(source, target, mix=Mix.uniform(tiny, 2, mode))
            for key in exact:
                if key.endswith("/loss") and key.count("/") == 1:
                    torch.testing.assert_close(close[key], exact[key], rtol=1e-4, atol=1e-5)


def test_iql_to_sac_keeps_v_alive_until_the_critic_has_switched() -> None:
    agent = make_agent("iql", "sac")
    assert agent.networks.value is not None
    before = [p.detach().clone() for p in agent.networks.value.parameters()]
    agent.update(three_rows(), mix=Mix.uniform(0.999, 2))
    after = list(agent.networks.value.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    frozen = [p.detach().clone() for p in after]
    agent.update(three_rows(), mix=Mix.uniform(1.0, 2))
    assert all(torch.equal(a, b) for a, b in zip(frozen, agent.networks.value.parameters(), strict=True))


def test_components_switch_on_their_own() -> None:
    controller = SmoothingController("linear:100", overrides={"actor": "stay"}, members=2)
    controller.start()
    controller.advance(env_steps=100)
    agent, reference = make_agent("iql", "sac"), make_agent("iql", "sac")
    info = agent.update(three_rows(), mix=controller.mix())
    pure = reference.update(three_rows(), mix=Mix.uniform(1.0, 2))
    torch.testing.assert_close(info["critic/loss"], pure["critic/loss"])
    offline = make_agent("iql", "sac").update(three_rows())
    torch.testing.assert_close(info["actor/loss"], offline["actor/loss"])
    assert "value/loss" not in info  # V follows the critic


def test_matched_mode_gives_both_objectives_one_gradient_norm() -> None:
    agent = make_agent("iql", "sac")
    report = agent.gradient_report(three_rows())
    w = 0.25
    agent.update(three_rows(), mix=Mix.uniform(w, 2, "matched"))
    group = agent.networks.component_parameters()["actor"]
    gradient = torch.stack([g.reshape(2, -1).square().sum(1) for p in group if (g := p.grad) is not None]).sum(0)
    r = report["actor"]
    common = (1 - w) * r.norm_offline + w * r.norm_online
    expected = common.square() * ((1 - w) ** 2 + w**2 + 2 * w * (1 - w) * r.cosine)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=0)


def test_projected_mode_takes_out_what_conflicts() -> None:
    """|step|^2 from the two norms and the cosine alone; a member whose gradients agree takes the plain blend."""
    agent = make_agent("iql", "sac")
    report = agent.gradient_report(three_rows())
    w = 0.25
    agent.update(three_rows(), mix=Mix.uniform(w, 2, "projected"))
    for name in ("actor", "critic"):
        group = agent.networks.component_parameters()[name]
        gradient = torch.stack([g.reshape(2, -1).square().sum(1) for p in group if (g := p.grad) is not None]).sum(0)
        r = report[name]
        a, b, cosine = (1 - w) * r.norm_offline, w * r.norm_online, r.cosine
        plain = a.square() + b.square() + 2 * a * b * cosine
        # Both lose their part along the other; what is left of them stands at the supplementary angle.
        conflicting = (1 - cosine.square()) * (a.square() + b.square() - 2 * a * b * cosine)
        expected = torch.where(cosine < 0, conflicting, plain)
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=0)


def test_target_mode_regresses_on_the_blended_target() -> None:
    w = 0.3
    agent = make_agent("iql", "sac")
    batch = agent.encode(three_rows())
    noise = {"next": agent.draws.normal("next", 0, (1, 3, 2))}
    y = (1 - w) * agent.offline.critic_target(batch, noise) + w * agent.online.critic_target(batch, noise)
    q = agent.networks.q(batch.obs, batch.action)
    expected = (q - y[:, None]).square().mean(-1).sum(-1)
    info = agent.update(three_rows(), mix=Mix.uniform(w, 2, "target"))
    torch.testing.assert_close(info["critic/loss"], expected.detach())


def test_smoothing_moves_only_what_the_paper_says_for_td3_bc() -> None:
    """The same lambda in both objectives: critics do not depend on w at all."""
    a, b = (make_agent("td3_bc", "td3") for _ in range(2))
    first = a.update(three_rows(), mix=Mix.uniform(0.1, 2))
    second = b.update(three_rows(), mix=Mix.uniform(0.7, 2))
    torch.testing.assert_close(first["critic/loss"], second["critic/loss"], rtol=1e-12, atol=0)
    assert dataclasses.asdict(TD3BCConfig())["bc_alpha"] == 2.5


def test_bit_identity_holds_in_float32_too() -> None:
    for name, online in PAIRS:
        cls = AGENTS[name]
        agents = [cls(OBS, ACT, cls.config_class(hidden_dims=(8, 8)), online=online, seeds=(0, 1)) for _ in range(2)]
        batch = three_rows(dtype=torch.float32)
        for _ in range(3):
            agents[0].update(batch)
            agents[1].update(batch, batch._replace(), mix=Mix.uniform(0.0, 2))
        assert _equal(*agents), name
