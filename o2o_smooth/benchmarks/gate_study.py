"""What the performance gate does against the other ways to switch: dip area and final score, paired by seed.

    python -m o2o_smooth.benchmarks.gate_study --task pointmaze corridor hopper --out runs/gate-study

Per task one pretraining per seed is shared by all arms, which go on to five times the ramp. What is finished is not
done again: the command can be interrupted and repeated. RESULTS.md in each task's folder has the table, the gate's
paired differences from every other arm, command and versions.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from o2o_smooth.benchmarks.arms import run_arms
from o2o_smooth.benchmarks.placement import Population
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.files import written_whole
from o2o_smooth.stability.curves import Curve
from o2o_smooth.stability.intervals import PairedDifference, paired_difference
from o2o_smooth.stability.metrics import stability_metrics
from o2o_smooth.stability.report import arm_table, render_table, table_note
from o2o_smooth.training.config import Regime, RunConfig, SmoothingConfig, default_config
from o2o_smooth.training.manifest import versions
from o2o_smooth.training.pictures import draw_arms, read_manifest
from o2o_smooth.training.progress import ProgressSink, show_progress
from o2o_smooth.training.run import run

TaskName = Literal["pointmaze", "corridor", "hopper"]
RAMPS = 5  # the budget in ramps: a window that ends with the ramp shows a false victory
GATE = "gate"


@dataclass(frozen=True)
class Study:
    """How one task is run."""

    task: str
    agent: str
    ramp_steps: int
    offline_updates: int
    regime: Regime
    """Of all arms but the two jumps."""
    settings: Mapping[str, Any]
    """Beyond the presets of agent and domain."""


STUDIES: dict[TaskName, Study] = {
    "pointmaze": Study(
        "D4RL/pointmaze/umaze-dense-v2",
        "iql",
        5000,
        20_000,
        "retain",
        {
            "hidden_dims": [128, 128],
            "critic_layer_norm": False,
            "expectile": 0.7,
            "beta": 3.0,
            "initial_temperature": 0.1,
            "batch_size": 128,
        },
    ),
    "corridor": Study("corridor-mixed-v0", "td3_bc", 1000, 2000, "mixed", {"batch_size": 64}),
    # Small networks and batches, so that seventy fine-tunings take two cores an hour and not a day.
    "hopper": Study("hopper-medium-v2", "iql", 5000, 20_000, "retain", {"hidden_dims": [128, 128], "batch_size": 128}),
}
SCHEDULES: dict[str, tuple[str, Regime | None, int]] = {
    "jump": ("jump", "retain", 0),
    "jump, mixed batch": ("jump", "mixed", 0),
    "linear": ("linear", None, 0),
    "jump to a floor": ("floor:0.2+jump", None, 0),
    "stay": ("stay", None, 0),
    GATE: ("performance_gate", None, 0),
    f"{GATE} (A/A)": ("performance_gate", None, 1),
}
"""Arms: schedule, regime where it is not the study's, and which draw of all that is random after the switch. The gate
twice is the yardstick: other differences from it that are no larger are noise."""


@dataclass(frozen=True)
class GateStudy:
    """Compare the performance gate with jump, jump on a mixed batch, linear, a floor and stay."""

    task: tuple[TaskName, ...] = ("pointmaze", "corridor", "hopper")
    """Tasks to run."""
    out: Path = Path("runs/gate-study")
    """Folder of the results, one below it per task; what is finished there is kept."""
    seeds: int = 10
    """Seeds 0, 1, ... of each arm; all arms of a seed start from the same checkpoint."""
    ramp_steps: int | None = None
    """Length of ramps; default: the task's."""
    offline_updates: int | None = None
    """Gradient steps before the switch; default: the task's."""
    online_steps: int | None = None
    """Environment steps per seed after the switch; default: five ramps."""
    eval_episodes: int = 20
    """Episodes per evaluation and seed; twice as many at the switch."""
    dataset: str | None = None
    """Offline data instead of the task's own; with one task."""
    population: Population = "auto"
    """stack: arms that can share one batched learner do. processes: arms side by side. auto: what is faster here."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ConfigError(f"seeds must be at least 2 for paired differences, got {self.seeds}")
        if self.dataset is not None and len(self.task) != 1:
            raise ConfigError("dataset is for one task; give one --task")
        for name in ("ramp_steps", "offline_updates", "online_steps", "eval_episodes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def arms(asked: GateStudy, name: TaskName) -> tuple[RunConfig[Any], dict[str, RunConfig[Any]]]:
    """The pretraining of a task's study, and its arms by name."""
    study, base = STUDIES[name], asked.out / name
    ramp = asked.ramp_steps or study.ramp_steps
    budget = asked.online_steps or RAMPS * ramp
    task = find_task(study.task)
    common = dataclasses.replace(
        default_config(study.task, study.agent, task.domain, study.settings),
        dataset=asked.dataset,
        seeds=tuple(range(asked.seeds)),
        offline_updates=asked.offline_updates or study.offline_updates,
    )
    evaluation = dataclasses.replace(
        common.evaluation,
        eval_episodes=asked.eval_episodes,
        switch_episodes=2 * asked.eval_episodes,
        eval_every=max(1, ramp // 5),
    )
    common = dataclasses.replace(common, evaluation=evaluation)
    pretraining = dataclasses.replace(common, online_steps=0, out=str(base / "pretrain"))
    forks = {
        arm: dataclasses.replace(
            common,
            smoothing=SmoothingConfig(schedule, ramp_steps=ramp, regime=regime or study.regime),
            online_steps=budget,
            online_stream=stream,
            pretrained=str(base / "pretrain"),
            out=str(base / folder_name(arm)),
        )
        for arm, (schedule, regime, stream) in SCHEDULES.items()
    }
    return pretraining, forks


def folder_name(arm: str) -> str:
    """Where an arm goes."""
    return re.sub(r"[^a-z]+", "-", arm.lower()).strip("-")


def study(asked: GateStudy, name: TaskName, progress: ProgressSink) -> Path:
    """Do what is left to do of one task's study; returns its table.

    Raises:
        O2OError: A run failed, or what is there was made with other settings.
    """
    pretraining, forks = arms(asked, name)
    if not _done(pretraining):
        run(dataclasses.replace(pretraining, overwrite=True), progress, name=f"{name}: pretrain")
    groups: dict[str, dict[str, RunConfig[Any]]] = {}
    for arm, config in forks.items():
        groups.setdefault(config.smoothing.regime, {})[arm] = config
    for group in groups.values():  # each shares a learner where that is faster
        left = {arm: dataclasses.replace(c, overwrite=True) for arm, c in group.items() if not _done(c)}
        if left:
            run_arms(left, progress, population=asked.population)
    return _write(asked, name, forks)


def _done(config: RunConfig[Any]) -> bool:
    """Whether a run is there, finished and of these settings.

    Raises:
        O2OError: It was made with other settings, which would be lost.
    """
    out = Path(config.out or "")
    if not (out / "manifest.json").is_file():
        return False
    manifest = read_manifest(out)
    if manifest["status"] != "completed":
        return False
    found, wanted = manifest["config"], _plain(config.to_dict())
    ignored = {"out", "overwrite", "threads"}
    differing = [k for k in wanted if k not in ignored and found.get(k) != wanted[k]]
    if differing:
        raise O2OError(
            f"{out} was made with other settings ({', '.join(differing)}); choose another --out, or delete it"
        )
    return True


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _write(asked: GateStudy, name: TaskName, forks: Mapping[str, RunConfig[Any]]) -> Path:
    base = asked.out / name
    folders = {arm: Path(config.out or "") for arm, config in forks.items()}
    curves = draw_arms(folders, base / "stability.png", title=f"{STUDIES[name].task}: the gate and other switches")
    rows = arm_table(curves)
    command = "python -m o2o_smooth.benchmarks.gate_study " + shlex.join(sys.argv[1:])
    text = (
        f"# The performance gate on {STUDIES[name].task}\n\n{asked.seeds} seeds, one pretraining each; ramp "
        f"{forks[GATE].smoothing.ramp_steps:,}, {forks[GATE].online_steps:,} online steps.\n\n"
        f"{render_table(rows)}\n{table_note(rows)}\n\n## The gate minus each other arm, paired by seed\n\n"
        f"{difference_table(curves)}\nMean difference with a 95 % interval (docs/metrics.md), and in how many seeds "
        f"the gate is better: a smaller area, a higher final score. The row of the gate itself (A/A: other random "
        f"numbers after the switch) shows what chance does.\n\n![curves](stability.png)\n\n"
        f"Command: `{command}`\n\nVersions: {', '.join(f'{k} {v}' for k, v in versions().items())}\n"
    )
    with written_whole(base / "RESULTS.md") as part:
        part.write_text(text, encoding="utf-8")
    return base / "RESULTS.md"


def difference_table(curves: Mapping[str, Sequence[Curve]]) -> str:
    """The gate minus every other arm, dip area and final score, as Markdown."""
    metrics = {arm: {c.seed: stability_metrics(c.env_steps, c.scores) for c in mine} for arm, mine in curves.items()}
    lines = ["| gate minus | dip area | better | final | better |", "|---|---:|---:|---:|---:|"]
    for arm, mine in metrics.items():
        if arm == GATE:
            continue
        seeds = sorted(mine.keys() & metrics[GATE].keys())
        cells: list[str] = []
        for name, higher in (("dip_area", False), ("final", True)):
            gate, other = ([getattr(found[s], name) for s in seeds] for found in (metrics[GATE], mine))
            difference = paired_difference(gate, other, higher_is_better=higher)
            cells += [_interval(difference), f"{difference.better} of {difference.n}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(difference: PairedDifference) -> str:
    """Mean and interval; two differences say no more than themselves."""
    if difference.n < 3:
        return f"{difference.mean:+.1f}"
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        asked = tyro.cli(GateStudy, args=arguments, description=__doc__)
        with show_progress() as progress:
            for name in asked.task:
                table = study(asked, name, progress)
                progress.note(f"{name}: {table}")
                print(table.read_text(encoding="utf-8"))
    except O2OError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
