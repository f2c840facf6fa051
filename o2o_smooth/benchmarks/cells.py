"""What a suite asks for: a cell for each task, agent and arm, with the settings of its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.config import build_config
from o2o_smooth.benchmarks.suite import AgentEntry, ArmEntry, Override, Suite, TaskEntry, merged
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import RunConfig, apply_values, default_config, unknown
from o2o_smooth.training.forking import COMMON, ForkArm, check_arms

_SHAPING = frozenset(
    [
        *("hidden_dims", "num_critics", "critic_layer_norm", "actor_layer_norm"),
        *("normalize_observations", "normalize_rewards", "holdout"),
    ]
)
"""Settings that cannot change at the switch."""
_LENGTHS: dict[str | None, tuple[str, ...]] = {
    None: ("offline_updates", "online_steps", "random_steps"),
    "smoothing": ("ramp_steps",),
    "evaluation": ("eval_every", "offline_eval_every"),
    "hygiene": ("warm_up_steps", "critic_first_updates", "rewarm_updates"),
    "adaptive": ("signal_every",),
}
"""Settings that `scaled` makes shorter, by group."""
_SCHEDULES = ("schedule", "actor_schedule", "critic_schedule", "value_schedule", "temperature_schedule")


@dataclass(frozen=True)
class Cell:
    """One run that a suite asks for, with all its seeds."""

    task: str
    agent: str
    arm: str
    """Names as in the suite."""
    base: RunConfig[Any]
    """As it is pretrained."""
    config: RunConfig[Any]
    """As it goes on from the switch."""
    settings: Mapping[str, Any]
    """Those that make the arm."""


@dataclass(frozen=True)
class Filters:
    """What part of a suite is wanted; None: all of it."""

    tasks: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    scale: float = 1.0
    """Factor on budgets, ramps and distances between evaluations, for trying a suite out."""
    device: str | None = None
    """Replaces the suite's."""

    def __post_init__(self) -> None:
        if not 0.0 < self.scale <= 1.0:
            raise ConfigError(f"--scale must lie in (0, 1], got {self.scale:g}")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0):
            raise ConfigError(f"--seeds must be distinct and not negative, got {' '.join(map(str, self.seeds))}")


def make_cells(suite: Suite, filters: Filters | None = None) -> list[Cell]:
    """Every run of a suite, in its order.

    Raises:
        ConfigError: An unknown name or setting, a value out of range, or arms that cannot be told apart; the text
            names the place.
        EnvError: An unknown task.
    """
    filters = filters or Filters()
    tasks = _chosen(suite.tasks, filters.tasks, "task")
    agents = _chosen(suite.agents, filters.agents, "agent")
    arms = _chosen(suite.arms, filters.arms, "arm")
    cells: list[Cell] = []
    for task in tasks:
        for agent in agents:
            own = [arm for arm in arms if _wanted(arm, task, agent)]
            found = [_cell(suite, filters, task, agent, arm) for arm in own]
            if found:
                _check_apart(suite, task, agent, found)
            cells += found
    if not cells:
        raise ConfigError(f"{suite.where}: nothing is left to run: no arm is meant for the chosen tasks and agents")
    return cells


def _wanted(arm: ArmEntry, task: TaskEntry, agent: AgentEntry) -> bool:
    return (not arm.only_tasks or task.name in arm.only_tasks) and (
        not arm.only_agents or agent.name in arm.only_agents
    )


def _cell(suite: Suite, filters: Filters, task: TaskEntry, agent: AgentEntry, arm: ArmEntry) -> Cell:
    where = f"{suite.where}: {task.name}, {agent.name}"
    protocol = {key: value for key, value in suite.protocol.items() if key != "seeds"}
    if filters.device is not None:
        protocol["device"] = filters.device
    layers = [protocol, task.settings, agent.settings, *_matching(suite.overrides, task, agent, None), arm.pretraining]
    seeds = suite.seeds if filters.seeds is None else filters.seeds
    try:
        domain = find_task(task.task).domain
        base = default_config(task.task, agent.agent, domain, {**merged(layers), "seeds": list(seeds)}, where)
        values = merged([arm.settings, *_matching(suite.overrides, task, agent, arm)])
        if base.offline_updates:
            _check_after(values, f"{suite.where}: arm '{arm.name}'")
        config = apply_values(base, values, f"{where}, arm '{arm.name}'")
        if config.online_steps == 0:
            raise ConfigError("online_steps is 0, which leaves nothing to compare")
        base, config = scaled(base, filters.scale), scaled(config, filters.scale)
    except ConfigError as error:
        raise error if suite.where in str(error) else ConfigError(f"{where}, arm '{arm.name}': {error}") from None
    settings = {**values, **arm.pretraining}
    return Cell(task.name, agent.name, arm.name, base, config, settings)


def _matching(
    overrides: Sequence[Override], task: TaskEntry, agent: AgentEntry, arm: ArmEntry | None
) -> list[Mapping[str, Any]]:
    name = None if arm is None else arm.name
    return [one.settings for one in overrides if one.matches(task.name, agent.name, name)]


def _check_after(values: Mapping[str, Any], where: str) -> None:
    """Refuse settings of an arm that it cannot have of its own from the switch on."""
    for key in values:
        if key in _SHAPING:
            raise ConfigError(
                f"{where}: '{key}' cannot change at the switch; write pretraining = {{{key} = ...}}, and the arm "
                f"gets a pretraining of its own"
            )
        if key in COMMON:
            raise ConfigError(
                f"{where}: '{key}' is shared by all arms of a task and agent, or they could not be compared; give it "
                f"in [protocol], [[tasks]], [[agents]] or [[overrides]]"
            )


def _check_apart(suite: Suite, task: TaskEntry, agent: AgentEntry, cells: Sequence[Cell]) -> None:
    """Refuse two arms that are one run; arms of different pretrainings never are."""
    bases: list[RunConfig[Any]] = []
    for cell in cells:
        if cell.base in bases:
            continue
        bases.append(cell.base)
        same = [ForkArm(other.arm, other.config) for other in cells if other.base == cell.base]
        try:
            check_arms(same)
        except ConfigError as error:
            raise ConfigError(f"{suite.where}: {task.name}, {agent.name}: {error}") from None


def _chosen(entries: Sequence[Any], names: Sequence[str] | None, kind: str) -> list[Any]:
    """The entries of these names, in the suite's order."""
    if names is None:
        return list(entries)
    known = dict.fromkeys(entry.name for entry in entries)
    for name in names:
        if name not in known:
            raise ConfigError(f"--{kind}s: " + unknown(kind, name, known))
    return [entry for entry in entries if entry.name in names]


def scaled(config: RunConfig[Any], factor: float) -> RunConfig[Any]:
    """The same run with budgets, ramps and distances between evaluations made shorter."""
    if factor == 1.0:
        return config
    changes: dict[str, Any] = {}
    for group, names in _LENGTHS.items():
        holder = config if group is None else getattr(config, group)
        values: dict[str, Any] = {name: _part(getattr(holder, name), factor) for name in names}
        if group == "smoothing":
            values |= {name: _shorter(getattr(holder, name), factor) for name in _SCHEDULES}
        changes |= values if group is None else {group: replace(holder, **values)}
    return replace(config, **changes)


def _part(value: int | float | None, factor: float) -> float | None:
    """So much of a number of steps: 0 and None stay, nothing else becomes 0."""
    if not value:
        return value
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def _shorter(text: str | None, factor: float) -> str | None:
    """A schedule with its steps made fewer; `floor:0.2` is a share and stays."""
    if text is None:
        return None
    parts = []
    for part in text.split("+"):
        name, colon, rest = part.partition(":")
        first, second, others = rest.partition(":")
        try:
            steps = f"{max(1, round(float(first) * factor))}" if colon and name.strip() != "floor" else first
        except ValueError:
            steps = first
        parts.append(f"{name}{colon}{steps}{second}{others}")
    return "+".join(parts)


def from_dict(values: Mapping[str, Any]) -> RunConfig[Any]:
    """The settings that `RunConfig.to_dict` wrote, exactly; what older versions did not have is at its default.

    Raises:
        ConfigError: An unknown key.
    """
    agent = AGENTS.get(str(values.get("agent")))
    if agent is None:
        raise ConfigError(unknown("agent", str(values.get("agent")), AGENTS))
    template: RunConfig[Any] = RunConfig(hyper=agent.config_class(), agent=agent.name)
    known = {f.name: getattr(template, f.name) for f in dataclasses.fields(template)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown("setting", key, known))
        if dataclasses.is_dataclass(known[key]):
            found[key] = build_config(type(known[key]), value)
        else:
            found[key] = tuple(value) if isinstance(value, list) else value
    return RunConfig(**found)
