"""Settings of what is done about environments that fail."""

from __future__ import annotations

import math
from dataclasses import dataclass

from o2o_smooth.envs.supervision import Supervision
from o2o_smooth.errors import ConfigError


@dataclass(frozen=True)
class EnvConfig:
    """What is done about environments that fail."""

    env_timeout: float = 60.0
    """Seconds that an environment in a process of its own (--vectorizer async) may take for a step or a reset; then its
    process is killed and started anew. In this process (sync) one that hangs cannot be stopped."""
    env_restarts: int = 10
    """How often environments that raise, hang or are killed are made anew in a run, all together; the running episode
    is dropped and counted. One failure more ends the run, and so do three of one environment in a row."""

    def __post_init__(self) -> None:
        if not 0.0 < self.env_timeout < math.inf:
            raise ConfigError(f"env_timeout must be a positive number of seconds, got {self.env_timeout}")
        if self.env_restarts < 0:
            raise ConfigError(f"env_restarts must not be negative, got {self.env_restarts}")

    def supervision(self) -> Supervision:
        """As the environments take it."""
        return Supervision(timeout_s=self.env_timeout, max_restarts=self.env_restarts)
