"""The score along the straight line between two checkpoints' actors, which is also the WiSE-FT sweep.

Between the policy at the switch and the final one there may be a valley: then averaging them, or going back half-way,
gives a policy worse than both. Every point is evaluated on the same episodes, and all points of all seeds are members
of one stacked actor.

Source: WiSE-FT, Wortsman et al. 2022 (arXiv 2109.01903); here for policies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.networks import Actor
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.envs import Task, find_task
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.files import written_whole
from o2o_smooth.stability.path import Path as Way
from o2o_smooth.stability.path import read_path
from o2o_smooth.training.advice import run_folder
from o2o_smooth.training.checkpoint import SwitchRecord, find_checkpoint, named_by_path, read_record
from o2o_smooth.training.evaluate import Evaluator
from o2o_smooth.training.hygiene import acting_agent
from o2o_smooth.training.manifest import versions
from o2o_smooth.training.progress import ProgressSink, Silent

PROBE, PICTURE = "probe.json", "probe.png"
EPISODES = 2_000_000_000  # evaluation index: episodes that no training evaluation has
MOST_ENVS = 256  # at a time


@dataclass(frozen=True)
class ProbeConfig:
    """Score along the straight line between two checkpoints: is there a valley between the policy before the switch and
    the policy after it, and is a point between them better than both (the WiSE-FT sweep)? A B are run or checkpoint
    folders, given before the options: of a run folder A is its switch and B its final checkpoint; one RUN alone means
    both of that run. All points see the same episodes, in deterministic mode."""  # noqa: D205, D209 - one paragraph of --help

    points: int = 11
    """Points on the line, both ends among them."""
    episodes: int = 20
    """Episodes per point and seed."""
    seeds: tuple[int, ...] | None = None
    """Of the seeds that both checkpoints hold; default: all."""
    out: str | None = None
    """Folder of probe.json and probe.png; default: probe in the folder of the second checkpoint's run."""
    overwrite: bool = False
    """Replace a probe that is there."""
    threads: int = 1
    """CPU threads."""
    task: str | None = None
    """The task of the checkpoints, where it is module:Id: to import the module runs its code, so name it."""

    def __post_init__(self) -> None:
        if self.points < 3:
            raise ConfigError(f"points must be at least 3 (two ends and one between), got {self.points}")
        if self.episodes < 2:
            raise ConfigError(f"episodes must be at least 2, or noise cannot be told, got {self.episodes}")
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ConfigError(f"seeds must be distinct and at least one, got {' '.join(map(str, self.seeds))}")


@dataclass(frozen=True)
class Probe:
    """What a probe saw."""

    task: Task
    first: Path
    second: Path
    seeds: tuple[int, ...]
    returns: NDArray[np.float64]  # (P, S, E), raw
    scores: NDArray[np.float64]  # the same in `unit`
    unit: str
    way: Way


def probe(first: Path, second: Path | None, config: ProbeConfig, progress: ProgressSink | None = None) -> Probe:
    """Evaluate the actors on the line between two checkpoints.

    Args:
        first: A run folder (its switch) or a checkpoint folder.
        second: A run folder (its final checkpoint) or a checkpoint folder; None: of the run of `first`.
        config: The settings.
        progress: Where progress goes.

    Raises:
        CheckpointError: One is absent, or the two do not belong together.
        ConfigError: Seeds that they do not hold.
    """
    progress = progress or Silent()
    start, end = find_switch_or_agent(first), find_final(second or first)
    if second is None and not (first / "checkpoints").is_dir():
        raise CheckpointError(f"{first} is one checkpoint; give a second one, or a run folder, which has two")
    record = read_record(start)
    task = _task(record, read_record(end), first, second or first, config.task)
    agents = acting_agent(start), acting_agent(end)
    seeds = _seeds(agents, config.seeds, (start, end))
    shares = np.linspace(0.0, 1.0, config.points)
    line = Line(*agents, seeds=seeds, shares=shares.tolist(), names=(start, end))
    members = len(seeds) * config.points
    envs = _envs(config.episodes, members)
    evaluator = Evaluator(task, list(seeds) * config.points, envs=envs)
    total, done = members * config.episodes, 0

    def count(episodes: int) -> None:
        nonlocal done
        done += episodes
        progress.update("probe: episodes", done, total)

    try:
        found = evaluator.run(line.act, episodes=config.episodes, index=EPISODES, on_episode=count)
    finally:
        evaluator.close()
    returns = found.returns.reshape(config.points, len(seeds), -1)
    scores = task.score(returns)
    unit, values = ("return", returns) if scores is None else ("score", scores)
    return Probe(task, start, end, seeds, returns, values, unit, read_path(shares, values))


def find_switch_or_agent(path: Path) -> Path:
    """A checkpoint folder itself, or a run folder's switch.

    Raises:
        CheckpointError: There is none.
    """
    return path if (path / "run.json").is_file() else find_checkpoint(path)


def find_final(path: Path) -> Path:
    """A checkpoint folder itself, or a run folder's final one.

    Raises:
        CheckpointError: There is none.
    """
    final = path / "checkpoints" / "final"
    for candidate in (path, final):
        if (candidate / "run.json").is_file():
            return candidate
    if (path / "checkpoints" / "switch").is_dir():
        raise CheckpointError(f"{path} has no final checkpoint: it stopped at the switch, or did not come to its end")
    raise CheckpointError(f"{path} is neither a run folder nor a checkpoint folder (o2o-smooth run makes both)")


class Line:
    """The actors on the straight line between two agents' actors, as one stack.

    Args:
        first: At share 0.
        second: At share 1.
        seeds: Members of both to take, by seed.
        shares: (P,) of the second's parameters.
        names: What errors call the two.

    Raises:
        CheckpointError: The two have other spaces, networks or normalisers.
    """

    def __init__(
        self,
        first: Agent,
        second: Agent,
        *,
        seeds: Sequence[int],
        shares: Sequence[float],
        names: tuple[Path, Path],
    ) -> None:
        _check_alike(first, second, names)
        a, b = first.networks, second.networks
        self.networks, self.members = a, len(seeds) * len(shares)
        own, other = ([agent.seeds.index(seed) for seed in seeds] for agent in (first, second))
        self.actor = Actor(
            self.members,
            first.obs_dim,
            first.action_dim,
            [bias.shape[-1] for bias in a.actor.net.biases][:-1],
            stochastic=a.actor.stochastic,
            layer_norm=a.actor.net.layer_norm,
        ).to(a.obs_mean)
        ends = a.actor.state_dict(), b.actor.state_dict()
        self.actor.load_state_dict(
            {name: torch.cat([torch.lerp(ends[0][name][own], ends[1][name][other], w) for w in shares])
             for name in ends[0]}
        )  # fmt: skip

    @torch.no_grad()
    def act(self, obs: FloatArray) -> FloatArray:
        """Deterministic actions (M, n, A) for raw observations (M, n, O); members are points times seeds."""
        raw: Tensor = torch.as_tensor(obs).to(self.networks.obs_mean)
        action = self.networks.decode_action(self.actor.mode(self.networks.encode_obs(raw)))
        return action.numpy().astype(np.float32)


def _check_alike(first: Agent, second: Agent, names: tuple[Path, Path]) -> None:
    a, b = first.networks, second.networks
    shapes = [{name: tuple(x.shape[1:]) for name, x in n.actor.state_dict().items()} for n in (a, b)]
    if shapes[0] != shapes[1] or (first.obs_dim, first.action_dim) != (second.obs_dim, second.action_dim):
        raise CheckpointError(
            f"the actors of {names[0]} ({first.name}) and {names[1]} ({second.name}) have other shapes, so there is no "
            f"line between them; take two checkpoints of one run, or of forks of one checkpoint"
        )
    if not (torch.equal(a.obs_mean, b.obs_mean) and torch.equal(a.obs_std, b.obs_std)):
        raise CheckpointError(
            f"{names[0]} and {names[1]} normalise observations differently, so the same parameters mean other "
            f"policies; take two checkpoints of one run, or of forks of one checkpoint"
        )
    if not (torch.equal(a.action_center, b.action_center) and torch.equal(a.action_half, b.action_half)):
        raise CheckpointError(f"{names[0]} and {names[1]} have other action boxes")


def _task(first: SwitchRecord, second: SwitchRecord, a: Path, b: Path, named: str | None) -> Task:
    if first.task != second.task:
        raise CheckpointError(f"{a} is of the task {first.task} and {b} of {second.task}; a line needs one task")
    where = str(first.settings.get("task", first.task))
    return find_task(where, imports=named is not None and named_by_path(named) == where)


def _seeds(agents: tuple[Agent, Agent], wanted: Sequence[int] | None, names: tuple[Path, Path]) -> tuple[int, ...]:
    both = [seed for seed in agents[0].seeds if seed in agents[1].seeds]
    if not both:
        raise CheckpointError(f"{names[0]} and {names[1]} have no seed in common, so they are no ends of one line")
    strange = [seed for seed in wanted or () if seed not in both]
    if strange:
        raise ConfigError(f"seed {strange[0]} is not in both checkpoints; --seeds can be of {' '.join(map(str, both))}")
    return tuple(wanted or both)


def _envs(episodes: int, members: int) -> int:
    """Environments per member: all run the same number of episodes, and together they are not too many."""
    most = max(1, MOST_ENVS // members)
    return max(n for n in range(1, min(most, episodes) + 1) if episodes % n == 0)


def folder_for(found_second: Path, config: ProbeConfig) -> Path:
    """Where the results go.

    Raises:
        ConfigError: The folder is taken, or has to be named.
    """
    run = run_folder(found_second)
    if config.out is None and run is None:
        raise ConfigError(f"{found_second} belongs to no run folder; say with --out where the results go")
    folder = Path(config.out) if config.out is not None else Path(str(run)) / "probe"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another --out")
    if (folder / PROBE).exists() and not config.overwrite:
        raise ConfigError(f"{folder} holds a probe already; choose another --out, or --overwrite to replace it")
    return folder


def write_probe(found: Probe, folder: Path, command: str) -> None:
    """Write probe.json and probe.png.

    Raises:
        O2OError: The folder cannot be written.
    """
    from o2o_smooth.stability.path_plot import plot_path  # matplotlib is slow to import

    runs = run_folder(found.first), run_folder(found.second)
    ends = f"from {_short(found.first)} to {_short(found.second)}"
    if runs[0] is not None and runs[0] == runs[1]:
        ends = f"{runs[0].name} from {found.first.name} to {found.second.name}"
    title = f"{found.task.id}: {ends}"
    subtitle = f"{len(found.seeds)} seeds, {found.scores.shape[2]} episodes each; {found.way.sentence()}"
    plot_path(found.way.shares, found.scores, folder / PICTURE, title=title, subtitle=subtitle, unit=found.unit)
    content: dict[str, Any] = {
        "first": str(found.first),
        "second": str(found.second),
        "task": found.task.id,
        "references": {"random": found.task.ref_random, "expert": found.task.ref_expert},
        "seeds": list(found.seeds),
        "episodes": int(found.returns.shape[2]),
        "unit": found.unit,
        "shares": list(found.way.shares),
        "scores": found.scores.mean(axis=2).tolist(),
        "returns": found.returns.tolist(),
        "valley": asdict(found.way.valley) | {"significant": found.way.valley.significant},
        "peak": asdict(found.way.peak) | {"significant": found.way.peak.significant},
        "own_valleys": found.way.own_valleys,
        "says": [found.way.sentence(), found.way.best()],
        "command": command,
        "versions": versions(),
    }
    with written_whole(folder / PROBE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _short(checkpoint: Path) -> str:
    run = run_folder(checkpoint)
    return checkpoint.name if run is None else f"{run.name}'s {checkpoint.name}"
