"""The settings of a run: frozen dataclasses that are the command line, the config file and the manifest at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from o2o_smooth.agents import AGENTS, AgentConfig
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing import OfflineShare, PerformanceGateConfig, SmoothingController
from o2o_smooth.smoothing.controller import make_rule
from o2o_smooth.smoothing.schedules import parse_schedule

C = TypeVar("C", bound=AgentConfig)
Regime = Literal["retain", "mixed", "discard"]
REGIME_SHARE: dict[str, float] = {"retain": 0.0, "mixed": 0.5, "discard": 0.0}


@dataclass(frozen=True)
class SmoothingConfig:
    """How the offline objective gives way to the online one after the switch."""

    schedule: str = "linear"
    """Weight of the online objective over time: jump | stay | linear | cosine | exponential | sigmoid | power | steps,
    each with its own length (linear:5000) or --ramp-steps, with modifiers in front (hold:1000+linear,
    floor:0.2+linear); or the adaptive performance_gate, which advances while the return holds and retreats when it does
    not."""
    ramp_steps: int = 5000
    """Length of the ramp, in --ramp-unit."""
    ramp_unit: Literal["env_steps", "updates"] = "env_steps"
    """What the ramp counts, per seed."""
    actor_schedule: str | None = None
    """The actor's own curve; default: --schedule."""
    critic_schedule: str | None = None
    """The critics' own curve; V follows it unless it has its own."""
    value_schedule: str | None = None
    """V's own curve (IQL)."""
    temperature_schedule: str | None = None
    """The temperature's own curve."""
    weight_in: Literal["raw", "effective"] = "raw"
    """raw: the curve is the weight w. effective: the curve is the share of the online gradient in the step."""
    mode: Literal["loss", "target", "matched"] = "loss"
    """loss: blend the losses. target: blend the TD targets. matched: bring both gradients to one norm first."""
    regime: Regime = "retain"
    """retain: offline loss on offline rows, online loss on online rows. mixed: both on one batch of both kinds of rows.
    discard: the offline rows are gone at the switch."""
    offline_fraction: float | None = None
    """Share of offline rows in the online objective's batch; default: 0.5 with mixed, otherwise 0."""
    offline_fraction_end: float | None = None
    """Where that share is annealed to; default: it stays."""
    offline_fraction_schedule: str = "linear"
    """The curve along which the share is annealed."""
    gate_share: float = 0.85
    """performance_gate: open while the running return is at least this share of the return at the switch (measured from
    the random policy's, where known)."""
    gate_retreat: float = 2.0
    """performance_gate: speed of retreat relative to advance; 0 holds instead."""
    gate_interval: float = 250.0
    """performance_gate: steps between decisions, in --ramp-unit."""
    gate_episodes: int = 4
    """performance_gate: episodes in the yardstick at the switch, and in the running return."""

    def __post_init__(self) -> None:
        if self.ramp_steps < 1:
            raise ConfigError(f"ramp_steps must be at least 1, got {self.ramp_steps}")
        if self.regime not in REGIME_SHARE:
            raise ConfigError(f"regime must be one of {', '.join(REGIME_SHARE)}, got '{self.regime}'")
        for name in ("offline_fraction", "offline_fraction_end"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must lie in [0, 1], got {value}")
        share = REGIME_SHARE[self.regime] if self.offline_fraction is None else self.offline_fraction
        if self.regime == "discard" and (share or self.offline_fraction_end):
            raise ConfigError("regime discard has no offline rows: offline_fraction must be 0 (or choose regime mixed)")
        if self.offline_fraction_end is None and self.offline_fraction_schedule != "linear":
            raise ConfigError("offline_fraction_schedule has no effect without offline_fraction_end")
        self.controller(members=1)  # every text must be readable now, not at the switch

    def controller(self, *, members: int, lanes: int = 1, random_return: float | None = None) -> SmoothingController:
        """The controller these settings describe, for `members` with `lanes` parallel environments each.

        Raises:
            ConfigError: A schedule that cannot be read.
        """
        share = REGIME_SHARE[self.regime] if self.offline_fraction is None else self.offline_fraction
        overrides = {
            name: text
            for name in ("actor", "critic", "value", "temperature")
            if (text := getattr(self, f"{name}_schedule")) is not None
        }
        try:
            gate = PerformanceGateConfig(
                share=self.gate_share,
                retreat=self.gate_retreat,
                interval=self.gate_interval,
                reference_episodes=self.gate_episodes,
                window=self.gate_episodes,
            )
            return SmoothingController(
                make_rule(
                    self.schedule,
                    self.ramp_steps,
                    members=members,
                    lanes=lanes,
                    random_return=random_return,
                    gate=gate,
                ),
                ramp_steps=self.ramp_steps,
                overrides=overrides,
                offline_share=OfflineShare(
                    share, self.offline_fraction_end, parse_schedule(self.offline_fraction_schedule, self.ramp_steps)
                ),
                members=members,
                unit=self.ramp_unit,
                weight_in=self.weight_in,
                mode=self.mode,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class EvaluationConfig:
    """When and how the policy is evaluated, on environments and seeds of its own."""

    eval_episodes: int = 20
    """Episodes per evaluation and seed."""
    switch_episodes: int = 40
    """Episodes of the evaluation at the switch (J0), which everything is compared with."""
    eval_envs: int = 10
    """Parallel evaluation environments per seed; each runs the same number of episodes."""
    eval_every: int | None = None
    """Online steps per seed between evaluations, after the dense first ones (250, 500, 1000, ...); default: a
    twentieth of --online-steps."""
    offline_eval_every: int | None = None
    """Offline updates between evaluations; default: a quarter of --offline-updates; 0: only at the switch."""

    def __post_init__(self) -> None:
        for name in ("eval_episodes", "switch_episodes", "eval_envs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_every is not None and self.eval_every < 1:
            raise ConfigError(f"eval_every must be at least 1, got {self.eval_every}")
        if self.offline_eval_every is not None and self.offline_eval_every < 0:
            raise ConfigError(f"offline_eval_every must not be negative, got {self.offline_eval_every}")

    def online_steps(self, budget: int) -> list[int]:
        """Evaluation points after the switch: log-spaced from 250, then regular, and the end of the budget."""
        every = self.eval_every or max(1, budget // 20)
        points = {budget, *range(every, budget + 1, every)}
        step = 250
        while step < min(every, budget):
            points.add(step)
            step *= 2
        return sorted(points)


@dataclass(frozen=True)
class RunConfig(Generic[C]):
    """Pretrain offline, switch, fine-tune online with a smoothed objective."""

    hyper: C
    """The agent's settings."""
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    """How the offline objective gives way to the online one."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """When and how the policy is evaluated."""
    task: str = "D4RL/pointmaze/umaze-dense-v2"
    """A D4RL id (hopper-medium-v2), a Minari id (D4RL/pointmaze/umaze-v2) or any registered gymnasium id."""
    agent: str = "iql"
    """iql | cql | td3_bc | sac | td3. Settings follow the agent's published preset for the task's domain."""
    online: str | None = None
    """Online objective: sac | td3 | same; default: the agent's first choice (sac for iql and cql, td3 for td3_bc)."""
    dataset: str | None = None
    """Offline data: a Minari id; an .hdf5 file in D4RL's layout or an .npz file; the folder of a Minari dataset or of a
    finished run (what it collected). Default: the task's own."""
    provenance: Literal["d4rl", "minari", "generated", "own"] | None = None
    """Where the data come from, if the source does not tell it right. Scores of different provenance do not share a
    table."""
    pretrained: str | None = None
    """A run or checkpoint folder to fork from instead of pretraining. Task, agent and its settings, seeds, data, reward
    map, num_envs, utd, batch size and evaluation are the checkpoint's unless given."""
    seeds: tuple[int, ...] = (0,)
    """One run per seed, trained together as one population."""
    offline_updates: int = 100_000
    """Gradient steps before the switch."""
    online_steps: int = 100_000
    """Environment steps per seed after the switch; 0 stops at the switch."""
    num_envs: int = 1
    """Environments per seed that collect in parallel."""
    vectorizer: Literal["sync", "async", "envpool"] = "sync"
    """Step environments in this process (sync), each in a process of its own (async), or in threads by the envpool
    package: same dynamics, other starts of episodes, and only for gymnasium's MuJoCo tasks."""
    overlap: Literal["auto", "on", "off"] = "auto"
    """Step environments while the learner works; results are the same. auto: with async and envpool, and with a learner
    on a GPU."""
    utd: float = 1.0
    """Updates per environment step of a seed."""
    batch_size: int = 256
    """Rows per objective and seed."""
    update_after: int = 64
    """Online steps per seed before the first online update."""
    random_steps: int = 0
    """First online steps per seed with uniformly random actions (for agents without pretraining)."""
    buffer_size: int = 1_000_000
    """Online rows kept per seed; the oldest go first."""
    reward_scale: float | None = None
    """Factor on rewards, for dataset and collector alike; default: the task's. Scores are always in raw rewards."""
    reward_shift: float | None = None
    """Shift of rewards after scaling, for dataset and collector alike; default: the task's."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads for the learner; default: one for small networks, where more only wait for each other, else
    torch's choice."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the hidden layers' matrix products in updates; everything else is fp32. bf16 is faster where the CPU has AMX
    or the GPU is Ampere or newer; docs/speed.md shows what it does to returns."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update with torch.compile: slower to start. auto: only where it has been measured to pay."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """Launch several updates at once as a CUDA graph; results are the same up to rounding. auto: on a GPU, and where a
    graph cannot be captured updates go on without; on: that is an error."""
    memory_check: bool = True
    """Refuse a run whose predicted peak of memory cannot be had (o2o-smooth doctor shows it part by part)."""
    log_every: int | None = None
    """Steps (offline: updates; online: environment steps per seed) between rows of metrics.jsonl; default: a hundredth
    of the phase."""
    out: str | None = None
    """Folder of the run; default: runs/TASK-AGENT-SCHEDULE."""
    overwrite: bool = False
    """Replace a finished or broken run in that folder."""
    save_online: bool = True
    """Keep what was collected online as a dataset, online/seed-N.hdf5, for --dataset of other runs."""
    wandb: bool = False
    """Also log to Weights & Biases (extra: wandb; works with WANDB_MODE=offline)."""
    wandb_project: str = "o2o-smooth"
    """W&B project."""
    tensorboard: bool = False
    """Also log to TensorBoard (extra: tensorboard)."""

    def __post_init__(self) -> None:
        agent = AGENTS.get(self.agent)
        if agent is None:
            raise ConfigError(unknown("agent", self.agent, AGENTS))
        if not isinstance(self.hyper, agent.config_class):
            raise ConfigError(f"agent {self.agent} needs settings of {agent.config_class.__name__}")
        if self.online is not None and self.online not in agent.online_choices:
            raise ConfigError(
                f"agent {self.agent} cannot go on with online='{self.online}'; it offers "
                f"{', '.join(agent.online_choices)}"
            )
        if not self.seeds:
            raise ConfigError("at least one seed is needed")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds must be distinct and not negative, got {' '.join(map(str, self.seeds))}")
        for name in ("offline_updates", "online_steps", "random_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("num_envs", "batch_size", "update_after", "buffer_size", "log_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.overlap not in ("auto", "on", "off"):
            raise ConfigError(f"overlap must be auto, on or off, got '{self.overlap}'")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if not 0.0 < self.utd <= 1000.0:
            raise ConfigError(f"utd must be positive (updates per environment step), got {self.utd}")
        if self.reward_scale is not None and not 0.0 < self.reward_scale < math.inf:
            raise ConfigError(f"reward_scale must be positive, got {self.reward_scale}")
        if self.reward_shift is not None and not math.isfinite(self.reward_shift):
            raise ConfigError(f"reward_shift must be finite, got {self.reward_shift}")
        if self.random_steps and self.smoothing.schedule.startswith("performance_gate"):
            raise ConfigError("random_steps would make random episodes the performance gate's yardstick; leave one out")
        if self.offline_updates == 0 and self.online_steps == 0 and self.pretrained is None:
            raise ConfigError("nothing to do: offline_updates and online_steps are both 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return dataclasses.asdict(self)


def unknown(kind: str, name: str, choices: Mapping[str, object]) -> str:
    """Text for an unknown name, with the closest ones, or all where they are few."""
    close = difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else ""
    every = f"available: {', '.join(choices)}" if len(choices) <= 12 or not close else ""
    return f"there is no {kind} '{name}'; " + " ".join(part for part in (hint, every) if part)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        ConfigError: The file is absent or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None


def apply_values(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy of a config dataclass with values put in by name.

    A name is a flag's name (with - or _), at the top level or inside its group's table; groups may be left out because
    names are unique.

    Raises:
        ConfigError: An unknown key or a value of the wrong type, named together with `where` it stands.
    """
    own: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for raw_key, value in values.items():
        path = _find(config, raw_key.replace("-", "_"))
        if path is None:
            raise ConfigError(f"{where}: " + unknown("setting", raw_key, dict.fromkeys(_names(config))))
        head = getattr(config, path[0])
        if len(path) > 1:
            groups.setdefault(path[0], {})[raw_key] = value
        elif not dataclasses.is_dataclass(head):
            own[path[0]] = _convert(path[0], value, _hint(config, path[0]), where)
        elif isinstance(value, Mapping):
            groups.setdefault(path[0], {}).update(value)
        else:
            raise ConfigError(f"{where}: '{path[0]}' is a group of settings, write [{path[0]}] and its settings below")
    # All at once, since settings are checked against each other.
    own |= {name: apply_values(getattr(config, name), inner, where) for name, inner in groups.items()}
    return dataclasses.replace(config, **own)


def _hint(config: Any, name: str) -> str:
    return next(str(f.type) for f in dataclasses.fields(config) if f.name == name)


def _names(config: Any) -> list[str]:
    names: list[str] = []
    for f in dataclasses.fields(config):
        inner = getattr(config, f.name)
        names += [f.name] if not dataclasses.is_dataclass(inner) else [f.name, *_names(inner)]
    return names


def _find(config: Any, key: str) -> list[str] | None:
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if key in fields:
        return [key]
    for name, inner in fields.items():
        if dataclasses.is_dataclass(inner) and (path := _find(inner, key)) is not None:
            return [name, *path]
    return None


def _convert(name: str, value: Any, hint: str, where: str) -> Any:
    """Check a TOML value against a field's annotation (as text; annotations are postponed)."""
    if hint.startswith("tuple[int"):
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(v, int) and not isinstance(v, bool) for v in items):
            return tuple(items)
    elif hint.startswith("bool"):
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool):
        pass
    elif hint.startswith("int"):
        if isinstance(value, int):
            return value
    elif hint.startswith("float"):
        if isinstance(value, int | float):
            return float(value)
    elif hint.startswith("Literal") or hint == "Regime":
        choices = (
            ("retain", "mixed", "discard")
            if hint == "Regime"
            else tuple(part.strip().strip("\"'") for part in hint[hint.index("[") + 1 : hint.rindex("]")].split(","))
        )
        if value in choices:
            return value
        raise ConfigError(f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}")
    elif isinstance(value, str):
        return value
    words = {
        "tuple[int, ...]": "a list of integers",
        "bool": "true or false",
        "int": "an integer",
        "float": "a number",
        "str": "a string",
    }
    raise ConfigError(f"{where}: {name} must be {words.get(hint.split(' |')[0], hint)}, got {value!r}")


def default_config(
    task: str, agent: str, domain: str, values: Mapping[str, Any] | None = None, where: str = "config"
) -> RunConfig[Any]:
    """The settings of a run before flags: the agent's preset for the task's domain, then the config file's values.

    Raises:
        ConfigError: An unknown agent or key.
    """
    cls = AGENTS.get(agent)
    if cls is None:
        raise ConfigError(unknown("agent", agent, AGENTS))
    hyper = cls.config_class.preset(domain)
    config: RunConfig[Any] = RunConfig(hyper=hyper, task=task, agent=agent)
    return cast("RunConfig[Any]", apply_values(config, values or {}, where))
