"""Groups of settings of a run: what else can hold a policy together at the switch. All of it is off by default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import COMPONENTS

if TYPE_CHECKING:
    from o2o_smooth.training.config import RunConfig

Parts = Literal["actor", "critic", "all"]
_PARTS = ("actor", "critic", "all")

TREATMENTS = ("hygiene", "anchors", "averaging")
"""The groups of a run's settings that are here: an arm that differs in them is eased, whatever its schedule."""


@dataclass(frozen=True)
class HygieneConfig:
    """What happens at the switch besides smoothing: warm-up, order, optimiser, rates, temperature."""

    warm_up_steps: int = 0
    """Online steps per seed that the policy of the switch collects before the first update; ramps in env_steps begin
    at their end (WSRL: 5000)."""
    critic_first_updates: int = 0
    """First online updates in which the actor, and the temperature with it, stand still while the critics learn."""
    reset_optimizer: str | None = None
    """Components whose Adam moments are cleared at the switch: all, or some of actor,critic,value,temperature with
    commas."""
    rewarm_updates: int = 0
    """Learning rates rise from 0 over each component's first so many online updates: the k-th has k/N of its rate."""
    switch_temperature: Literal["carry", "reset", "interpolate"] = "carry"
    """SAC's temperature at the switch. carry: as it is. reset: back to initial_temperature. interpolate: log alpha goes
    from the one to the other along the temperature's curve, and is learned from its end on."""

    def __post_init__(self) -> None:
        for name in ("warm_up_steps", "critic_first_updates", "rewarm_updates"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.switch_temperature not in ("carry", "reset", "interpolate"):
            raise ConfigError(
                f"switch_temperature must be carry, reset or interpolate, got '{self.switch_temperature}'"
            )
        self.reset_components()

    def reset_components(self) -> tuple[str, ...]:
        """The components of `reset_optimizer`; of `all`, those that an agent may have.

        Raises:
            ConfigError: There is no such component.
        """
        if self.reset_optimizer is None:
            return ()
        names = [name.strip() for name in self.reset_optimizer.split(",")]
        if names == ["all"]:
            return COMPONENTS
        for name in names:
            if name not in COMPONENTS:
                raise ConfigError(
                    f"reset_optimizer takes all, or some of {', '.join(COMPONENTS)} with commas, got '{name}' in "
                    f"'{self.reset_optimizer}'"
                )
        return tuple(dict.fromkeys(names))

    @property
    def acts_on_updates(self) -> bool:
        """Whether updates differ from what they would be without; warm-up only moves the first one."""
        return any((self.critic_first_updates, self.reset_optimizer, self.rewarm_updates)) or (
            self.switch_temperature != "carry"
        )


@dataclass(frozen=True)
class AnchorConfig:
    """Terms that pull the policy or its parameters back to where they were at the switch."""

    anchor_kl: float = 0.0
    """Kickstarting: this, decaying, times KL(pi at the switch || pi) on online states; deterministic actors: the
    squared error of the action."""
    anchor_kl_decay: float = 1.0
    """Factor on that coefficient at every online update."""
    anchor_kl_floor: float = 0.0
    """It never falls below this."""
    anchor_bc: float = 0.0
    """Behaviour cloning: this, decaying, times -log pi(a|s) on offline rows; deterministic actors: the squared
    error."""
    anchor_bc_decay: float = 1.0
    """Factor on that coefficient at every online update."""
    anchor_bc_floor: float = 0.0
    """It never falls below this."""
    anchor_ewc: float = 0.0
    """EWC: half of this times the squared way from the parameters at the switch, weighted by their Fisher information
    on offline rows."""
    anchor_ewc_rows: int = 4096
    """Offline rows for the Fisher information."""
    anchor_l2: float = 0.0
    """This times the squared way from the parameters at the switch."""
    anchor_parts: Parts = "actor"
    """What anchor_ewc and anchor_l2 hold: actor, critic (critics and V) or all."""

    def __post_init__(self) -> None:
        for name in ("anchor_kl", "anchor_bc", "anchor_ewc", "anchor_l2", "anchor_kl_floor", "anchor_bc_floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"{name} must be a number that is not negative, got {value}")
        for name in ("anchor_kl", "anchor_bc"):
            start, decay, floor = (getattr(self, f"{name}{end}") for end in ("", "_decay", "_floor"))
            if not 0.0 < decay <= 1.0:
                raise ConfigError(f"{name}_decay must lie in (0, 1], got {decay}")
            if floor > start:
                raise ConfigError(f"{name}_floor must not be above {name} ({start:g}), got {floor:g}")
            if not start and decay != 1.0:
                raise ConfigError(f"{name}_decay has no effect without {name}")
        if self.anchor_ewc_rows < 1:
            raise ConfigError(f"anchor_ewc_rows must be at least 1, got {self.anchor_ewc_rows}")
        if self.anchor_parts not in _PARTS:
            raise ConfigError(f"anchor_parts must be one of {', '.join(_PARTS)}, got '{self.anchor_parts}'")

    @property
    def on(self) -> bool:
        """Whether there is any anchor."""
        return any((self.anchor_kl, self.anchor_bc, self.anchor_ewc, self.anchor_l2))

    @property
    def copies(self) -> int:
        """Tensors as large as the parameters, at most: the policy, the start, the way from it, Fisher information."""
        held = 3 if self.anchor_l2 or self.anchor_ewc else 0
        return int(self.on) + held + (2 if self.anchor_ewc else 0)

    @property
    def needs_offline_rows(self) -> bool:
        """Whether offline rows are needed after the switch or at it."""
        return bool(self.anchor_bc or self.anchor_ewc)


@dataclass(frozen=True)
class AveragingConfig:
    """Averages of parameters after the switch."""

    sfa_period: float = 0.0
    """SFA: after every such share of the online updates, and at their end, parameters go part of the way back to those
    of the switch; 0: never."""
    sfa_share: float = 0.5
    """That part of the way."""
    sfa_parts: Parts = "all"
    """What goes back: actor, critic (critics and V) or all."""
    ema_decay: float = 0.0
    """Act and evaluate with a running mean of the actor, which keeps this much of itself at every online update, and
    train the raw one; 0: act with the raw one."""

    def __post_init__(self) -> None:
        for name in ("sfa_period", "sfa_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.sfa_parts not in _PARTS:
            raise ConfigError(f"sfa_parts must be one of {', '.join(_PARTS)}, got '{self.sfa_parts}'")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")

    @property
    def on(self) -> bool:
        """Whether anything is averaged."""
        return bool(self.sfa_period or self.ema_decay)

    @property
    def copies(self) -> int:
        """Tensors as large as the parameters, at most."""
        return bool(self.sfa_period) + bool(self.ema_decay)


def check_hygiene(config: RunConfig[Any]) -> None:
    """Check what these groups and the rest of a run's settings say of each other.

    Raises:
        ConfigError: Names the settings.
    """
    hygiene, anchors = config.hygiene, config.anchors
    if hygiene.warm_up_steps and config.random_steps:
        raise ConfigError("warm_up_steps collects with the policy of the switch, random_steps without; leave one out")
    if anchors.anchor_bc and config.smoothing.regime == "discard":
        raise ConfigError("anchor_bc needs offline rows, which regime discard drops at the switch; use retain or mixed")
    if config.online_steps == 0:
        return
    if hygiene.warm_up_steps >= config.online_steps:
        raise ConfigError(
            f"warm_up_steps ({hygiene.warm_up_steps}) leaves no update within online_steps ({config.online_steps})"
        )
    updates = int(config.utd * max(0, config.online_steps - max(config.update_after, hygiene.warm_up_steps)))
    if 0 < updates <= hygiene.critic_first_updates:
        raise ConfigError(
            f"critic_first_updates ({hygiene.critic_first_updates}) leaves the actor none of {updates} online updates"
        )
