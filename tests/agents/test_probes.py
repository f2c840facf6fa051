"""Probes against float64 references written out by hand, per member, and that they move nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.agents.probes import (
    activations,
    dormant_share,
    gram,
    hidden_activations,
    kl_from,
    kl_name,
    linear_cka,
    moment_norms,
    policy_snapshot,
    pulls,
    q_values,
    td_error,
)
from o2o_smooth.data.batch import Batch
from o2o_smooth.errors import ConfigError
from tests.agents.helpers import make_agent, three_rows

PAIRS = [("iql", "sac"), ("iql", "td3"), ("cql", "sac"), ("cql", "same"), ("td3_bc", "td3"), ("sac", "same")]


def states(members: int = 2, rows: int = 7) -> Tensor:
    return torch.as_tensor(np.random.default_rng(1).normal(size=(members, rows, 3)))


def nudge(agent: Agent, by: float = 0.3) -> None:
    """Move every parameter a little, each member in its own way."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.networks.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(generator=rng), alpha=by)


def alone(agent: Agent, member: int, name: str, online: str | None, **settings: Any) -> Agent:
    """One member of an agent, as an agent."""
    single = make_agent(name, online, seeds=(agent.seeds[member],), **settings)
    share(agent, single, member)
    return single


def share(agent: Agent, single: Agent, member: int) -> None:
    """Give an agent of one member the networks of that member of another."""
    own = single.networks.state_dict()
    state = agent.networks.state_dict().items()
    single.networks.load_state_dict({k: v if v.shape == own[k].shape else v[member : member + 1] for k, v in state})


def part(batch: Batch, member: int) -> Batch:
    return Batch(*(x[member : member + 1] for x in batch))


def state_of(agent: Agent) -> list[bytes]:
    tensors = [*agent.networks.state_dict().values(), *agent.optimizer.state_tensors().values()]
    return [t.detach().numpy().tobytes() for t in tensors] + [repr((agent.updates, agent.acts)).encode()]


def test_kl_is_that_of_the_gaussians_before_the_tanh() -> None:
    agent, obs = make_agent("iql"), states()
    agent.set_normalizer(np.array([0.1, -0.2, 0.3]), np.array([1.5, 0.5, 2.0]))
    then = policy_snapshot(agent)
    before = [x.detach().clone() for x in agent.networks.actor.distribution(agent.networks.encode_obs(obs))]
    nudge(agent)
    mean, log_std = agent.networks.actor.distribution(agent.networks.encode_obs(obs))
    now = Independent(Normal(mean, log_std.exp()), 1)
    expected = kl_divergence(now, Independent(Normal(before[0], before[1].exp()), 1)).mean(-1)
    found = kl_from(then, agent, obs)
    assert found.shape == (2,)
    torch.testing.assert_close(found, expected.detach())
    assert (found > 0.01).all()
    assert abs(float(found[0] - found[1])) > 1e-3
    assert kl_name(agent) == "kl"


def test_kl_agrees_with_sampling_after_the_tanh() -> None:
    """The tanh changes densities but not their divergence."""
    agent, obs = make_agent("sac", seeds=(3,)), states(1, 1)
    then = policy_snapshot(agent)
    nudge(agent, 0.15)
    noise = torch.empty((1, 200_000, 1, 2), dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        action, log_prob = agent.networks.actor.sample(obs, noise)
        wide = obs.expand(1, 200_000, 3)
        log_then = then.actor.log_prob(wide, action.squeeze(2), edge=1e-12)
    estimate = (log_prob.squeeze(2) - log_then).mean()
    torch.testing.assert_close(kl_from(then, agent, obs)[0], estimate, rtol=0.03, atol=1e-3)


def test_a_policy_that_has_not_moved_is_at_no_distance() -> None:
    for name in ("iql", "td3_bc"):
        agent = make_agent(name)
        assert kl_from(policy_snapshot(agent), agent, states()).tolist() == [0.0, 0.0]


def test_a_snapshot_keeps_its_own_normaliser_and_shares_no_memory() -> None:
    agent, obs = make_agent("td3_bc"), states()
    then = policy_snapshot(agent)
    before = then.output(obs).clone()
    nudge(agent)
    agent.set_normalizer(np.ones(3), np.full(3, 2.0))
    assert torch.equal(then.output(obs), before)


def test_deterministic_actors_have_a_distance_of_actions() -> None:
    agent, obs = make_agent("td3_bc"), states()
    then = policy_snapshot(agent)
    before = agent.networks.actor.mode(obs).detach().clone()
    nudge(agent)
    expected = [
        np.mean([np.sum((agent.networks.actor.mode(obs)[m, i] - before[m, i]).detach().numpy() ** 2) for i in range(7)])
        for m in range(2)
    ]
    np.testing.assert_allclose(kl_from(then, agent, obs).numpy(), expected, rtol=1e-12)
    assert kl_name(agent) == "action_distance"


def by_hand(agent: Agent, batch: Batch, side: str) -> list[float]:
    """The TD error of two rows written out for agents whose target needs no draws, or takes them from the agent."""
    nets, rows = agent.networks, agent.encode(batch)
    source: Any = agent.offline if side == "offline" else agent.online
    draws = agent.draws.normal("probe/next", 0, (1, 3, 2))
    found = []
    with torch.no_grad():
        for m in range(agent.members):
            errors = []
            for i in range(3):
                following = rows.next_obs[:, i : i + 1]
                if source.name == "iql":
                    value = nets.v(following)[m, 0]
                elif source.name in ("td3", "td3_bc"):
                    assert nets.target_actor is not None
                    smooth = (0.2 * draws[:, 0, i : i + 1]).clamp(-0.5, 0.5)
                    action = (nets.target_actor.mode(following) + smooth).clamp(-1, 1)
                    value = nets.target_q(following, action)[m, :, 0].min()
                else:
                    action, log_prob = nets.actor.sample(following, draws[:, :, i : i + 1])
                    value = nets.target_q(following, action[:, 0])[m, :, 0].min()
                    if source.config.backup_entropy:
                        value = value - nets.alpha[m] * log_prob[m, 0, 0]
                y = rows.reward[m, i] + 0.99 * (1 - rows.terminated[m, i]) * value
                q = nets.q(rows.obs[:, i : i + 1], rows.action[:, i : i + 1])[m, :, 0]
                errors += [float((one - y) ** 2) for one in q]
            found.append(float(np.mean(errors)))
    return found


@pytest.mark.parametrize(("name", "online"), PAIRS)
@pytest.mark.parametrize("side", ["offline", "online"])
def test_td_error_is_the_mean_over_rows_and_critics(name: str, online: str, side: Any) -> None:
    agent, batch = make_agent(name, online), three_rows()
    np.testing.assert_allclose(td_error(agent, batch, objective=side).numpy(), by_hand(agent, batch, side), rtol=1e-10)


def test_td_error_has_no_conservative_penalty() -> None:
    plain, heavy = (make_agent("cql", cql_weight=w) for w in (0.0, 50.0))
    a, b = (td_error(agent, three_rows(), objective="offline") for agent in (plain, heavy))
    assert torch.equal(a, b)


def test_td_error_repeats_itself_and_does_not_depend_on_the_number_of_updates() -> None:
    agent, batch = make_agent("sac"), three_rows()
    first = td_error(agent, batch)
    agent.updates += 17
    assert torch.equal(td_error(agent, batch), first)


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(ConfigError, match="objective must be offline or online"):
        td_error(make_agent("iql"), three_rows(), objective="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_hidden_activations_lead_to_the_output(layer_norm: bool) -> None:
    agent, obs = make_agent("iql", critic_layer_norm=layer_norm, actor_layer_norm=layer_norm), states()
    for net in (agent.networks.actor.net, agent.networks.value):
        assert net is not None
        nudge(agent)
        layers = hidden_activations(net, obs)
        assert [tuple(h.shape) for h in layers] == [(2, 1, 7, 5), (2, 1, 7, 4)]
        out = layers[-1] @ net.weights[-1] + net.biases[-1]
        torch.testing.assert_close(out, net(obs))


def test_activations_are_of_encoded_rows() -> None:
    agent, batch = make_agent("iql"), three_rows()
    agent.set_normalizer(np.array([0.1, -0.2, 0.3]), np.array([1.5, 0.5, 2.0]))
    rows = agent.encode(batch)
    found = activations(agent, batch)
    assert set(found) == {"actor", "critic", "value"}
    critic = agent.networks.critic
    q = (found["critic"][-1] @ critic.weights[-1] + critic.biases[-1]).squeeze(-1)
    torch.testing.assert_close(q, agent.networks.q(rows.obs, rows.action))
    torch.testing.assert_close(q_values(agent, batch), q)
    assert "value" not in activations(make_agent("td3_bc"), batch)


def reference_cka(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Linear CKA in its feature form: |Y'X|^2 / (|X'X| |Y'Y|), centred."""
    x, y = x - x.mean(0), y - y.mean(0)
    top = np.linalg.norm(y.T @ x) ** 2
    return float(top / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_cka_is_that_of_its_feature_form() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 20, 6)), rng.normal(size=(2, 3, 20, 4))
    y[1] += x[1, :, :, :4]
    found = linear_cka(gram(torch.as_tensor(x)), gram(torch.as_tensor(y))).numpy()
    expected = [np.mean([reference_cka(x[m, e], y[m, e]) for e in range(3)]) for m in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[1] > found[0]


def test_cka_knows_neither_rotation_nor_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 1, 20, 6))
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b = (gram(torch.as_tensor(v)) for v in (x, -3.0 * x @ q + 5.0))
    np.testing.assert_allclose(linear_cka(a, b).numpy(), [1.0])
    dead = gram(torch.ones(1, 1, 20, 6))
    assert linear_cka(dead, a).tolist() == [0.0]


def test_dormant_units_are_counted_against_their_layer() -> None:
    first = torch.tensor([[[[1.0, 0.0, 0.02, 3.0], [1.0, 0.0, 0.02, 3.0]]]])  # mean 1.005: two at most 0.025 of it
    second = torch.tensor([[[[0.1, 0.1], [0.1, 0.1]]]])
    assert dormant_share([first, second]).tolist() == [2 / 6]
    assert dormant_share([first], threshold=0.01).tolist() == [1 / 4]
    assert dormant_share([torch.zeros(2, 1, 3, 4)]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_a_member_of_a_population_is_what_it_is_alone(name: str, online: str) -> None:
    agent, batch = make_agent(name, online), three_rows()
    then = policy_snapshot(agent)
    ones = [alone(agent, m, name, online) for m in range(2)]
    thens = [policy_snapshot(one) for one in ones]
    nudge(agent)
    for m, one in enumerate(ones):
        share(agent, one, m)
        rows = part(batch, m)
        torch.testing.assert_close(kl_from(then, agent, batch.obs)[m], kl_from(thens[m], one, rows.obs)[0])
        for side in ("offline", "online"):
            torch.testing.assert_close(
                td_error(agent, batch, objective=side)[m],
                td_error(one, rows, objective=side)[0],
            )
        whole, single = activations(agent, batch), activations(one, rows)
        for net in whole:
            torch.testing.assert_close(gram(whole[net][-1])[m], gram(single[net][-1])[0])
            torch.testing.assert_close(dormant_share(whole[net])[m], dormant_share(single[net])[0])


@pytest.mark.parametrize("name", AGENTS)
def test_probes_move_nothing(name: str) -> None:
    agent, batch = make_agent(name), three_rows()
    before, global_state = state_of(agent), torch.get_rng_state()
    then = policy_snapshot(agent)
    results = [kl_from(then, agent, batch.obs), td_error(agent, batch), td_error(agent, batch, objective="offline")]
    results += [dormant_share(layers) for layers in activations(agent, batch).values()]
    assert all(r.shape == (2,) and not r.requires_grad and bool(torch.isfinite(r).all()) for r in results)
    assert state_of(agent) == before
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(p.grad is None for p in agent.networks.parameters())


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_pulls_are_the_two_objectives_own_gradients(name: str, online: str) -> None:
    agent, source, target = make_agent(name, online), three_rows(), three_rows()
    target = target._replace(reward=target.reward + 1.0, obs=target.obs * 0.5)
    before = state_of(agent)
    found = pulls(agent, source, target)
    report = agent.gradient_report(source, target)
    assert set(found) == set(agent.offline.components) | set(agent.online.components)
    for component, pull in found.items():
        assert (pull.offline is not None) == (component in agent.offline.components)
        assert (pull.online is not None) == (component in agent.online.components)
        if component in report:
            expected = report[component]
            assert pull.offline is not None
            assert pull.online is not None
            assert pull.cosine is not None
            for a, b in zip((pull.offline, pull.online, pull.cosine), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert state_of(agent) == before
    assert all(p.grad is None for p in agent.networks.parameters())


def test_pulls_of_one_side_alone_are_norms_without_a_cosine() -> None:
    agent, batch = make_agent("iql", "sac"), three_rows()
    found = pulls(agent, batch, batch)
    assert found["value"].online is found["value"].cosine is found["temperature"].offline is None
    value = agent.networks.value
    assert value is not None
    rows, quantile = agent.encode(batch), 0.7
    error = agent.networks.target_q(rows.obs, rows.action).amin(1) - agent.networks.v(rows.obs)
    loss = ((quantile - (error < 0).double()).abs() * error.square()).mean(-1).sum()
    gradients = torch.autograd.grad(loss, list(value.parameters()))
    expected = [float(torch.sqrt(sum(g[m].square().sum() for g in gradients))) for m in range(2)]  # type: ignore[arg-type]
    assert found["value"].offline is not None
    np.testing.assert_allclose(found["value"].offline.numpy(), expected, rtol=1e-10)


def test_moments_are_the_optimisers_own() -> None:
    agent, batch = make_agent("sac"), three_rows()
    agent.update(batch)
    found = moment_norms(agent)
    assert set(found) == {"actor", "critic", "temperature"}
    for name, norms in found.items():
        for norm, moments in zip(norms, (agent.optimizer.first[name], agent.optimizer.second[name]), strict=True):
            for m in range(2):
                flat = np.concatenate([x[m].numpy().ravel() for x in moments])
                assert float(norm[m]) == pytest.approx(float(np.linalg.norm(flat)), rel=1e-12)
                assert float(norm[m]) > 0
