"""IQL: implicit Q-learning (Kostrikov et al. 2022, arXiv 2110.06169).

    value   L2^expectile(min_e Q'_e(s, a) - V(s)),  L2^k(u) = |k - 1(u < 0)| u^2
    critic  (Q_e(s, a) - y)^2,  y = r + gamma (1 - terminated) V(s')
    actor   -exp(beta A) log pi(a|s),  A = min_e Q'_e(s, a) - V(s),  weights clipped at 100

Online: SAC's or TD3's objective over the same networks, or `same` (classic IQL fine-tuning).
Deviations: the actor is a tanh-squashed Gaussian with a state-dependent deviation (the original's is state-independent,
and clipped rather than squashed), because SAC must be able to take it over, and so the likelihood keeps off the border
of the box (`action_edge`); all components step at once from the same
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.config import AgentConfig, SACObjectiveConfig, TD3ObjectiveConfig, require_range
from o2o_smooth.agents.heads import advantage_weighted, expectile_error, least, td_error, td_target
from o2o_smooth.agents.networks import Networks
from o2o_smooth.agents.sac import SACObjective
from o2o_smooth.agents.settings import Settings
from o2o_smooth.agents.td3 import TD3Objective
from o2o_smooth.data.batch import Batch
from o2o_smooth.smoothing.objective import Noise, Objective, Term


@dataclass(frozen=True)
class IQLConfig(AgentConfig):
    """Settings of IQL."""

    algorithm = "iql"

    expectile: float = 0.7
    """Expectile of V: 0.5 is SARSA-like, towards 1 it approaches the best action in the data."""
    beta: float = 3.0
    """Inverse temperature of the advantage weights."""
    action_edge: float = 0.02
    """The likelihood sees the data's actions no nearer than this to the border of the box. There tanh's inverse runs
    away, and actions that the simulator clipped would outweigh all others."""
    sac: SACObjectiveConfig = field(default_factory=SACObjectiveConfig)
    """SAC's settings, for `online = "sac"`."""
    td3: TD3ObjectiveConfig = field(default_factory=TD3ObjectiveConfig)
    """TD3's settings, for `online = "td3"`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0.0, 1.0, "expectile", open_low=True)
        require_range(self, 0.0, 1e6, "beta")
        require_range(self, 1e-5, 0.5, "action_edge")


class IQLObjective:
    """IQL's losses over given networks."""

    name = "iql"
    repeatable = True
    components: tuple[str, ...] = ("value", "critic", "actor")
    delay = 1
    normal_noise: Mapping[str, int] = {}
    uniform_noise: Mapping[str, int] = {}

    def __init__(self, networks: Networks, config: IQLConfig | Settings) -> None:
        self.networks, self.config = networks, config

    def terms(
        self, batch: Batch, noise: Noise, want: frozenset[str], critic_target: Tensor | None = None
    ) -> dict[str, Term]:
        """See `Objective`."""
        terms: dict[str, Term] = {}
        if want & {"value", "actor"}:
            with torch.no_grad():
                target_q = least(self.networks.target_q(batch.obs, batch.action))  # (M, B)
            v = self.networks.v(batch.obs)  # (M, B)
            if "value" in want:
                terms["value"] = self.value_loss(target_q, v)
            if "actor" in want:
                terms["actor"] = self.actor_loss(batch, target_q - v.detach())
        if "critic" in want:
            terms["critic"] = self.critic_loss(batch, noise, critic_target)
        return terms

    def value_loss(self, target_q: Tensor, v: Tensor) -> Term:
        """Expectile regression of V towards the target critic (arXiv 2110.06169, eq. 5)."""
        return Term(expectile_error(target_q, v, self.config.expectile), {"value/v": v.detach()})

    @torch.no_grad()
    def critic_target(self, batch: Batch, noise: Noise) -> Tensor:
        """TD target through V (eq. 6), (M, B)."""
        v = self.networks.v(batch.next_obs)
        return td_target(batch.reward, batch.terminated, self.config.discount, v[:, None])

    def critic_loss(self, batch: Batch, noise: Noise, target: Tensor | None = None) -> Term:
        """Bellman error towards V, summed over the ensemble."""
        if target is None:
            target = self.critic_target(batch, noise)
        q = self.networks.q(batch.obs, batch.action)  # (M, E, B)
        loss = td_error(q, target)
        return Term(loss, {"critic/q": q.detach(), "critic/target": target})

    def actor_loss(self, batch: Batch, advantage: Tensor) -> Term:
        """Advantage-weighted regression (eq. 7)."""
        log_prob = self.networks.actor.log_prob(batch.obs, batch.action, edge=self.config.action_edge)
        loss = advantage_weighted(log_prob, advantage, self.config.beta)
        return Term(loss, {"actor/log_prob": log_prob.detach(), "actor/advantage": advantage})

    def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """A sample of the policy."""
        action, _ = self.networks.actor.sample(obs, noise.unsqueeze(1))
        return action.squeeze(1)


class IQL(Agent):
    """IQL offline; SAC (default), TD3 or IQL online."""

    name = "iql"
    config_class = IQLConfig
    online_choices = ("sac", "td3", "same")
    config: IQLConfig

    def _networks(self) -> dict[str, object]:
        return {
            "stochastic": True,
            "value": True,
            "target_actor": self.online_choice == "td3",
            "initial_temperature": self.config.sac.initial_temperature if self.online_choice == "sac" else None,
        }

    def _offline_objective(self) -> Objective:
        return IQLObjective(self.networks, self.settings)

    def _online_objective(self, choice: str) -> Objective:
        if choice == "sac":
            return SACObjective(self.networks, self.settings.sac, self.settings.discount)
        return TD3Objective(self.networks, self.settings.td3, self.settings.discount)
