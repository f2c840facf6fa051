"""CQL (Kumar et al. 2020, arXiv 2006.04779) and Cal-QL (Nakamoto et al. 2023, arXiv 2303.05479).

    critic       SAC's + cql_weight (log sum_a exp(Q_e(s, a) - log mu(a)) - Q_e(s, a_data))
    actor        SAC's
    temperature  SAC's

The sum runs over `cql_actions` actions each from the uniform distribution, pi(.|s) and pi(.|s'), corrected by the
density mu each was drawn from. `calibrated` replaces the pushed-down Q of the policy's actions by max(Q, Monte-Carlo
return). `cql_target_gap` turns on the Lagrange form, in which a multiplier holds the penalty's gap at that value.

Online: SAC, TD3, or `same`. Towards SAC on one batch, smoothing is annealing of cql_weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.config import AgentConfig, SACObjectiveConfig, TD3ObjectiveConfig, require_range
from o2o_smooth.agents.heads import td_error
from o2o_smooth.agents.networks import Networks
from o2o_smooth.agents.pushed import soft_maximum, values
from o2o_smooth.agents.sac import SACObjective
from o2o_smooth.agents.settings import Settings
from o2o_smooth.agents.td3 import TD3Objective
from o2o_smooth.data.batch import Batch
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import Noise, Objective, Term


@dataclass(frozen=True)
class CQLConfig(AgentConfig):
    """Settings of CQL and Cal-QL."""

    algorithm = "cql"

    cql_weight: float = 5.0
    """Weight of the conservative penalty (5 on AntMaze, 5 or 10 on MuJoCo)."""
    cql_actions: int = 10
    """Actions drawn per state from each of the three distributions."""
    calibrated: bool = False
    """Cal-QL: never push Q of the policy's actions below the Monte-Carlo return of the data."""
    max_target_backup: bool = False
    """Take the TD target's next action as the best of `cql_actions` samples."""
    cql_target_gap: float | None = None
    """Lagrange form: hold the penalty's gap at this value by a learned multiplier; off by default."""
    actor_lr: float = 1e-4
    """Adam learning rate of the actor."""
    sac: SACObjectiveConfig = field(
        default_factory=lambda: SACObjectiveConfig(initial_temperature=1.0, backup_entropy=False)
    )
    """SAC's settings, used by both objectives."""
    td3: TD3ObjectiveConfig = field(default_factory=TD3ObjectiveConfig)
    """TD3's settings, for `online = "td3"`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0.0, 1e6, "cql_weight")
        if self.cql_actions < 1:
            raise ConfigError(f"cql_actions must be at least 1, got {self.cql_actions}")


class CQLObjective(SACObjective):
    """SAC's losses with the conservative penalty in the critic's."""

    name = "cql"
    repeatable = True

    def __init__(self, networks: Networks, config: CQLConfig | Settings) -> None:
        super().__init__(networks, config.sac, config.discount)
        self.cql = config
        n = config.cql_actions
        self.normal_noise: Mapping[str, int] = {
            "next": n if config.max_target_backup else 1,
            "policy": 1,
            "cql_current": n,
            "cql_next": n,
        }
        self.uniform_noise: Mapping[str, int] = {"cql_uniform": n}

    @torch.no_grad()
    def critic_target(self, batch: Batch, noise: Noise) -> Tensor:
        """SAC's target, or the maximum over several next actions."""
        if not self.cql.max_target_backup:
            return super().critic_target(batch, noise)
        action, log_prob = self.networks.actor.sample(batch.next_obs, noise["next"])  # (M, n, B, A), (M, n, B)
        q = values(self.networks.target_critic, batch.next_obs, action)  # (M, E, n, B)
        q, best = q.amin(1).max(1)  # (M, B)
        if self.config.backup_entropy:
            q = q - self.networks.alpha[:, None] * log_prob.gather(1, best[:, None]).squeeze(1)
        return batch.reward + self.discount * (1.0 - batch.terminated) * q

    def critic_loss(self, batch: Batch, noise: Noise, target: Tensor | None = None) -> Term:
        """Bellman error plus the conservative penalty (arXiv 2006.04779, eq. 4 with the R = H variant)."""
        if target is None:
            target = self.critic_target(batch, noise)
        with torch.no_grad():
            uniform = noise["cql_uniform"]  # (M, n, B, A)
            current, log_current = self.networks.actor.sample(batch.obs, noise["cql_current"])
            following, log_following = self.networks.actor.sample(batch.next_obs, noise["cql_next"])
            log_uniform = torch.full_like(log_current, -math.log(2.0) * uniform.shape[-1])
            actions = torch.cat([uniform, current, following], 1)  # (M, 3n, B, A)
            log_density = torch.cat([log_uniform, log_current, log_following], 1)  # (M, 3n, B)
        q = self.networks.q(batch.obs, batch.action)  # (M, E, B)
        bound = batch.mc_return if self.cql.calibrated else None
        pushed_down = soft_maximum(self.networks.critic, batch.obs, actions, log_density, bound, uniform.shape[1])
        gap = pushed_down - q.mean(-1)  # (M, E)
        td = td_error(q, target)  # (M,), a sum over the ensemble
        info = {
            "critic/q": q.detach(),
            "critic/target": target,
            "critic/cql": gap.detach(),
        }
        if self.networks.log_multiplier is None or self.cql.cql_target_gap is None:
            return Term(td + (self.cql.cql_weight * gap).sum(-1), info)
        multiplier = self.networks.log_multiplier.exp().clamp(max=1e6)[:, None]  # (M, 1)
        excess = self.cql.cql_weight * (gap - self.cql.cql_target_gap)
        # The critic descends on the penalty, the multiplier ascends on it: one loss with two detached products.
        penalty = (multiplier.detach() * excess - multiplier * excess.detach()).sum(-1)
        return Term(td + penalty, {**info, "critic/multiplier": multiplier.detach().squeeze(-1)})


class CQL(Agent):
    """CQL or Cal-QL offline; SAC (default), TD3 or CQL online."""

    name = "cql"
    config_class = CQLConfig
    online_choices = ("sac", "td3", "same")
    config: CQLConfig

    @property
    def wants_returns(self) -> bool:
        """Of the offline rows: what Cal-QL bounds the penalty with."""
        return self.config.calibrated

    def _networks(self) -> dict[str, object]:
        return {
            "stochastic": True,
            "target_actor": self.online_choice == "td3",
            "initial_temperature": self.config.sac.initial_temperature,
            "multiplier": self.config.cql_target_gap is not None,
        }

    def _offline_objective(self) -> Objective:
        return CQLObjective(self.networks, self.settings)

    def _online_objective(self, choice: str) -> Objective:
        if choice == "sac":
            return SACObjective(self.networks, self.settings.sac, self.settings.discount)
        return TD3Objective(self.networks, self.settings.td3, self.settings.discount)
