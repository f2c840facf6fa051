"""TD3+BC: a minimalist approach to offline RL (Fujimoto & Gu 2021, arXiv 2106.06860).

    critic  TD3's
    actor   -lambda Q_1(s, pi(s)) + mean over action dimensions of (pi(s) - a)^2,  lambda = bc_alpha / mean|Q_1|

Online: TD3 with the same lambda, so that the smoothing weight moves the BC term alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.config import AgentConfig, TD3ObjectiveConfig, require_range
from o2o_smooth.agents.heads import mean_square
from o2o_smooth.agents.td3 import TD3Objective
from o2o_smooth.data.batch import Batch
from o2o_smooth.smoothing.objective import Objective, Term


@dataclass(frozen=True)
class TD3BCConfig(AgentConfig):
    """Settings of TD3+BC."""

    algorithm = "td3_bc"

    bc_alpha: float = 2.5
    """Weight of the Q term relative to behaviour cloning; Q is normalised by its mean magnitude."""
    normalize_observations: bool = True
    """Normalise observations by the dataset's mean and deviation, frozen at the switch."""
    td3: TD3ObjectiveConfig = field(default_factory=TD3ObjectiveConfig)
    """TD3's own settings, used by both objectives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0.0, 1e6, "bc_alpha", open_low=True)


class TD3BCObjective(TD3Objective):
    """TD3's losses with a behaviour-cloning term in the actor's."""

    name = "td3_bc"
    repeatable = True

    def actor_loss(self, batch: Batch) -> Term:
        """Normalised policy gradient plus behaviour cloning (arXiv 2106.06860, eq. 5)."""
        loss, action, info = self.policy_loss(batch)
        bc = mean_square(action, batch.action)  # (M,)
        return Term(loss + bc, {**info, "actor/bc": bc.detach()})


class TD3BC(Agent):
    """TD3+BC offline, TD3 online."""

    name = "td3_bc"
    config_class = TD3BCConfig
    online_choices = ("td3", "same")
    config: TD3BCConfig

    def _networks(self) -> dict[str, object]:
        return {"stochastic": False, "target_actor": True}

    def _offline_objective(self) -> Objective:
        return TD3BCObjective(self.networks, self.settings.td3, self.settings.discount, self.settings.bc_alpha)

    def _online_objective(self, choice: str) -> Objective:
        return TD3Objective(self.networks, self.settings.td3, self.settings.discount, self.settings.bc_alpha)
