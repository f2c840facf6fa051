"""Settings that every agent shares, and the presets that papers published per domain."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Self, get_type_hints

from o2o_smooth.errors import ConfigError

DOMAINS = ("mujoco", "antmaze", "adroit", "kitchen", "pointmaze", "corridor", "other")


@cache
def _presets() -> dict[str, dict[str, dict[str, Any]]]:
    text = resources.files("o2o_smooth.agents").joinpath("presets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def published(algorithm: str, domain: str) -> dict[str, Any]:
    """What an algorithm's paper sets for a domain, and for all of them; empty where it says nothing."""
    tables = _presets().get(algorithm, {})
    return {**tables.get("default", {}), **tables.get(domain, {})}


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ConfigError(text)


def require_range(config: object, low: float, high: float, *names: str, open_low: bool = False) -> None:
    """Check that numeric fields lie in [low, high] (or (low, high]).

    Raises:
        ConfigError: Names the field and the range.
    """
    for name in names:
        value = getattr(config, name)
        inside = (low < value if open_low else low <= value) and value <= high
        if not inside:
            bracket = "(" if open_low else "["
            raise ConfigError(f"{name} must lie in {bracket}{low:g}, {high:g}], got {value}")


def build_config(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a (nested) config dataclass from plain values.

    Raises:
        ConfigError: An unknown key or a value of the wrong kind.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{cls.__name__} has no setting '{key}'; it has {', '.join(sorted(known))}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            arguments[key] = build_config(hint, value)  # type: ignore[arg-type]
        else:
            arguments[key] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


@dataclass(frozen=True)
class AgentConfig:
    """Settings that every agent shares."""

    algorithm: ClassVar[str] = ""

    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Polyak rate of the target networks."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of every network."""
    num_critics: int = 2
    """Critics in the ensemble; targets use their minimum."""
    critic_layer_norm: bool = False
    """LayerNorm in critics and V; it limits wild extrapolation and helps at the switch."""
    actor_layer_norm: bool = False
    """LayerNorm in the actor."""
    normalize_observations: bool = False
    """Normalise observations by the dataset's mean and deviation, frozen at the switch."""
    normalize_rewards: bool = False
    """Scale rewards by 1000 / (largest - smallest return of an episode in the data), as IQL does for MuJoCo; frozen at
    the switch. --reward-scale goes first."""
    actor_lr: float = 3e-4
    """Adam learning rate of the actor."""
    critic_lr: float = 3e-4
    """Adam learning rate of the critics."""
    value_lr: float = 3e-4
    """Adam learning rate of V (IQL)."""
    temperature_lr: float = 3e-4
    """Adam learning rate of the log temperature (SAC, CQL)."""

    def __post_init__(self) -> None:
        require_range(self, 0.0, 1.0, "discount")
        require_range(self, 0.0, 1.0, "tau", open_low=True)
        require_range(self, 0.0, 1.0, "actor_lr", "critic_lr", "value_lr", "temperature_lr")
        _require(
            bool(self.hidden_dims) and min(self.hidden_dims) > 0,
            f"hidden_dims must be one or more positive widths, got {self.hidden_dims}",
        )
        _require(self.num_critics >= 1, f"num_critics must be at least 1, got {self.num_critics}")

    @classmethod
    def preset(cls, domain: str) -> Self:
        """The published settings for one of `DOMAINS`, else the defaults.

        Raises:
            ConfigError: An unknown domain.

        Source: agents/presets.toml, with the paper of each table beside it.
        """
        if domain not in DOMAINS:
            raise ConfigError(f"there is no domain '{domain}'; there are {', '.join(DOMAINS)}")
        config: Self = build_config(cls, published(cls.algorithm, domain))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `build_config` reads them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SACObjectiveConfig:
    """SAC's own settings, wherever its objective is used."""

    initial_temperature: float = 0.1
    """Entropy temperature at the start."""
    learn_temperature: bool = True
    """Adjust the temperature towards the target entropy; otherwise it stays."""
    target_entropy: float | None = None
    """Target entropy of the policy in nats; default: minus the number of action dimensions."""
    backup_entropy: bool = True
    """Count the entropy bonus of the next action in the TD target."""

    def __post_init__(self) -> None:
        require_range(self, 0.0, 1e6, "initial_temperature", open_low=True)


@dataclass(frozen=True)
class TD3ObjectiveConfig:
    """TD3's own settings, wherever its objective is used."""

    actor_delay: int = 2
    """Critic updates per update of actor and targets."""
    target_noise: float = 0.2
    """Deviation of the smoothing noise on target actions, in units of the action range's half width."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    exploration_noise: float = 0.1
    """Deviation of the Gaussian noise on collected actions, same units."""

    def __post_init__(self) -> None:
        _require(self.actor_delay >= 1, f"actor_delay must be at least 1, got {self.actor_delay}")
        require_range(self, 0.0, 10.0, "target_noise", "noise_clip", "exploration_noise")
