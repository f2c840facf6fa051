"""Which runs can share one batched learner, and how their members differ in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from o2o_smooth.agents import AgentConfig
from o2o_smooth.agents.settings import PER_MEMBER, leaves, offline_setting
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import REGIME_SHARE, RunConfig, SmoothingConfig

# What a run keeps to itself; everything else is shared, or differs as a setting of the agent or a curve.
_OWN = ("hyper", "smoothing", "adaptive", "checkpoints", "seeds", "online_stream", "out", "overwrite", "save_online")
_SHARED_GROUPS = ("evaluation", "switch", "hygiene", "anchors", "averaging")
_SINKS = ("wandb", "wandb_project", "tensorboard")
_CURVES = (
    "schedule",
    "ramp_steps",
    "ramp_unit",
    "actor_schedule",
    "critic_schedule",
    "value_schedule",
    "temperature_schedule",
)


@dataclass(frozen=True)
class Group:
    """Runs that share one learner."""

    indices: tuple[int, ...]  # of the configs
    reason: str  # why they are not in the first group; empty for the first


def shared_settings(config: RunConfig[Any]) -> dict[str, Any]:
    """All that runs of one learner must agree on, by the name of the setting."""
    own = (*_OWN, *_SINKS, *_SHARED_GROUPS)
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in own}
    for group in _SHARED_GROUPS:
        shared |= dataclasses.asdict(getattr(config, group))
    hyper = leaves(config.hyper)
    shared |= {name: value for name, value in hyper.items() if name.rpartition(".")[2] not in PER_MEMBER}
    if "cql_target_gap" in hyper:
        shared["cql_target_gap"] = "on" if hyper["cql_target_gap"] is not None else "off"
    if hyper.get("calibrated"):
        shared["discount"] = config.hyper.discount  # of the Monte-Carlo returns, which lie in the shared rows
    return shared | _shared_smoothing(config.smoothing)


def _shared_smoothing(smoothing: SmoothingConfig) -> dict[str, Any]:
    shared = {f.name: getattr(smoothing, f.name) for f in dataclasses.fields(smoothing) if f.name not in _CURVES}
    if shared["offline_fraction"] is None:
        shared["offline_fraction"] = REGIME_SHARE[smoothing.regime]
    if smoothing.offline_fraction_end is not None:  # it follows a curve, whose length is the ramp's
        shared |= {"ramp_steps": smoothing.ramp_steps, "ramp_unit": smoothing.ramp_unit}
    return shared


def groups(configs: Sequence[RunConfig[Any]], names: Sequence[str] | None = None) -> list[Group]:
    """Sort runs into those that can share a learner, in the order of their first members.

    Args:
        configs: The runs.
        names: What the reasons call them; default: their numbers.
    """
    names = names or [f"run {i + 1}" for i in range(len(configs))]
    keys = [shared_settings(config) for config in configs]
    firsts: list[int] = []
    found: dict[int, list[int]] = {}
    for i, key in enumerate(keys):
        home = next((f for f in firsts if keys[f] == key), None)
        if home is None:
            firsts.append(i)
            home = i
        found.setdefault(home, []).append(i)
    reasons = {f: "" if f == firsts[0] else _reason(names, keys, firsts[0], f) for f in firsts}
    return [Group(tuple(found[f]), reasons[f]) for f in firsts]


def _reason(names: Sequence[str], keys: Sequence[Mapping[str, Any]], first: int, other: int) -> str:
    a, b = keys[first], keys[other]
    differing = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    texts = [f"{name} ({a.get(name, 'none')} and {b.get(name, 'none')})" for name in differing]
    return f"'{names[other]}' cannot share a learner with '{names[first]}': they differ in {', '.join(texts)}"


def require_shared(configs: Sequence[RunConfig[Any]], names: Sequence[str] | None = None) -> None:
    """Check that runs can share one learner.

    Raises:
        ConfigError: They cannot; the text names the settings.
    """
    found = groups(configs, names)
    if len(found) > 1:
        raise ConfigError(f"{found[1].reason}; run them apart")


@dataclass(frozen=True)
class Members:
    """The members of a population that serves several runs.

    Pretraining can have fewer: members that are one until the switch (arms of one seed that differ in what happens
    online alone) are pretrained once.
    """

    hyper: AgentConfig  # what all share
    seeds: tuple[int, ...]  # (M,)
    overrides: tuple[dict[str, float | None], ...]  # (M,)
    pretrained_as: tuple[int, ...]  # (M,): positions among the members of the pretraining
    firsts: tuple[int, ...]  # (U,): of each member of the pretraining, one that it serves
    streams: tuple[int, ...]  # (M,): `RunConfig.online_stream`

    @property
    def shares_pretraining(self) -> bool:
        """Whether there are fewer members before the switch than after it."""
        return len(self.firsts) < len(self.seeds)


def make_members(configs: Sequence[RunConfig[Any]]) -> Members:
    """The population of runs that can share a learner: each run's seeds, one run after the other."""
    hyper: AgentConfig = configs[0].hyper
    own = [leaves(config.hyper) for config in configs]
    differing = [name for name in own[0] if any(o[name] != own[0][name] for o in own)]
    seeds = tuple(seed for config in configs for seed in config.seeds)
    streams = tuple(config.online_stream for config in configs for _ in config.seeds)
    overrides = tuple({name: o[name] for name in differing} for o, c in zip(own, configs, strict=True) for _ in c.seeds)
    before = [n for n in differing if offline_setting(hyper.algorithm, n)]
    keys = [(seed, *(o[name] for name in before)) for seed, o in zip(seeds, overrides, strict=True)]
    unique = list(dict.fromkeys(keys))
    return Members(
        hyper,
        seeds,
        overrides,
        tuple(unique.index(key) for key in keys),
        tuple(keys.index(key) for key in unique),
        streams,
    )
