"""SAC: soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), as an online objective and as an agent.

    critic       (Q_e(s, a) - y)^2,  y = r + gamma (1 - terminated) (min_e Q'_e(s', a') - alpha log pi(a'|s'))
    actor        alpha log pi(a|s) - min_e Q_e(s, a),  a ~ pi(.|s) reparametrised
    temperature  alpha (-log pi(a|s) - H),  H the target entropy

Deviations: all components step at once from the same parameters; the critic loss is the sum over the ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.config import AgentConfig, SACObjectiveConfig
from o2o_smooth.agents.heads import entropy_gap, soft_value, td_error, td_target
from o2o_smooth.agents.networks import Networks
from o2o_smooth.agents.settings import Settings
from o2o_smooth.data.batch import Batch
from o2o_smooth.smoothing.objective import Noise, Objective, Term


@dataclass(frozen=True)
class SACConfig(AgentConfig):
    """Settings of the SAC agent."""

    algorithm = "sac"

    sac: SACObjectiveConfig = field(default_factory=lambda: SACObjectiveConfig(initial_temperature=1.0))
    """SAC's own settings."""


class SACObjective:
    """SAC's losses over given networks."""

    name = "sac"
    repeatable = True
    components: tuple[str, ...] = ("critic", "actor", "temperature")
    delay = 1
    normal_noise: Mapping[str, int] = {"next": 1, "policy": 1}
    uniform_noise: Mapping[str, int] = {}

    def __init__(self, networks: Networks, config: SACObjectiveConfig | Settings, discount: float | Tensor) -> None:
        self.networks, self.config, self.discount = networks, config, discount
        action_dim = networks.actor.action_dim
        self.target_entropy = -float(action_dim) if config.target_entropy is None else config.target_entropy
        if not config.learn_temperature:
            self.components = ("critic", "actor")

    def terms(
        self, batch: Batch, noise: Noise, want: frozenset[str], critic_target: Tensor | None = None
    ) -> dict[str, Term]:
        """See `Objective`."""
        terms: dict[str, Term] = {}
        if "critic" in want:
            terms["critic"] = self.critic_loss(batch, noise, critic_target)
        if want & {"actor", "temperature"}:
            action, log_prob = self.networks.actor.sample(batch.obs, noise["policy"][:, :1])  # (M, 1, B, A), (M, 1, B)
            if "actor" in want:
                terms["actor"] = self.actor_loss(batch, action.squeeze(1), log_prob.squeeze(1))
            if "temperature" in want:
                terms["temperature"] = self.temperature_loss(log_prob.squeeze(1))
        return terms

    @torch.no_grad()
    def critic_target(self, batch: Batch, noise: Noise) -> Tensor:
        """Soft TD target (arXiv 1812.05905, eq. 3), (M, B)."""
        action, log_prob = self.networks.actor.sample(batch.next_obs, noise["next"][:, :1])
        q = self.networks.target_q(batch.next_obs, action.squeeze(1))  # (M, E, B)
        price = self.networks.alpha[:, None] * log_prob.squeeze(1) if self.config.backup_entropy else None
        return td_target(batch.reward, batch.terminated, self.discount, q, price)

    def critic_loss(self, batch: Batch, noise: Noise, target: Tensor | None = None) -> Term:
        """Soft Bellman error (eq. 5), summed over the ensemble."""
        if target is None:
            target = self.critic_target(batch, noise)
        q = self.networks.q(batch.obs, batch.action)  # (M, E, B)
        loss = td_error(q, target)
        return Term(loss, {"critic/q": q.detach(), "critic/target": target})

    def actor_loss(self, batch: Batch, action: Tensor, log_prob: Tensor) -> Term:
        """Reparametrised policy loss (eq. 7)."""
        q = self.networks.q(batch.obs, action, frozen=True)  # (M, E, B)
        loss, low = soft_value(q, log_prob, self.networks.alpha.detach())
        return Term(loss, {"actor/entropy": -log_prob.detach(), "actor/q": low})

    def temperature_loss(self, log_prob: Tensor) -> Term:
        """Dual descent on the entropy constraint (eq. 18)."""
        alpha = self.networks.alpha
        return Term(alpha * entropy_gap(log_prob, self.target_entropy), {"temperature/alpha": alpha.detach()})

    def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """A sample of the policy."""
        action, _ = self.networks.actor.sample(obs, noise.unsqueeze(1))
        return action.squeeze(1)


class SAC(Agent):
    """SAC from scratch, or continued from a checkpoint: both objectives are SAC's."""

    name = "sac"
    config_class = SACConfig
    online_choices = ("same",)
    config: SACConfig

    def _networks(self) -> dict[str, object]:
        return {"stochastic": True, "initial_temperature": self.config.sac.initial_temperature}

    def _offline_objective(self) -> Objective:
        return SACObjective(self.networks, self.settings.sac, self.settings.discount)
