"""Settings that differ between the members of one population: what may differ, and how the losses see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents.config import AgentConfig
from o2o_smooth.errors import ConfigError

HOST = -1
# Setting -> the axes it needs behind the members' to broadcast in the losses; HOST: it is read outside of them.
PER_MEMBER: dict[str, int] = {
    "discount": 1,  # (M, B)
    "tau": HOST,
    "actor_lr": HOST,
    "critic_lr": HOST,
    "value_lr": HOST,
    "temperature_lr": HOST,
    "expectile": 1,
    "beta": 1,
    "action_edge": 2,  # (M, B, A)
    "bc_alpha": 0,  # (M,)
    "cql_weight": 1,  # (M, E)
    "cql_target_gap": 1,
    "target_entropy": 1,
    "initial_temperature": HOST,
    "target_noise": 2,
    "noise_clip": 2,
    "exploration_noise": 2,
}

# Settings that nothing reads before the switch, by the beginning of their dotted names. A temperature that starts
# elsewhere is another network, so it is not among them.
_ONLINE_ONLY: dict[str, tuple[str, ...]] = {
    "iql": ("td3.", "sac.target_entropy", "temperature_lr"),
    "cql": ("td3.",),
}

Overrides = tuple[dict[str, float], ...]  # one per member: dotted setting -> value


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of a (nested) config by their dotted names."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = value
    return found


def offline_setting(algorithm: str, name: str) -> bool:
    """Whether a setting (by its dotted name) matters before the switch."""
    return not name.endswith("exploration_noise") and not name.startswith(_ONLINE_ONLY.get(algorithm, ("-",)))


def replaced(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a (nested) config with settings replaced by their dotted names."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    own |= {head: replaced(getattr(config, head), rest) for head, rest in inner.items()}
    return dataclasses.replace(config, **own)


def full_name(config: AgentConfig, name: str) -> str:
    """The dotted name of a setting that members may have each their own value of.

    Raises:
        ConfigError: There is no such setting, or members must share it.
    """
    known = leaves(config)
    matches = [full for full in known if name in (full, full.rpartition(".")[2])]
    may = sorted(full for full in known if full.rpartition(".")[2] in PER_MEMBER)
    if not matches:
        raise ConfigError(
            f"{type(config).__name__} has no setting '{name}'; settings that may differ between members are "
            f"{', '.join(may)}"
        )
    if matches[0] not in may:
        raise ConfigError(
            f"'{name}' changes the shapes or the structure of the computation and cannot differ between members of "
            f"one population; give such members runs of their own. These may differ: {', '.join(may)}"
        )
    return matches[0]


def settle(
    config: AgentConfig, overrides: Sequence[Mapping[str, float | None]] | None, members: int, action_dim: int
) -> tuple[AgentConfig, Overrides]:
    """Tell what all members share from what differs.

    Args:
        config: The settings of every member that names no other.
        overrides: One mapping per member: setting (`expectile`, `td3.target_noise` or just `target_noise`) -> value.
        members: M.
        action_dim: A; the target entropy's default hangs on it.

    Returns:
        The settings with what all members agree on, and per member the dotted settings in which any two differ.

    Raises:
        ConfigError: A mapping too many or too few, a setting that cannot differ, or a value out of range.
    """
    if overrides is None:
        return config, ({},) * members
    if len(overrides) != members:
        raise ConfigError(f"overrides has {len(overrides)} entries, one per member makes {members}")
    given = [{full_name(config, name): value for name, value in one.items()} for one in overrides]
    base = leaves(config)
    shared: dict[str, Any] = {}
    apart: list[dict[str, float]] = [{} for _ in range(members)]
    for name in dict.fromkeys(key for one in given for key in one):
        values = [_number(name, one.get(name, base[name]), m) for m, one in enumerate(given)]
        if all(value == values[0] for value in values):
            shared[name] = values[0]
            continue
        for own, value in zip(apart, values, strict=True):
            if value is None and name.endswith("target_entropy"):
                value = -float(action_dim)
            if value is None:
                raise ConfigError(
                    f"'{name}' is off for some members and on for others, which changes the structure of the "
                    f"computation; give such members runs of their own"
                )
            own[name] = value
    config = replaced(config, shared)
    for m, own in enumerate(apart):
        try:
            replaced(config, own)
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from None
    return config, tuple(apart)


def _number(name: str, value: Any, member: int) -> float | None:
    if value is None or (isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise ConfigError(f"member {member}: {name} must be a number, got {value!r}")


class Settings:
    """A config as the losses read it: `settings.expectile` is a number, or a tensor where members differ.

    Such a tensor is (M, 1, ...), ready to broadcast in its loss, and keeps its identity through `double()`. A setting
    that is read on the host alone (learning rates, tau) is an (M,) array instead.

    Args:
        config: What all members share.
        overrides: From `settle`.
        device: Where the losses are computed.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: Any, overrides: Overrides, device: torch.device) -> None:
        self._config = config
        self._values: dict[str, NDArray[np.float64]] = {}  # by the names of this level
        self._nested: list[Settings] = []
        own = [name for name in (overrides[0] if overrides else {}) if "." not in name]
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                prefix = f"{field.name}."
                below = tuple(
                    {k.removeprefix(prefix): v for k, v in one.items() if k.startswith(prefix)} for one in overrides
                )
                value = Settings(value, below, device)
                self._nested.append(value)
            elif field.name in own:
                values = np.array([one[field.name] for one in overrides])
                self._values[field.name] = values
                axes = PER_MEMBER[field.name]
                value = values
                if axes != HOST:
                    value = torch.as_tensor(values, dtype=torch.float32, device=device).reshape(-1, *[1] * axes)
            setattr(self, field.name, value)

    def host(self, name: str) -> float | NDArray[np.float64]:
        """A setting of this level on the host: a number, or (M,) where members differ."""
        values = self._values.get(name)
        return values.copy() if values is not None else float(getattr(self._config, name))

    def double(self) -> None:
        """Turn the tensors to float64; those who hold one see it too."""
        for name, values in self._values.items():
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                tensor.data = torch.as_tensor(values, device=tensor.device).reshape(tensor.shape)
        for inner in self._nested:
            inner.double()
