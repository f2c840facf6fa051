"""The settings of a run: frozen dataclasses that are the command line, the config file and the manifest at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, cast

from o2o_smooth.agents import AGENTS, AgentConfig
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.rules import RETURN_RULES, rule_name
from o2o_smooth.training.config_adaptive import AdaptiveConfig
from o2o_smooth.training.config_checkpoints import CheckpointConfig
from o2o_smooth.training.config_envs import EnvConfig
from o2o_smooth.training.config_faults import FaultConfig
from o2o_smooth.training.config_files import apply_values, read_toml, unknown
from o2o_smooth.training.config_groups import REGIME_SHARE, EvaluationConfig, Regime, SmoothingConfig
from o2o_smooth.training.config_hygiene import AnchorConfig, AveragingConfig, HygieneConfig, check_hygiene
from o2o_smooth.training.config_switch import SwitchConfig
from o2o_smooth.training.run_presets import run_preset

__all__ = [
    "REGIME_SHARE",
    "AdaptiveConfig",
    "AnchorConfig",
    "AveragingConfig",
    "CheckpointConfig",
    "EnvConfig",
    "EvaluationConfig",
    "FaultConfig",
    "HygieneConfig",
    "Regime",
    "RunConfig",
    "SmoothingConfig",
    "SwitchConfig",
    "apply_values",
    "default_config",
    "read_toml",
    "unknown",
]

C = TypeVar("C", bound=AgentConfig)


@dataclass(frozen=True)
class RunConfig(Generic[C]):
    """Pretrain offline, switch, fine-tune online with a smoothed objective."""

    hyper: C
    """The agent's settings."""
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    """How the offline objective gives way to the online one."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    """Settings of the adaptive rules."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """When and how the policy is evaluated."""
    hygiene: HygieneConfig = field(default_factory=HygieneConfig)
    """What happens at the switch besides smoothing."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """What pulls back to the switch."""
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    """Averages of parameters."""
    switch: SwitchConfig = field(default_factory=SwitchConfig)
    """What is checked at the switch, and what is watched after it."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What a stopped run goes on from."""
    environments: EnvConfig = field(default_factory=EnvConfig)
    """What is done about environments that fail."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """What happens when numbers go wrong."""
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
    online_stream: int = 0
    """Another number draws all that is random after the switch anew (environments, exploration, batches), and leaves
    pretraining and evaluation as they are: the same arm twice shows how far chance alone takes two arms apart."""
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
    """Of the hidden layers' matrix products in updates; everything else is fp32. bf16 is faster where the CPU has
    AVX512-BF16 or AMX or the GPU is Ampere or newer; docs/speed.md shows what it does to returns."""
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
        for name in ("offline_updates", "online_steps", "online_stream", "random_steps"):
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
        rule = rule_name(self.smoothing.schedule)
        if self.random_steps and rule in RETURN_RULES:
            raise ConfigError(f"random_steps would make random episodes the yardstick of {rule}; leave one out")
        if rule == "td_gate" and self.smoothing.regime == "discard":
            raise ConfigError("td_gate compares with offline rows, and regime discard keeps none; use retain or mixed")
        if self.offline_updates == 0 and self.online_steps == 0 and self.pretrained is None:
            raise ConfigError("nothing to do: offline_updates and online_steps are both 0")
        check_hygiene(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return dataclasses.asdict(self)


def default_config(
    task: str, agent: str, domain: str, values: Mapping[str, Any] | None = None, where: str = "config"
) -> RunConfig[Any]:
    """The settings of a run before flags: the presets for the task's domain, then the config file's values.

    Raises:
        ConfigError: An unknown agent or key.
    """
    cls = AGENTS.get(agent)
    if cls is None:
        raise ConfigError(unknown("agent", agent, AGENTS))
    hyper = cls.config_class.preset(domain)
    config: RunConfig[Any] = RunConfig(hyper=hyper, task=task, agent=agent)
    config = apply_values(config, run_preset(agent, domain), "run_presets.toml")
    return cast("RunConfig[Any]", apply_values(config, values or {}, where))
