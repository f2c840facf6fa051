"""A suite: which tasks, agents and arms are compared under which protocol, as its TOML file says.

Settings are laid over each other in this order, the later ones go first: the presets of agent and domain, `[protocol]`,
the task's, the agent's, every matching `[[overrides]]`. All of them hold for the whole run. An arm's settings hold from
the switch on; what it has in `pretraining` holds for the whole run, and gives it a pretraining of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from o2o_smooth.benchmarks.sweeps import Sweep, read_sweeps
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import RunConfig, read_toml, unknown

_TOP = ("name", "description", "protocol", "tasks", "agents", "arms", "overrides", "sweep", "placement", "data")
_OF_ARM = ("name", "only_tasks", "only_agents", "pretraining")
_OF_OVERRIDE = ("task", "agent", "arm")
_GROUPS = tuple(
    f.name for f in dataclasses.fields(RunConfig) if f.name == "hyper" or f.default_factory is not dataclasses.MISSING
)
NEVER = frozenset(("pretrained", "out", "overwrite", "task", "agent"))
"""Settings of a run that a suite says in another way, or the runner decides."""

Values = dict[str, Any]


@dataclass(frozen=True)
class TaskEntry:
    """A task of a suite."""

    name: str
    """In tables."""
    task: str
    settings: Values
    """For the whole run."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent of a suite."""

    name: str
    """In tables."""
    agent: str
    settings: Values
    """For the whole run."""


@dataclass(frozen=True)
class ArmEntry:
    """A way to switch."""

    name: str
    """In tables."""
    settings: Values
    """From the switch on."""
    pretraining: Values
    """For the whole run: such an arm has a pretraining of its own."""
    only_tasks: tuple[str, ...] = ()
    """Names of tasks; none: all."""
    only_agents: tuple[str, ...] = ()
    """Names of agents; none: all."""


@dataclass(frozen=True)
class Override:
    """Settings for a task, an agent, an arm, or a combination of these."""

    settings: Values
    task: str | None = None
    agent: str | None = None
    arm: str | None = None
    """With an arm the settings hold from the switch on, as the arm's own."""

    def matches(self, task: str, agent: str, arm: str | None) -> bool:
        """Whether it holds for these names."""
        return self.task in (None, task) and self.agent in (None, agent) and self.arm == arm


@dataclass(frozen=True)
class PlacementSettings:
    """How runs are put into jobs; 0 leaves the number to the runner."""

    seeds_per_job: int = 0
    """Seeds that are trained as one population."""
    arms_per_job: int = 0
    """Arms that are trained as one population."""
    cpus: int = 1
    """Cores of a job."""
    gpus: float = 0.0
    """Share of a GPU that a job takes, with device cuda: 0.25 lets four jobs share one; 0: a whole one."""

    def __post_init__(self) -> None:
        for name in ("seeds_per_job", "arms_per_job", "gpus"):
            if getattr(self, name) < 0:
                raise ConfigError(f"[placement] {name} must not be negative, got {getattr(self, name)}")
        if self.cpus < 1:
            raise ConfigError(f"[placement] cpus must be at least 1, got {self.cpus}")


@dataclass(frozen=True)
class Suite:
    """A suite as its file says, sweeps already among the arms."""

    name: str
    description: str
    protocol: Values
    """Settings of all runs, `seeds` among them."""
    tasks: tuple[TaskEntry, ...]
    agents: tuple[AgentEntry, ...]
    arms: tuple[ArmEntry, ...]
    overrides: tuple[Override, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    data: Mapping[str, str] = field(default_factory=dict)
    """How a dataset that is not there is made: its id, and the options of `o2o-smooth data make`."""
    text: str = ""
    """The file's."""
    where: str = "suite"
    """The file, for messages."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all runs."""
        return tuple(self.protocol["seeds"])


def shipped() -> dict[str, Path]:
    """The suites of this package by name."""
    folder = Path(str(resources.files("o2o_smooth.benchmarks").joinpath("suites")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_suite(name: str) -> Path:
    """The file that a name means: a shipped suite's, or a path.

    Raises:
        ConfigError: There is none.
    """
    if name in shipped():
        return shipped()[name]
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    raise ConfigError(unknown("suite", name, shipped()) + "; or give a TOML file")


def load_suite(name: str) -> Suite:
    """Read a suite by its name or path.

    Raises:
        ConfigError: It is absent, or something in it is unknown or does not fit; the text names it.
    """
    path = find_suite(name)
    return read_suite(read_toml(path), where=str(path), text=path.read_text(encoding="utf-8"), base=path.parent)


def read_suite(content: Mapping[str, Any], *, where: str = "suite", text: str = "", base: Path | None = None) -> Suite:
    """A suite from its parsed file.

    Args:
        content: What the TOML file holds.
        where: The file, for messages.
        text: The file's text, which a study keeps.
        base: Folder from which relative paths of datasets and task files are looked for first.

    Raises:
        ConfigError: See `load_suite`.
    """
    _known(content, _TOP, where)
    name = content.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{where}: a suite needs a name: name = "my-study"')
    protocol = _settings(_table(content, "protocol", where), f"{where}: [protocol]", base, allowed=("seeds",))
    protocol = {"seeds": [0], "save_online": False, **protocol}
    _check_seeds(protocol["seeds"], f"{where}: [protocol]")
    tasks = [_task(row, f"{where}: [[tasks]]", base) for row in _rows(content, "tasks", where)]
    agents = [_agent(row, f"{where}: [[agents]]", base) for row in _rows(content, "agents", where)]
    arms = [_arm(row, f"{where}: [[arms]]", base) for row in _rows(content, "arms", where)]
    sweeps = read_sweeps(content.get("sweep", []), where)
    arms += _swept(sweeps, arms, where)
    entries: Sequence[tuple[str, Sequence[TaskEntry | AgentEntry | ArmEntry]]] = (
        ("tasks", tasks),
        ("agents", agents),
        ("arms", arms),
    )
    for kind, found in entries:
        _distinct([entry.name for entry in found], kind, where)
    overrides = [_override(row, f"{where}: [[overrides]]", base) for row in _overrides(content, where)]
    for override in overrides:
        for kind, names in (("task", tasks), ("agent", agents), ("arm", arms)):
            _named(getattr(override, kind), names, kind, f"{where}: [[overrides]]")
    for arm in arms:
        for kind, names, chosen in (("task", tasks, arm.only_tasks), ("agent", agents, arm.only_agents)):
            for one in chosen:
                _named(one, names, kind, f"{where}: arm '{arm.name}'")
    return Suite(
        name,
        str(content.get("description", "")),
        protocol,
        tuple(tasks),
        tuple(agents),
        tuple(arms),
        tuple(overrides),
        tuple(sweeps),
        _placement(_table(content, "placement", where), where),
        _data(_table(content, "data", where), where),
        text,
        where,
    )


def flatten(values: Mapping[str, Any]) -> Values:
    """Settings by their flags' names alone: tables of groups are opened, `-` becomes `_`."""
    flat: Values = {}
    for raw, value in values.items():
        key = raw.replace("-", "_")
        if key in _GROUPS and isinstance(value, Mapping):
            flat |= flatten(value)
        else:
            flat[key] = value
    return flat


def merged(layers: Iterable[Mapping[str, Any]]) -> Values:
    """Settings laid over each other, the later ones first; tables such as [hyper.sac] are laid over each other too."""
    found: Values = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(found.get(key), Mapping):
                found[key] = merged([found[key], value])
            else:
                found[key] = value
    return found


def safe(name: str) -> str:
    """A name in characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")


def _known(content: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in content:
        if key not in keys:
            raise ConfigError(f"{where}: " + unknown("key", key, dict.fromkeys(keys)))


def _table(content: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = content.get(key, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: '{key}' is a table, write [{key}]")
    return found


def _rows(content: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    found = content.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(row, Mapping) for row in found):
        raise ConfigError(f"{where}: a suite needs at least one [[{key}]] table")
    return found


def _overrides(content: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    return _rows(content, "overrides", where) if content.get("overrides") else []


def _settings(values: Mapping[str, Any], where: str, base: Path | None, allowed: Sequence[str] = ()) -> Values:
    """Settings of runs, but for those that have no place here; which fields there are is checked with the agent."""
    flat = flatten(values)
    for key in flat:
        if key in NEVER or (key == "seeds" and key not in allowed):
            cure = "seeds stand in [protocol]" if key == "seeds" else "the runner decides it"
            cure = f"write [[{key}s]]" if key in ("task", "agent") else cure
            raise ConfigError(f"{where}: '{key}' cannot be set here; {cure}")
    if isinstance(flat.get("dataset"), str):
        flat["dataset"] = _resolved(flat["dataset"], base)
    return flat


def _resolved(text: str, base: Path | None) -> str:
    """A path beside the suite, where there is one; workers may run elsewhere."""
    name, mark, rest = text.partition("#")
    for folder in (base, Path.cwd()):
        if folder is not None and not Path(name).expanduser().is_absolute() and (folder / name).exists():
            return f"{(folder / name).resolve()}{mark}{rest}"
    return text


def _check_seeds(seeds: Any, where: str) -> None:
    good = isinstance(seeds, list) and seeds and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not good or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"{where}: seeds must be a list of distinct integers, not negative, got {seeds!r}")


def _text(row: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f'{where}: each needs {key} = "...", got {value!r}')
    return value


def _names(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{where}: {key} must be a list of names, got {value!r}")
    return tuple(value)


def _rest(row: Mapping[str, Any], keys: Sequence[str]) -> Values:
    return {key: value for key, value in row.items() if key not in keys}


def _task(row: Mapping[str, Any], where: str, base: Path | None) -> TaskEntry:
    task = _text(row, "task", where)
    settings = _settings(_rest(row, ("name", "task")), f"{where} {task}", base)
    return TaskEntry(_text(row, "name", where, task), _resolved(task, base) if ".toml" in task else task, settings)


def _agent(row: Mapping[str, Any], where: str, base: Path | None) -> AgentEntry:
    agent = _text(row, "agent", where)
    settings = _settings(_rest(row, ("name", "agent")), f"{where} {agent}", base)
    return AgentEntry(_text(row, "name", where, agent), agent, settings)


def _arm(row: Mapping[str, Any], where: str, base: Path | None) -> ArmEntry:
    default = row["schedule"] if isinstance(row.get("schedule"), str) else None
    name = _text(row, "name", where, default)
    where = f"{where} '{name}'"
    before = row.get("pretraining", {})
    if not isinstance(before, Mapping):
        raise ConfigError(f"{where}: 'pretraining' is a table: pretraining = {{expectile = 0.9}}")
    return ArmEntry(
        name,
        _settings(_rest(row, _OF_ARM), where, base),
        _settings(before, f"{where}: pretraining", base),
        _names(row, "only_tasks", where),
        _names(row, "only_agents", where),
    )


def _override(row: Mapping[str, Any], where: str, base: Path | None) -> Override:
    if not any(key in row for key in _OF_OVERRIDE):
        raise ConfigError(f"{where}: each names a task, an agent, an arm, or several of these")
    names = {key: _text(row, key, where) for key in _OF_OVERRIDE if key in row}
    return Override(_settings(_rest(row, _OF_OVERRIDE), where, base), **names)


def _swept(sweeps: Sequence[Sweep], arms: Sequence[ArmEntry], where: str) -> list[ArmEntry]:
    """The arms of all sweeps."""
    found: list[ArmEntry] = []
    for sweep in sweeps:
        name = sweep.arm or arms[0].name
        _named(name, arms, "arm", f"{where}: [sweep]")
        start = next(arm for arm in arms if arm.name == name)
        found += [
            dataclasses.replace(
                start,
                name=f"{start.name} {point.text}",
                settings={**start.settings, **flatten(point.settings)},
                pretraining={**start.pretraining, **flatten(point.pretraining)},
            )
            for point in sweep.points()
        ]
    return found


def _named(name: str | None, entries: Sequence[TaskEntry | AgentEntry | ArmEntry], kind: str, where: str) -> None:
    names = [entry.name for entry in entries]
    if name is not None and name not in names:
        raise ConfigError(f"{where}: " + unknown(kind, name, dict.fromkeys(names)))


def _distinct(names: Sequence[str], kind: str, where: str) -> None:
    """Names become folders."""
    seen: dict[str, str] = {}
    for name in names:
        if not safe(name):
            raise ConfigError(f"{where}: [[{kind}]] '{name}' has no letter or number for the name of a folder")
        other = seen.setdefault(safe(name).casefold(), name)
        if other is not name or names.count(name) > 1:
            raise ConfigError(
                f"{where}: [[{kind}]] '{other}' and '{name}' would share the folder {safe(name)}; give one another name"
            )


def _placement(table: Mapping[str, Any], where: str) -> PlacementSettings:
    fields = {f.name: f for f in dataclasses.fields(PlacementSettings)}
    _known(table, tuple(fields), f"{where}: [placement]")
    for key, value in table.items():
        kind = (int, float) if key == "gpus" else int
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{where}: [placement] {key} must be a number, got {value!r}")
    return PlacementSettings(**table)


def _data(table: Mapping[str, Any], where: str) -> dict[str, str]:
    for key, value in table.items():
        if not isinstance(value, str):
            raise ConfigError(f'{where}: [data] says how a set is made: "{key}" = "--task ... --policy ..."')
    return dict(table)
