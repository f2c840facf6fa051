"""The trainings behind the tiers: SAC from scratch in rounds, with a snapshot at the end of each, kept on disk.

A round is written whole or not at all, and begins with fresh environments and random numbers that depend on (seed,
round) alone, so a training that was interrupted and goes on gives the same data, bit for bit, as one that was not. The
price: episodes that run at the end of a round stay in SAC's replay buffer but are in no dataset. Snapshots are
evaluated as they are rolled out: sampled from the stochastic policy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.agents import SAC, Agent, SACConfig, load_agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.storage import read_json, save_agent, write_directory
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.rollout import SEEDS, Act, Lanes, Recording, read_recordings, uniform_policy, write_recordings
from o2o_smooth.envs import Task, make_env
from o2o_smooth.errors import CheckpointError, ConfigError, DataError
from o2o_smooth.files import why
from o2o_smooth.training.evaluate import Evaluator
from o2o_smooth.training.manifest import versions
from o2o_smooth.training.progress import ProgressSink
from o2o_smooth.training.run import Diverged

MEDIUM_SHARE = 1 / 3
"""How far medium has come from the random policy's return to the expert's."""
LEARNED_ERRORS = 3.0
"""By how many standard errors of the difference a snapshot must beat the random policy to be called an expert."""
REPLAY_CAPACITY = 1_000_000
"""Rows that SAC keeps; the oldest go first. Datasets keep all."""

_FORMAT = 1
_EVAL_ENVS = 10
_COLLECT, _EVALUATE = 101, 102  # spawn keys, apart from those of `training.seeding`


@dataclass(frozen=True)
class TrainingConfig:
    """The SAC training behind the tiers; one training serves all tiers, and more steps continue it."""

    train_steps: int = 300_000
    """Environment steps of SAC's training from scratch, in whole rounds. More steps later continue the same training;
    D4RL's had 1,000,000."""
    round_steps: int = 10_000
    """Environment steps per round: as far as an interruption can throw the training back, and the distance between
    snapshots. Episodes that run at the end of a round are in no dataset."""
    train_envs: int = 1
    """Environments that collect in parallel in training. The updates cost most, so more environments are hardly faster,
    and each leaves an unfinished episode at the end of a round."""
    random_steps: int = 5_000
    """First steps with uniformly random actions and without updates."""
    utd: float = 1.0
    """Updates per environment step."""
    batch_size: int = 256
    """Rows per update."""
    eval_episodes: int = 10
    """Episodes that measure the return of a snapshot and of the random policy."""
    cache: str | None = None
    """Folder that keeps trainings; default: o2o_smooth/sac under $XDG_CACHE_HOME or ~/.cache. Safe to delete."""

    def __post_init__(self) -> None:
        for name in ("train_steps", "round_steps", "train_envs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_episodes < 2:
            raise ConfigError(
                f"eval_episodes must be at least 2 to know how sure a return is, got {self.eval_episodes}"
            )
        if self.random_steps < 0:
            raise ConfigError(f"random_steps must not be negative, got {self.random_steps}")
        if not 0.0 < self.utd <= 1000.0:
            raise ConfigError(f"utd must be positive (updates per environment step), got {self.utd}")

    @property
    def lane_steps(self) -> int:
        """Steps of every environment in a round."""
        return -(-self.round_steps // self.train_envs)

    @property
    def rounds(self) -> int:
        """Rounds in all."""
        return -(-self.train_steps // (self.lane_steps * self.train_envs))


@dataclass(frozen=True)
class Returns:
    """Undiscounted raw returns of some episodes."""

    mean: float
    std: float
    episodes: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.std / math.sqrt(self.episodes)


@dataclass(frozen=True)
class Round:
    """A finished round on disk: the saved agent with round.json beside it, and episodes in an .npz of the same name."""

    folder: Path
    number: int
    env_steps: int
    updates: int
    returns: Returns

    def agent(self) -> Agent:
        """The snapshot at its end, with optimiser and counters."""
        return load_agent(self.folder)

    def recordings(self) -> list[Recording]:
        """What was played in it, in the order of the episodes' start, unfinished ones too.

        Raises:
            CheckpointError: The file is broken.
        """
        file = self.folder.with_suffix(".npz")
        try:
            return read_recordings(file)
        except DataError as error:
            raise CheckpointError(f"{error}; delete it and {self.folder} to play the round again") from error

    def describe(self) -> dict[str, Any]:
        """Plain values for a dataset's record."""
        weights = (self.folder / "agent.safetensors").read_bytes()
        return {"env_steps": self.env_steps, **asdict(self.returns), "sha256": hashlib.sha256(weights).hexdigest()}


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    settings: dict[str, Any]
    random: Returns
    rounds: tuple[Round, ...]

    def describe(self) -> dict[str, Any]:
        """Plain values for a dataset's record: the settings, and the return at the end of every round."""
        curve = [{"env_steps": r.env_steps, "return_mean": r.returns.mean} for r in self.rounds]
        return {**self.settings, "random": asdict(self.random), "curve": curve}


def cache_folder() -> Path:
    """Where trainings are kept: o2o_smooth/sac under $XDG_CACHE_HOME or ~/.cache."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "o2o_smooth" / "sac"


def train(task: Task, config: TrainingConfig, hyper: SACConfig, seed: int, progress: ProgressSink) -> Trained:
    """Train SAC, or read from the cache what is there of this training and do the rest.

    Raises:
        ConfigError: A round is shorter than an episode.
        CheckpointError: A file of the cache is broken or cannot be written; the text names it.
        Diverged: The losses became NaN or infinite.
        EnvError: The environment is not there, or returned NaN.
    """
    env = make_env(task)
    try:
        training = _Training(task, env, config, hyper, seed, progress)
        rounds = training.finished()
        if len(rounds) > 1:
            done = f"{len(rounds) - 1} of {config.rounds} rounds"
            progress.note(f"SAC on {task.env_id}: {done} are done already, in {training.folder}")
        start, *rounds = training.go_on(rounds)
    finally:
        env.close()
    return Trained(training.settings, start.returns, tuple(rounds))


def choose(trained: Trained, task: Task) -> tuple[Round, Round]:
    """The medium and the expert snapshot, as `training.making` defines them.

    Raises:
        DataError: The training did not learn: its best snapshot is not clearly better than the random policy.
    """
    random, rounds = trained.random, trained.rounds
    expert = max(rounds, key=lambda r: r.returns.mean)
    gap = expert.returns.mean - random.mean
    if gap <= LEARNED_ERRORS * math.hypot(random.error, expert.returns.error):
        steps = rounds[-1].env_steps
        raise DataError(
            f"SAC has not learned {task.env_id} in {steps:,} steps: its best return is {expert.returns.mean:.4g} +- "
            f"{expert.returns.error:.2g}, the random policy's {random.mean:.4g} +- {random.error:.2g}; train longer "
            f"with --train-steps {4 * steps}, which continues this training"
        )
    medium = next(r for r in rounds if r.returns.mean >= random.mean + MEDIUM_SHARE * gap)
    return medium, expert


def agent_policy(agent: Agent, member: int = 0, *, deterministic: bool = False) -> Act:
    """One member of an agent as a policy whose noise comes from the roll-out's generator."""

    def act(obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        every = np.repeat(obs[None], agent.members, axis=0)
        step = None if deterministic else int(rng.integers(2**62))
        action: NDArray[np.float32] = agent.act(every, deterministic=deterministic, step=step)[member]
        return action

    return act


class _Training:
    """A training in progress, and its folder.

    Args:
        task: The task; its environment and reward map count, its data do not.
        env: One of the task's environments, for its spaces.
        config: How to train.
        hyper: SAC's settings.
        seed: Of everything.
        progress: Where progress goes.
    """

    def __init__(
        self, task: Task, env: Any, config: TrainingConfig, hyper: SACConfig, seed: int, progress: ProgressSink
    ) -> None:
        self.task, self.env, self.config, self.hyper = task, env, config, hyper
        self.seed, self.progress = seed, progress
        spec = env.env.spec
        limit = task.max_episode_steps or (None if spec is None else spec.max_episode_steps)
        if limit is not None and config.lane_steps < limit:
            raise ConfigError(
                f"a round gives each of {config.train_envs} environments {config.lane_steps:,} steps, and an episode "
                f"of {task.env_id} can have {limit:,}, which no dataset would see whole: raise --round-steps to "
                f"{limit * config.train_envs} or more"
            )
        self.settings = _settings(task, config, hyper, seed)
        root = cache_folder() if config.cache is None else Path(config.cache).expanduser()
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = root / f"{env_name(task)}-{digest[:12]}"
        self.uniform = uniform_policy(env.action_space.low, env.action_space.high)
        self.reward_map = RewardMap(task.reward_scale, task.reward_shift)
        self.name = f"training SAC on {env_name(task)}"
        self.per_round = config.lane_steps * config.train_envs

    def finished(self) -> list[Round]:
        """The rounds on disk, up to the first that is missing and the last that is wanted; 0 is the random policy."""
        rounds: list[Round] = []
        while len(rounds) <= self.config.rounds and (folder := self._round_folder(len(rounds))).is_dir():
            rounds.append(_read_round(folder))
        return rounds

    def go_on(self, rounds: list[Round]) -> list[Round]:
        """Do the rounds that are missing; returns all."""
        if not rounds:
            rounds = [self._save(0, None, self._evaluate(self.uniform, 0))]
        if len(rounds) > self.config.rounds:
            return rounds
        spaces = self.env.observation_space, self.env.action_space
        agent = rounds[-1].agent() if len(rounds) > 1 else SAC(*spaces, self.hyper, seeds=(self.seed,))
        capacity = min(self.config.rounds * self.per_round, REPLAY_CAPACITY)
        buffer = ReplayBuffer(1, capacity, agent.obs_dim, agent.action_dim)
        for done in rounds[1:]:
            buffer.add(self._rows(done)[None])
        for number in range(len(rounds), self.config.rounds + 1):
            recordings, info = self._round(number, agent, buffer)
            bad = [name for name, value in info.items() if not np.isfinite(value.numpy()).all()]
            if bad:
                raise Diverged(
                    f"SAC diverged on {self.task.env_id}: {bad[0]} is NaN or infinite after {agent.updates:,} updates; "
                    f"lower the learning rates. The {number - 1} rounds before are in {self.folder}"
                )
            returns = self._evaluate(agent_policy(agent), number)
            rounds = [*rounds, self._save(number, agent, returns, recordings)]
            self._report(number * self.per_round, number, f"return {returns.mean:.1f}")
        return rounds

    def _round(self, number: int, agent: Agent, buffer: ReplayBuffer) -> tuple[list[Recording], Metrics]:
        """Play and learn for one round; nothing is written."""
        config, n = self.config, self.config.train_envs
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_COLLECT, number)))
        explore = agent_policy(agent)
        info: Metrics = {}
        envs = [make_env(self.task) for _ in range(n)]
        try:
            lanes = Lanes(envs)
            for clock in range((number - 1) * config.lane_steps, number * config.lane_steps):
                for lane in lanes.idle:
                    lanes.begin(lane, int(rng.integers(SEEDS)))
                act = self.uniform if clock * n < config.random_steps else explore
                step = lanes.step(act(lanes.obs, rng))
                rows = pack(step.obs, step.action, self.reward_map(step.reward), *step[3:])
                buffer.add(rows[None])
                t = (clock + 1) * n
                for _ in range(int(config.utd * max(0, t - config.random_steps)) - agent.updates):
                    index = agent.draws.integers("replay_rows", agent.updates, config.batch_size, len(buffer))
                    info = agent.update(buffer.gather(index))
                if clock % 50 == 0:
                    self._report(t, number)
            return lanes.recordings(), info
        finally:
            for env in envs:
                env.close()

    def _report(self, steps: int, number: int, remark: str = "") -> None:
        total = self.config.rounds * self.per_round
        self.progress.update(self.name, steps, total, remark or f"round {number} of {self.config.rounds}")

    def _rows(self, done: Round) -> FloatArray:
        """A round's rows, packed, as they went into the buffer: lane by lane within a step."""
        n = self.config.train_envs
        rows: FloatArray | None = None
        for r in done.recordings():
            flat = r.flat(self.env._flat)
            reward = self.reward_map(r.rewards)
            packed = pack(flat[:-1], r.actions, reward, flat[1:], r.terminations, r.truncations)
            if rows is None:
                rows = np.full((self.per_round, packed.shape[1]), np.nan, np.float32)
            rows[(r.start + np.arange(len(r))) * n + r.lane] = packed
        if rows is None or np.isnan(rows).any():
            raise CheckpointError(
                f"{done.folder / 'episodes.npz'} lacks steps; delete {done.folder} to play them again"
            )
        return rows

    def _evaluate(self, act: Act, number: int) -> Returns:
        """Returns of a policy on the environments of its round alone, made afresh."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_EVALUATE, number)))
        episodes, done = self.config.eval_episodes, 0

        def count(ended: int) -> None:
            nonlocal done
            done += ended
            self.progress.update("evaluating", min(done, episodes), episodes, f"round {number}")

        evaluator = Evaluator(self.task, (self.seed,), envs=min(episodes, _EVAL_ENVS))
        try:
            found = evaluator.run(lambda obs: act(obs[0], rng)[None], episodes=episodes, index=number, on_episode=count)
        finally:
            evaluator.close()
        returns = found.returns.ravel()
        return Returns(float(returns.mean()), float(returns.std(ddof=1)), len(returns))

    def _save(self, number: int, agent: Agent | None, returns: Returns, recordings: Sequence[Recording] = ()) -> Round:
        """Write a round: the episodes, and then, in one rename, the folder that says that it is there."""
        folder = self._round_folder(number)
        updates = 0 if agent is None else agent.updates
        content: dict[str, Any] = {"number": number, "env_steps": number * self.per_round, "updates": updates}
        content |= {"returns": asdict(returns), "settings": self.settings, "versions": versions()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if recordings:
                write_recordings(folder.with_suffix(".npz"), recordings)
        except OSError as error:
            file = folder.with_suffix(".npz")
            raise CheckpointError(f"cannot write {file}: {why(error, file)}; --cache names another one") from error
        if agent is None:
            write_directory(folder, {"round.json": content})
        else:
            save_agent(agent, folder, {"round.json": content})
        return _read_round(folder)

    def _round_folder(self, number: int) -> Path:
        return self.folder / f"round-{number:04d}"


def env_name(task: Task) -> str:
    """A task's environment in characters that file names and Minari ids take: Hopper-v5 is hopper."""
    bare = re.sub(r"-v\d+$", "", task.env_id.rpartition(":")[2].rpartition("/")[2])
    return re.sub(r"[^a-z0-9_]+", "-", bare.lower()).strip("-") or "env"


def _settings(task: Task, config: TrainingConfig, hyper: SACConfig, seed: int) -> dict[str, Any]:
    """Everything that the rounds depend on, as plain values; how many there are is not part of it."""
    of_task = (
        "env_id", "max_episode_steps", "obs_keys", "action_scale", "compat", "reward_scale", "reward_shift",
    )  # fmt: skip
    env = {name: getattr(task, name) for name in of_task} | {"env_kwargs": dict(task.env_kwargs)}
    training = {k: v for k, v in asdict(config).items() if k not in ("train_steps", "cache")}
    settings = {"format": _FORMAT, "algorithm": "sac", "env": env, "seed": seed, **training, "hyper": hyper.to_dict()}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _read_round(folder: Path) -> Round:
    stored = read_json(folder / "round.json")
    try:
        returns = Returns(**stored["returns"])
        return Round(folder, int(stored["number"]), int(stored["env_steps"]), int(stored["updates"]), returns)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{folder / 'round.json'} is broken; delete {folder} to do the round again") from None
