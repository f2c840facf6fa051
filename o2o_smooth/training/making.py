"""Making datasets: scripted controllers, saved agents, D4RL-like tiers and mixtures, written as real Minari datasets.

The tiers come from one SAC training from scratch (`training.tiers`), with a snapshot and its mean return at the end of
every round; `TIERS` defines them, after Fu et al. 2020 (arXiv 2004.07219). Snapshots act as they explore in training,
sampled from the stochastic policy.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from o2o_smooth.agents import SACConfig
from o2o_smooth.data.corridor_sets import ROWS as CORRIDOR_ROWS
from o2o_smooth.data.corridor_sets import make_corridor_dataset
from o2o_smooth.data.generate import (
    MADE_HERE,
    Numbered,
    Policy,
    array_policy,
    check_policy_fits,
    mix_minari,
    play,
    random_policy,
    scripted_policy,
    with_noise,
)
from o2o_smooth.data.installed import GENERATED, is_installed, minari_root
from o2o_smooth.data.write import write_minari
from o2o_smooth.envs import Task, find_task, make_env
from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.training.checkpoint import find_checkpoint
from o2o_smooth.training.config import RunConfig, unknown
from o2o_smooth.training.hygiene import acting_agent
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.threads import default_threads
from o2o_smooth.training.tiers import TrainingConfig, agent_policy, choose, env_name, train

Tier = Literal["random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"]
TIERS: dict[Tier, str] = {
    "random": "the uniform random policy; needs no training",
    "medium": "the first snapshot a third of the way from the random policy's return to the expert's",
    "medium-replay": "all episodes that were finished in training up to the medium snapshot",
    "medium-expert": "half of the transitions from each of the medium and the expert snapshot",
    "expert": "the snapshot with the highest return",
    "full-replay": "all episodes that were finished in training",
}
"""The tiers and what they are."""
TRANSITIONS = 100_000
"""Of a roll-out where nothing else is asked for."""
GOOD = 80.0
"""Score of an expert below which a longer training is advised."""


@dataclass(frozen=True)
class MakeConfig:
    """Make a Minari dataset: of a tier, by policies (PointMaze has a scripted one), or as a mixture of datasets."""

    task: str = "D4RL/pointmaze/umaze-dense-v2"
    """Whose environment and reference scores: a D4RL id (hopper-medium-replay-v2), a Minari id or any registered
    gymnasium id."""
    tier: Tier | None = None
    """random | medium | medium-replay | medium-expert | expert | full-replay, by a SAC training of our own, which is
    kept and can be continued (--train-steps); default: the one in the task's id. Replays are taken whole."""
    policy: tuple[str, ...] = ()
    """What acts: scripted (PointMaze), random, a folder (a saved agent, a checkpoint, or a run: its final agent), or an
    .npz of plain arrays. Several share the transitions equally, episode by episode."""
    mix: tuple[str, ...] = ()
    """Installed datasets and their shares of the transitions, ID=SHARE ID=SHARE: whole episodes, each set's first."""
    id: str | None = None
    """Minari id of the dataset; default: the task's own (o2o-smooth/hopper/medium-v0), or one after the environment."""
    transitions: int | None = None
    """At least so many, since episodes are whole; default: 100,000, and of a mixture as many as the shares allow."""
    seed: int = 0
    """Of training, environments and noise; equal settings and versions make equal data."""
    num_envs: int = 8
    """Environments that are rolled out in lockstep."""
    noise: float = 0.0
    """--policy: standard deviation of Gaussian noise on the actions, in units of half the action box."""
    epsilon: float = 0.0
    """--policy: probability, in every step, of a uniformly random action instead."""
    deterministic: bool = False
    """--policy: the policy's mode; otherwise actions are sampled as in exploration."""
    member: int | None = None
    """--policy: of an agent that is a population, the member with this seed; default: the first."""
    overwrite: bool = False
    """Replace a dataset of this id when the new one is complete."""
    threads: int | None = None
    """CPU threads; default: in training as for o2o-smooth run, otherwise one."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The SAC training behind the tiers."""
    hyper: SACConfig = field(default_factory=SACConfig)
    """SAC's settings."""

    def __post_init__(self) -> None:
        if sum((self.tier is not None, bool(self.policy), bool(self.mix))) > 1:
            raise ConfigError("tier, policy and mix are three ways to make a dataset; give one of them")
        if self.tier is not None and self.tier not in TIERS:
            raise ConfigError(unknown("tier", self.tier, dict.fromkeys(TIERS)))
        if self.transitions is not None and self.transitions < 1:
            raise ConfigError(f"transitions must be at least 1, got {self.transitions}")
        for name in ("num_envs", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if not 0.0 <= self.noise <= 10.0:
            raise ConfigError(f"noise must lie in [0, 10] halves of the action box, got {self.noise}")
        if not 0.0 <= self.epsilon <= 1.0:
            raise ConfigError(f"epsilon is a probability, got {self.epsilon}")
        if (self.tier is not None or self.mix) and self.disturbed:
            raise ConfigError(f"{self.disturbed} is for --policy; a tier or a mixture is made as it is defined")
        if self.id is not None:
            _check_id(self.id)
        self.shares()

    @property
    def disturbed(self) -> str | None:
        """The first setting that only a policy can have, if any is given."""
        given = {"noise": self.noise, "epsilon": self.epsilon, "deterministic": self.deterministic}
        return next((name for name, value in given.items() if value), None if self.member is None else "member")

    def shares(self) -> dict[str, float]:
        """The mixture: dataset id to share.

        Raises:
            ConfigError: An entry cannot be read.
        """
        shares: dict[str, float] = {}
        for entry in self.mix:
            dataset_id, _, text = entry.rpartition("=")
            try:
                share = float(text)
            except ValueError:
                share = math.nan
            if not dataset_id or not 0.0 < share < math.inf:
                raise ConfigError(
                    f"cannot read {entry!r} of the mixture; write ID=SHARE, as in mujoco/hopper/medium-v0=0.5"
                )
            if dataset_id in shares:
                raise ConfigError(f"the mixture names {dataset_id} twice; give it one share")
            shares[dataset_id] = share
        return shares


def default_make_config(task: str) -> MakeConfig:
    """The settings before flags: SAC's preset for the task's domain.

    Raises:
        EnvError: Nothing has this name.
    """
    return MakeConfig(task=task, hyper=SACConfig.preset(find_task(task).domain))


@dataclass(frozen=True)
class _Made:
    """Episodes, and what is said of them."""

    episodes: Numbered
    algorithm: str
    how: str
    record: dict[str, Any]
    provenance: str = "generated"


def make_data(config: MakeConfig, progress: ProgressSink | None = None) -> str:
    """Make a dataset and write it under the user's Minari folder; nothing is visible before all of it is written.

    Without tier, policy and mixture: the tier in the task's id, or PointMaze's scripted controller. The dataset's
    record (`data.write.RECORD` in its metadata) has all that it takes to make it again.

    Args:
        config: The settings.
        progress: Where progress goes; default: nowhere.

    Returns:
        The id of the dataset.

    Raises:
        O2OError: Something that the user can put right.
    """
    progress = progress or Silent()
    task = find_task(config.task)
    tier, policies = _what(config, task)
    dataset_id = config.id or _default_id(task, tier, policies)
    if is_installed(dataset_id) and not config.overwrite:
        raise DataError(
            f"dataset {dataset_id} is there already, in {minari_root()}: name another with --id, or give --overwrite"
        )
    if task.domain == "corridor" and not policies and not config.mix:
        rows = config.transitions or CORRIDOR_ROWS
        report = partial(progress.update, "making the dataset")
        return make_corridor_dataset(
            task, dataset_id, transitions=rows, seed=config.seed, replace=config.overwrite, progress=report
        )
    env = make_env(task)
    try:
        _check_storable(task, env)
        with _threads(config, training=tier not in (None, "random")):
            if tier is not None:
                made = _tier(config, task, env, tier, progress)
            elif policies:
                acting = [_policy(config, task, env, name) for name in policies]
                made = _rolled_out(config, task, acting, progress)
            else:
                made = _mixture(config, task, env, progress)
        numbers, episodes = [n for n, _ in made.episodes], [episode for _, episode in made.episodes]
        record = {**made.record, "seed": config.seed}
        if len(set(numbers)) > 1:
            record["episode_sources"] = numbers
        write_minari(
            dataset_id,
            episodes,
            task=task,
            env=env,
            algorithm=made.algorithm,
            how=made.how,
            record=record,
            provenance=made.provenance,
            replace=config.overwrite,
        )
    finally:
        env.close()
    returns = [float(np.sum(episode.rewards)) for episode in episodes]
    score = task.score(float(np.mean(returns)))
    progress.note(
        f"{dataset_id}: {sum(len(e.rewards) for e in episodes):,} transitions, {len(episodes):,} episodes, mean return "
        f"{np.mean(returns):.4g}" + ("" if score is None else f" (score {float(score):.1f})")
    )
    return dataset_id


def _what(config: MakeConfig, task: Task) -> tuple[Tier | None, tuple[str, ...]]:
    """The tier or the policies; neither for a mixture."""
    if task.domain == "corridor" and config.tier is not None:
        raise ConfigError(f"task {task.id} has no tiers: leave --tier out for its own set, or give --policy")
    if config.tier is not None or config.policy or config.mix:
        return config.tier, config.policy
    if task.domain == "corridor" and not config.disturbed:
        return None, ()
    if task.domain == "pointmaze":
        return None, ("scripted",)
    tier = _own_tier(task)
    if tier is None:
        raise ConfigError(f"task {task.id} names no tier: say what to make with --tier, --policy or --mix")
    if config.disturbed:
        raise ConfigError(f"{config.disturbed} is for --policy, and the id of {task.id} means a tier")
    return tier, ()


def _own_tier(task: Task) -> Tier | None:
    """The tier in a task's id, as in hopper-medium-replay-v2; PointMaze's medium is a maze."""
    longest_first = sorted(TIERS, key=lambda tier: -len(tier))
    found = re.search(f"-({'|'.join(longest_first)})-v\\d+$", task.id)
    return cast(Tier, found[1]) if found and task.domain not in MADE_HERE else None


def _default_id(task: Task, tier: Tier | None, policies: Sequence[str]) -> str:
    """The task's own generated id, unless the data are of another tier; else one after the environment."""
    own = next((name for name in task.dataset_ids if name.startswith(GENERATED)), None)
    if own is not None and (tier is None or tier == _own_tier(task)):
        return own
    label = tier or (policies[0] if policies in (("scripted",), ("random",)) else "policy" if policies else "mix")
    return f"{GENERATED}{env_name(task)}/{label}-v0"


def _check_id(dataset_id: str) -> None:
    if not re.fullmatch(r"([A-Za-z0-9_-]{2,}/)*[A-Za-z0-9_-]+-v\d+", dataset_id):
        raise ConfigError(f"{dataset_id!r} is no Minari id; write NAMESPACE/NAME-vNUMBER, as in mine/hopper/noisy-v0")


def _check_storable(task: Task, env: Any) -> None:
    """Minari keeps the environment's specification as JSON; better to know before hours of training."""
    try:
        env.env.spec.to_json()
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"environment {task.env_id} cannot be stored with a dataset ({' '.join(str(error).split())}): register it "
            f"with an entry point and arguments that are plain text and numbers"
        ) from error


@contextlib.contextmanager
def _threads(config: MakeConfig, *, training: bool) -> Iterator[None]:
    """Set torch's threads for a while: as `run` does in training; roll-outs have little to share."""
    wanted: int | None = config.threads or 1
    if training and config.threads is None:
        seeds, batch_size = (config.seed,), config.training.batch_size
        wanted = default_threads(RunConfig(hyper=config.hyper, agent="sac", seeds=seeds, batch_size=batch_size))
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _policy(config: MakeConfig, task: Task, env: Any, name: str) -> Policy:
    """A policy by what the user wrote."""
    if name == "scripted":
        policy = scripted_policy(task, env)
    elif name == "random":
        policy = random_policy(env)
    elif name.endswith(".npz"):
        policy = array_policy(Path(name).expanduser(), env, deterministic=config.deterministic)
    else:
        policy = _saved_agent(config, env, name)
    return with_noise(policy, env, noise=config.noise, epsilon=config.epsilon)


def _saved_agent(config: MakeConfig, env: Any, name: str) -> Policy:
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(
            f"there is no policy {name}: give scripted, random, an .npz file or the folder of an agent or run"
        )
    folders = (path, path / "checkpoints" / "final")
    folder = next((f for f in folders if (f / "agent.json").is_file()), None) or find_checkpoint(path)
    agent = acting_agent(folder)
    check_policy_fits(name, agent.obs_dim, agent.action_dim, env)
    seed = agent.seeds[0] if config.member is None else config.member
    if seed not in agent.seeds:
        held = " ".join(map(str, agent.seeds))
        raise DataError(f"{name} has no member of seed {seed}; it holds {held}: give one of them with --member")
    act = agent_policy(agent, agent.seeds.index(seed), deterministic=config.deterministic)
    digest = hashlib.sha256()
    for file in ("agent.json", "agent.safetensors", "hygiene.safetensors"):  # the last: a running mean that acts
        if (folder / file).is_file():
            digest.update((folder / file).read_bytes())
    record = {
        "kind": "agent",
        "agent": agent.name,
        "folder": str(folder),
        "sha256": digest.hexdigest(),
        "member": seed,
        "updates": agent.updates,
        "deterministic": config.deterministic,
    }
    return Policy(f"{agent.name} agent {path.name}", act, record)


def _rolled_out(config: MakeConfig, task: Task, policies: Sequence[Policy], progress: ProgressSink) -> _Made:
    """Policies rolled out for equal shares."""
    budget = {"transitions": config.transitions or TRANSITIONS, "num_envs": config.num_envs}
    episodes = play(task, policies, **budget, seed=config.seed, progress=progress.update)
    names = " and ".join(policy.name for policy in policies)
    how = f"Rolled out: {names}, in equal shares, seed {config.seed}; the record has all settings."
    record = {"made_by": "roll-out", "policies": [policy.record for policy in policies], **budget}
    return _Made(episodes, f"{names} (o2o_smooth)", how, record)


def _tier(config: MakeConfig, task: Task, env: Any, tier: Tier, progress: ProgressSink) -> _Made:
    """A tier of our own SAC training."""
    if tier == "random":
        made = _rolled_out(config, task, [random_policy(env)], progress)
        return replace(made, record={**made.record, "tier": tier, "definition": TIERS[tier]})
    trained = train(task, config.training, config.hyper, config.seed, progress)
    medium, expert = choose(trained, task)
    snapshots = {"medium": medium, "expert": expert}
    found = ", ".join(f"{name} {r.returns.mean:.4g} after {r.env_steps:,} steps" for name, r in snapshots.items())
    score = task.score(expert.returns.mean)
    weak = (
        "" if score is None or score >= GOOD else f"; {score:.0f} of the reference's 100, more --train-steps may help"
    )
    progress.note(f"SAC on {task.env_id}: random {trained.random.mean:.4g}, {found}{weak}")
    record = {
        "tier": tier,
        "definition": TIERS[tier],
        "training": trained.describe(),
        "snapshots": {name: r.describe() for name, r in snapshots.items()},
    }
    algorithm = f"SAC, {tier} (o2o_smooth)"
    if tier.endswith("replay"):
        rounds = trained.rounds[: medium.number] if tier == "medium-replay" else trained.rounds
        if config.transitions is not None:
            progress.note(f"{tier}: a replay is taken whole; --transitions {config.transitions} is for roll-outs")
        how = f"All episodes that SAC finished in its first {rounds[-1].env_steps:,} steps of training."
        episodes = [(0, recording.buffer()) for r in rounds for recording in r.recordings() if recording.finished]
        if not episodes:
            raise DataError("no episode was finished in these rounds: raise --round-steps, or train longer")
        return _Made(episodes, algorithm, how, {"made_by": "replay", **record})
    acting = [
        Policy(f"{name} snapshot", agent_policy(r.agent()), {"kind": "snapshot", "snapshot": name})
        for name, r in snapshots.items()
        if name in tier
    ]
    made = _rolled_out(config, task, acting, progress)
    return replace(made, algorithm=algorithm, record={**made.record, **record})


def _mixture(config: MakeConfig, task: Task, env: Any, progress: ProgressSink) -> _Made:
    """Whole episodes of installed datasets."""
    mixture = mix_minari(
        task,
        env,
        config.shares(),
        transitions=config.transitions,
        progress=lambda done, total: progress.update("reading datasets", done, total),
    )
    parts = ", ".join(f"{source['id']} {source['share']:.0%}" for source in mixture.sources)
    record = {"made_by": "mixture", "sources": mixture.sources, "transitions": config.transitions}
    return _Made(mixture.episodes, "mixture", f"Whole episodes of {parts}.", record)
