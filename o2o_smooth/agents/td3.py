"""TD3: twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477).

    critic  (Q_e(s, a) - y)^2,  y = r + gamma (1 - terminated) min_e Q'_e(s', clip(pi'(s') + clip(eps, -c, c), -1, 1))
    actor   -Q_1(s, pi(s)), every `actor_delay` critic updates; the target networks move with it

Deviations: on a Gaussian actor (IQL, CQL) the deterministic policy is tanh of the mean. With `q_scale` the actor loss
is -lambda Q_1 with lambda = q_scale / mean|Q_1|, as in TD3+BC, so that smoothing from TD3+BC moves the BC term alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.config import AgentConfig, TD3ObjectiveConfig
from o2o_smooth.agents.heads import policy_value, smoothed_action, td_error, td_target
from o2o_smooth.agents.networks import Networks
from o2o_smooth.agents.settings import Settings
from o2o_smooth.data.batch import Batch
from o2o_smooth.smoothing.objective import Noise, Objective, Term


@dataclass(frozen=True)
class TD3Config(AgentConfig):
    """Settings of the TD3 agent."""

    algorithm = "td3"

    td3: TD3ObjectiveConfig = field(default_factory=TD3ObjectiveConfig)
    """TD3's own settings."""


class TD3Objective:
    """TD3's losses over given networks."""

    name = "td3"
    repeatable = True
    components: tuple[str, ...] = ("critic", "actor")
    normal_noise: Mapping[str, int] = {"next": 1}
    uniform_noise: Mapping[str, int] = {}

    def __init__(
        self,
        networks: Networks,
        config: TD3ObjectiveConfig | Settings,
        discount: float | Tensor,
        q_scale: float | Tensor | None = None,
    ) -> None:
        self.networks, self.config, self.discount, self.q_scale = networks, config, discount, q_scale
        self.delay = config.actor_delay

    def terms(
        self, batch: Batch, noise: Noise, want: frozenset[str], critic_target: Tensor | None = None
    ) -> dict[str, Term]:
        """See `Objective`."""
        terms: dict[str, Term] = {}
        if "critic" in want:
            terms["critic"] = self.critic_loss(batch, noise, critic_target)
        if "actor" in want:
            terms["actor"] = self.actor_loss(batch)
        return terms

    @torch.no_grad()
    def critic_target(self, batch: Batch, noise: Noise) -> Tensor:
        """Clipped double-Q target with smoothed target actions (algorithm 1), (M, B)."""
        target_actor = self.networks.target_actor
        if target_actor is None:
            raise ValueError("TD3 needs networks with a target actor")
        clip = self.config.noise_clip
        out = target_actor.output(batch.next_obs)[..., : target_actor.action_dim]
        action = smoothed_action(out, noise["next"][:, 0], self.config.target_noise, clip)  # (M, B, A)
        q = self.networks.target_q(batch.next_obs, action)  # (M, E, B)
        return td_target(batch.reward, batch.terminated, self.discount, q)

    def critic_loss(self, batch: Batch, noise: Noise, target: Tensor | None = None) -> Term:
        """Bellman error, summed over the ensemble."""
        if target is None:
            target = self.critic_target(batch, noise)
        q = self.networks.q(batch.obs, batch.action)  # (M, E, B)
        loss = td_error(q, target)
        return Term(loss, {"critic/q": q.detach(), "critic/target": target})

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The deterministic policy gradient's loss (M,), with the policy's actions (M, B, A) and metrics."""
        action = self.networks.actor.mode(batch.obs)
        q = self.networks.q(batch.obs, action, frozen=True, first=True).squeeze(1)  # (M, B)
        loss, scale = policy_value(q, self.q_scale)
        return loss, action, {"actor/q": q.detach(), "actor/q_scale": scale}

    def actor_loss(self, batch: Batch) -> Term:
        """Deterministic policy gradient on the first critic."""
        loss, _, info = self.policy_loss(batch)
        return Term(loss, info)

    def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The policy's action plus Gaussian noise, clipped to the action range."""
        return (self.networks.actor.mode(obs) + self.config.exploration_noise * noise).clamp(-1.0, 1.0)


class TD3(Agent):
    """TD3 from scratch, or continued from a checkpoint: both objectives are TD3's."""

    name = "td3"
    config_class = TD3Config
    online_choices = ("same",)
    config: TD3Config

    def _networks(self) -> dict[str, object]:
        return {"stochastic": False, "target_actor": True}

    def _offline_objective(self) -> Objective:
        return TD3Objective(self.networks, self.settings.td3, self.settings.discount)
