"""Actor-critics that expose an offline and an online objective over the same networks."""

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.blending import GradientReport
from o2o_smooth.agents.config import AgentConfig, SACObjectiveConfig, TD3ObjectiveConfig
from o2o_smooth.agents.cql import CQL, CQLConfig
from o2o_smooth.agents.iql import IQL, IQLConfig
from o2o_smooth.agents.sac import SAC, SACConfig
from o2o_smooth.agents.storage import load_agent
from o2o_smooth.agents.td3 import TD3, TD3Config
from o2o_smooth.agents.td3_bc import TD3BC, TD3BCConfig

AGENTS: dict[str, type[Agent]] = {cls.name: cls for cls in (IQL, CQL, TD3BC, SAC, TD3)}

__all__ = [
    "AGENTS",
    "CQL",
    "IQL",
    "SAC",
    "TD3",
    "TD3BC",
    "Agent",
    "AgentConfig",
    "CQLConfig",
    "GradientReport",
    "IQLConfig",
    "SACConfig",
    "SACObjectiveConfig",
    "TD3BCConfig",
    "TD3Config",
    "TD3ObjectiveConfig",
    "load_agent",
]
