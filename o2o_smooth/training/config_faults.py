"""Settings of what a run does when numbers go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from o2o_smooth.errors import ConfigError

OnNan = Literal["stop", "rollback"]


@dataclass(frozen=True)
class FaultConfig:
    """What happens when NaN or infinity turns up in a loss, a gradient or an observation."""

    on_nan: Literal["stop", "rollback"] = "stop"
    """stop: end the run, before the step that would spread it, and keep the batch for inspection. rollback: keep it
    too, go back to the newest good checkpoint and go on from there with other random draws."""
    max_rollbacks: int = 3
    """Times that a run goes back before it stops after all."""
    nan_check_every: int = 32
    """Updates between looks for a broken gradient (in Adam's second moments, which no NaN or infinity leaves again).
    Losses are looked at in every update; on a GPU both this often, without waiting for it. 0: neither."""

    def __post_init__(self) -> None:
        if self.on_nan not in get_args(OnNan):
            raise ConfigError(f"on_nan must be stop or rollback, got '{self.on_nan}'")
        for name in ("max_rollbacks", "nan_check_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
