"""The main job on a small task: one pretraining, four ways to switch, a table and a picture.

IQL is pretrained offline on PointMaze (UMaze, dense reward; the data is made on the spot by a scripted controller) and
fine-tuned online with SAC's objective from the same checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from o2o_smooth.agents import IQLConfig, SACObjectiveConfig
from o2o_smooth.benchmarks.fork import fork, paired_table
from o2o_smooth.benchmarks.placement import Population
from o2o_smooth.errors import ConfigError
from o2o_smooth.stability.report import rich_table
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.forking import ForkArm, with_controls
from o2o_smooth.training.progress import show_progress
from o2o_smooth.training.run import run

TASK = "D4RL/pointmaze/umaze-dense-v2"


@dataclass(frozen=True)
class DemoConfig:
    """The main job on a small task: pretrain IQL offline, switch to SAC online in four ways, show what happened."""

    out: str = "runs/demo"
    """Folder of the results; if it is taken, a number is added."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """One run per seed and arm; all arms of a seed start from the same checkpoint."""
    offline_updates: int = 8_000
    """Gradient steps before the switch."""
    online_steps: int = 10_000
    """Environment steps per seed after the switch."""
    ramp_steps: int = 5000
    """Length of the linear ramp, and of the gate's if it never closes."""
    eval_episodes: int = 20
    """Episodes per evaluation and seed."""
    controls: bool = False
    """Add the controls of a comparison: stay, jump straight to a floor, and one arm again with other random numbers."""
    population: Population = "auto"
    """stack: all arms that can share one batched learner do. processes: arms side by side, one thread each. auto:
    whichever is predicted to be faster here; both give the same numbers up to float rounding."""

    def __post_init__(self) -> None:
        if self.online_steps < 1:
            raise ConfigError(f"online_steps must be at least 1, got {self.online_steps}")


def arms(config: DemoConfig, base: Path) -> list[ForkArm]:
    """The four arms, forked from the pretraining in `base`, and the controls where they are wanted."""
    switches = {
        "jump": SmoothingConfig("jump"),
        "jump, mixed batch": SmoothingConfig("jump", regime="mixed"),
        "linear": SmoothingConfig("linear", ramp_steps=config.ramp_steps),
        "performance gate": SmoothingConfig("performance_gate", ramp_steps=config.ramp_steps),
    }
    shared = _settings(config, SmoothingConfig(), pretrained=str(base / "pretrain"), online_steps=config.online_steps)
    found = [ForkArm(name, dataclasses.replace(shared, smoothing=s)) for name, s in switches.items()]
    return with_controls(found, shared) if config.controls else found


def _settings(config: DemoConfig, smoothing: SmoothingConfig, **rest: Any) -> RunConfig[Any]:
    return RunConfig(
        hyper=IQLConfig(
            hidden_dims=(128, 128),
            critic_layer_norm=False,
            expectile=0.7,
            beta=3.0,
            sac=SACObjectiveConfig(initial_temperature=0.1),
        ),
        smoothing=smoothing,
        evaluation=EvaluationConfig(
            eval_episodes=config.eval_episodes, switch_episodes=2 * config.eval_episodes, eval_every=1000
        ),
        task=TASK,
        agent="iql",
        online="sac",
        seeds=config.seeds,
        offline_updates=config.offline_updates,
        num_envs=1,
        batch_size=128,
        **rest,
    )


def demo(config: DemoConfig, console: Console | None = None) -> int:
    """Run the demo; returns the exit code."""
    console = console or Console(emoji=False)
    begin = time.perf_counter()
    base = _free_folder(Path(config.out))
    with show_progress() as progress:
        pretraining = _settings(config, SmoothingConfig(), out=str(base / "pretrain"), online_steps=0, threads=1)
        run(pretraining, progress, name="pretrain IQL")
        found = fork(
            arms(config, base),
            base,
            progress,
            title="IQL → SAC at the switch, PointMaze UMaze dense",
            heading=f"IQL pretrained offline, SAC online: {TASK}",
            command=f"o2o-smooth demo {_flags(config)}",
            population=config.population,
            join=False,
        )
    console.print(rich_table(found.rows, title="IQL pretrained offline, SAC online, PointMaze UMaze dense"))
    console.print(paired_table(found.paired))
    console.print(f"took {(time.perf_counter() - begin) / 60:.1f} minutes", highlight=False)
    console.print(f"table:   {found.results}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"picture: {found.picture}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _free_folder(wanted: Path) -> Path:
    path, k = wanted, 2
    while path.exists():
        path, k = wanted.with_name(f"{wanted.name}-{k}"), k + 1
    return path


def _flags(config: DemoConfig) -> str:
    """The settings as on the command line."""
    parts = []
    for name, value in dataclasses.asdict(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else "")
        elif name != "out":
            parts.append(f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return " ".join(part for part in parts if part)
