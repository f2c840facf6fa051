"""One run: pretrain offline, switch, fine-tune online with a smoothed objective.

All seeds of a run are members of one population: one learner, one vector environment, one evaluator.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import o2o_smooth
from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.data.batch import Batch, FloatArray
from o2o_smooth.data.buffer import ReplayBuffer, concatenate
from o2o_smooth.data.collect import Collector, random_policy
from o2o_smooth.data.normalize import RewardMap, observation_statistics
from o2o_smooth.data.sources import Dataset, check_fits, load_dataset
from o2o_smooth.envs import Task, find_task, make_env, make_vector_env
from o2o_smooth.errors import CheckpointError, ConfigError, O2OError
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.training.checkpoint import SwitchRecord, load_checkpoint, save_checkpoint
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.evaluate import Evaluation, Evaluator
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.seeding import Stream, env_seeds, generator
from o2o_smooth.training.tracking import LocalFiles, Tracker, open_sinks

ONLINE_EVALUATIONS = 1_000_000_000  # evaluation index of the switch; offline evaluations count updates from 0
NORMS_EVERY = 100  # updates between measurements of gradient norms where the curve is in effective weight
VERSIONED = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari")


class Diverged(O2OError):
    """Training produced NaN or infinity."""


@dataclass
class Prepared:
    """Everything that can fail before a run begins, done."""

    config: RunConfig[Any]
    task: Task
    dataset: Dataset | None
    reward_map: RewardMap
    agent: Agent
    forked: SwitchRecord | None
    out: Path


def run(config: RunConfig[Any], progress: ProgressSink | None = None, *, name: str | None = None) -> Path:
    """Do a whole run.

    Args:
        config: The settings.
        progress: Where progress goes; default: nowhere.
        name: What the progress display calls it.

    Returns:
        The run's folder: manifest.json, evaluations.jsonl, metrics.jsonl, checkpoints/, stability.png.

    Raises:
        O2OError: Something that the user can put right; before training nothing is written.
    """
    progress = progress or Silent()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    prepared = prepare(config, progress)
    return Run(prepared, progress, name or f"{config.agent} on {prepared.task.id}").do()


def default_out(config: RunConfig[Any]) -> Path:
    """runs/TASK-AGENT-SCHEDULE, in characters that every file system takes."""
    text = f"{config.task}-{config.agent}-{config.smoothing.schedule}"
    return Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def prepare(config: RunConfig[Any], progress: ProgressSink) -> Prepared:
    """Load and check everything a run needs, writing nothing (but a made dataset).

    Raises:
        O2OError: With the cause and the cure.
    """
    out = Path(config.out) if config.out is not None else default_out(config)
    _check_out(out, config)
    device = _device(config.device)
    task = find_task(config.task)
    env = make_env(task)
    obs_space, action_space = env.observation_space, env.action_space
    env.close()
    forked = None
    agent_class = AGENTS[config.agent]
    if config.pretrained is not None:
        agent, forked = load_checkpoint(
            Path(config.pretrained), device=device, compile=config.compile, online=config.online, hyper=config.hyper
        )
        _check_fork(config, agent, forked, task)
    else:
        agent = agent_class(
            obs_space,
            action_space,
            config.hyper,
            online=config.online,
            seeds=config.seeds,
            device=device,
            compile=config.compile,
        )
    dataset = None
    if needs_dataset(config):
        dataset = load_dataset(
            task,
            dataset=config.dataset,
            progress=lambda done, total: progress.update("making the dataset", done, total),
            log=progress.note,
        )
        check_fits(dataset, agent.obs_dim, agent.action_dim)
        if forked is not None and forked.dataset is not None and forked.dataset["sha256"] != dataset.sha256:
            raise CheckpointError(
                f"{config.pretrained} was pretrained on {forked.dataset['id']} (other contents than {dataset.id} has "
                f"now); retaining other data than that would not be a fork. Give --dataset or pretrain again"
            )
    elif config.smoothing.regime != "discard" and not _purely_online(config):
        raise ConfigError(
            f"regime {config.smoothing.regime} keeps offline rows, but there is no offline data without offline "
            f"updates; use --regime discard or --schedule jump"
        )
    scale = task.reward_scale if config.reward_scale is None else config.reward_scale
    shift = task.reward_shift if config.reward_shift is None else config.reward_shift
    if forked is not None and (scale, shift) != (forked.reward_scale, forked.reward_shift):
        raise CheckpointError(
            f"{config.pretrained} was pretrained with rewards * {forked.reward_scale:g} + {forked.reward_shift:g}, "
            f"this run asks for * {scale:g} + {shift:g}; leave --reward-scale and --reward-shift as they were"
        )
    return Prepared(config, task, dataset, RewardMap(scale, shift), agent, forked, out)


def needs_dataset(config: RunConfig[Any]) -> bool:
    """Whether the run reads offline rows."""
    if config.pretrained is None and config.offline_updates > 0:
        return True
    if config.online_steps == 0 or config.smoothing.regime == "discard":
        return False
    return config.dataset is not None or (config.pretrained is not None and not _purely_online(config))


def _purely_online(config: RunConfig[Any]) -> bool:
    """Whether no offline row can ever be drawn: a jump without an offline share."""
    smoothing = config.smoothing
    overrides = [getattr(smoothing, f"{name}_schedule") for name in COMPONENTS]
    share = smoothing.regime == "mixed" or smoothing.offline_fraction or smoothing.offline_fraction_end
    return smoothing.schedule == "jump" and not any(overrides) and not share


def _check_out(out: Path, config: RunConfig[Any]) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not config.overwrite:
            raise ConfigError(f"{out} is not empty; choose another --out, or --overwrite to replace the run there")
        if not (out / "manifest.json").is_file():
            raise ConfigError(f"{out} is not empty and not a run; --overwrite replaces runs only, choose another --out")
        if config.pretrained is not None and out.resolve() in [
            p.resolve() for p in (Path(config.pretrained), *Path(config.pretrained).parents)
        ]:
            raise ConfigError(f"--out {out} would replace the checkpoint of --pretrained; choose another folder")


def _check_fork(config: RunConfig[Any], agent: Agent, record: SwitchRecord, task: Task) -> None:
    if agent.name != config.agent:
        raise CheckpointError(f"{config.pretrained} holds an {agent.name} agent; use --agent {agent.name}")
    if record.task != task.id:
        raise CheckpointError(f"{config.pretrained} was pretrained on {record.task}, not on {task.id}")
    if agent.seeds != config.seeds:
        have = " ".join(map(str, agent.seeds))
        raise CheckpointError(f"{config.pretrained} holds the seeds {have}; use --seeds {have}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"there is no device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


class Run:
    """The state of a run in progress."""

    def __init__(self, prepared: Prepared, progress: ProgressSink, name: str) -> None:
        self.config, self.task, self.agent = prepared.config, prepared.task, prepared.agent
        self.dataset, self.reward_map, self.forked = prepared.dataset, prepared.reward_map, prepared.forked
        self.out, self.progress, self.name = prepared.out, progress, name
        self.members, self.seeds = self.agent.members, self.agent.seeds
        self.offline_rows: ReplayBuffer | None = None
        self._clock = time.perf_counter()
        self._clock_updates = self.agent.updates

    # The whole

    def do(self) -> Path:
        """Pretrain, switch, fine-tune; returns the run's folder."""
        config = self.config
        if config.overwrite and self.out.is_dir():
            shutil.rmtree(self.out)
        manifest = self._manifest()
        # Sinks that the user asked for and that are not installed are an error before anything is written.
        sinks = open_sinks(
            self.out,
            name=self.out.name,
            config=manifest["config"],
            seeds=self.seeds,
            wandb=config.wandb,
            tensorboard=config.tensorboard,
            project=config.wandb_project,
            warn=self.progress.note,
        )
        self.tracker = Tracker(LocalFiles(self.out), sinks, warn=self.progress.note)
        self.tracker.manifest(manifest)
        status = "failed"
        evaluator = None
        try:
            evaluator = self.evaluator = Evaluator(
                self.task, self.seeds, envs=min(config.evaluation.eval_envs, config.evaluation.eval_episodes)
            )
            if self.dataset is not None:
                self.offline_rows = ReplayBuffer.from_transitions(
                    self.reward_map.apply(self.dataset.transitions),
                    self.members,
                    discount=self.agent.config.discount,
                    device=self.agent.device,
                )
            record = self.forked if self.forked is not None else self.pretrain()
            for row in record.rows:
                self.tracker.evaluation(row)
            save_checkpoint(self.out / "checkpoints" / "switch", self.agent, record)
            if config.online_steps > 0:
                self.finetune(record)
            self._picture()
            status = "completed"
        finally:
            manifest |= {"status": status, "finished": _now()}
            self.tracker.manifest(manifest)
            self.tracker.close(status)
            if evaluator is not None:
                evaluator.close()
        return self.out

    # Offline

    def pretrain(self) -> SwitchRecord:
        """Offline updates; ends with the evaluation at the switch."""
        config, agent = self.config, self.agent
        if self.dataset is not None and agent.config.normalize_observations:
            agent.set_normalizer(*observation_statistics(self.dataset.transitions))
        log_every = config.log_every or max(1, config.offline_updates // 100)
        every = config.evaluation.offline_eval_every
        every = max(1, config.offline_updates // 4) if every is None else every
        for update in range(1, config.offline_updates + 1):
            info = agent.update(self._offline_batch())
            if update % log_every == 0 or update == config.offline_updates:
                self._log_metrics("offline", 0, info, [{}] * self.members)
            if update % 50 == 0 or update == config.offline_updates:
                self.progress.update(f"{self.name}: offline", update, config.offline_updates)
            if every and update % every == 0 and update < config.offline_updates:
                self._evaluate("offline", 0, index=update, episodes=config.evaluation.eval_episodes)
        evaluation = self._run_evaluation(ONLINE_EVALUATIONS, config.evaluation.switch_episodes)
        rows = evaluation.rows(self.task, phase="switch", env_steps=0, updates=agent.updates, seeds=self.seeds)
        return SwitchRecord(
            task=self.task.id,
            dataset=None if self.dataset is None else _describe(self.dataset),
            reward_scale=self.reward_map.scale,
            reward_shift=self.reward_map.shift,
            offline_updates=config.offline_updates,
            batch_size=config.batch_size,
            rows=rows,
            returns=evaluation.returns.tolist(),
        )

    def _offline_batch(self, name: str = "offline_rows", rows: int | None = None) -> Batch:
        if self.offline_rows is None:
            raise ConfigError("this step needs offline rows, and the run has none")
        index = self.agent.draws.integers(name, self.agent.updates, self.config.batch_size, len(self.offline_rows))
        return self.offline_rows.gather(index[:, :rows])

    # Online

    def finetune(self, record: SwitchRecord) -> None:
        """Interaction and smoothed updates for the online budget."""
        config, agent = self.config, self.agent
        smoothing, budget, n = config.smoothing, config.online_steps, config.num_envs
        controller = smoothing.controller(members=self.members, lanes=n, random_return=self.task.ref_random)
        self.online_rows = ReplayBuffer(
            self.members,
            min(config.buffer_size, -(-budget // n) * n),
            agent.obs_dim,
            agent.action_dim,
            device=agent.device,
        )
        if smoothing.regime == "discard":
            self.offline_rows = None
        collector = Collector(
            make_vector_env(self.task, self.members * n, vectorizer=config.vectorizer),
            self.members,
            self.online_rows,
            reward_map=self.reward_map,
            discount=agent.config.discount,
            seeds=[s for seed in self.seeds for s in env_seeds(seed, Stream.TRAIN_ENV, n)],
        )
        uniform = random_policy(
            agent.action_low, agent.action_high, [generator(s, Stream.RANDOM_ACTIONS) for s in self.seeds]
        )

        def explore(obs: FloatArray) -> FloatArray:
            return agent.act(obs, deterministic=False, step=collector.env_steps)

        log_every = config.log_every or max(1, budget // 100)
        points = config.evaluation.online_steps(budget)
        returns: list[list[float]] = [[] for _ in self.seeds]
        info: Metrics = {}
        updates = 0
        next_log = 0
        controller.start()
        self._clock, self._clock_updates = time.perf_counter(), agent.updates
        try:
            while collector.env_steps < budget:
                episodes = collector.step(uniform if collector.env_steps < config.random_steps else explore)
                for episode in episodes:
                    controller.observe_episodes(episode.member, [episode.episode_return], lane=episode.lane)
                    returns[episode.member].append(episode.episode_return)
                controller.advance(env_steps=n)
                t = collector.env_steps
                due = int(config.utd * max(0, t - config.update_after)) - updates
                for _ in range(due):
                    if smoothing.weight_in == "effective" and updates % NORMS_EVERY == 0:
                        self._measure_gradients(controller)
                    info = self._online_update(controller.mix())
                    controller.advance(updates=1)
                    updates += 1
                if t >= next_log and info:
                    next_log = t + log_every
                    if any(controller.mix().kind(c) == "mixed" for c in COMPONENTS):
                        self._measure_gradients(controller)
                    signals = controller.log()
                    for m in range(self.members):
                        recent = returns[m][-10:]
                        if recent:
                            signals[m]["collect/return"] = float(np.mean(recent))
                    self._log_metrics("online", t, info, signals)
                if points and t >= points[0]:
                    while points and t >= points[0]:
                        points.pop(0)
                    score = self._evaluate(
                        "online", t, index=ONLINE_EVALUATIONS + t, episodes=config.evaluation.eval_episodes
                    )
                    self._remark = score
                self.progress.update(f"{self.name}: online", min(t, budget), budget, getattr(self, "_remark", ""))
        finally:
            collector.close()
        save_checkpoint(self.out / "checkpoints" / "final", agent, record, controller.state_dict())

    def _online_update(self, mix: Mix) -> Metrics:
        """One update after the switch; draws only the rows that some live objective sees."""
        kinds = {mix.kind(name) for name in COMPONENTS}
        regime = self.config.smoothing.regime
        if kinds == {"offline"} and regime == "retain":
            return self.agent.update(self._offline_batch(), mix=mix)
        target = self._online_batch(mix)
        if kinds == {"online"} or regime != "retain":
            return self.agent.update(target, mix=mix)
        return self.agent.update(self._offline_batch(), target, mix=mix)

    def _online_batch(self, mix: Mix) -> Batch:
        batch_size = self.config.batch_size
        offline = round(mix.offline_fraction * batch_size)
        index = self.agent.draws.integers("online_rows", self.agent.updates, batch_size, len(self.online_rows))
        if offline == 0:
            return self.online_rows.gather(index)
        # Under mixed both objectives share one batch; under retain the online objective's share is drawn apart.
        name = "offline_rows" if self.config.smoothing.regime == "mixed" else "offline_share"
        rows = self._offline_batch(name, offline)
        if offline == batch_size:
            return rows
        return concatenate(rows, self.online_rows.gather(index[:, offline:]))

    def _measure_gradients(self, controller: SmoothingController) -> None:
        mix = controller.mix()
        target = self._online_batch(mix)
        source = self._offline_batch() if self.config.smoothing.regime == "retain" else None
        report = self.agent.gradient_report(target) if source is None else self.agent.gradient_report(source, target)
        controller.observe_gradients(
            {
                name: (g.norm_offline.double().cpu().numpy(), g.norm_online.double().cpu().numpy())
                for name, g in report.items()
            }
        )
        self._cosines = {f"smoothing/{name}_gradient_cosine": g.cosine.cpu().numpy() for name, g in report.items()}

    # What is written down

    def _run_evaluation(self, index: int, episodes: int) -> Evaluation:
        return self.evaluator.run(self.agent.act, episodes=episodes, index=index)

    def _evaluate(self, phase: str, env_steps: int, *, index: int, episodes: int) -> str:
        evaluation = self._run_evaluation(index, episodes)
        rows = evaluation.rows(
            self.task, phase=phase, env_steps=env_steps, updates=self.agent.updates, seeds=self.seeds
        )
        for row in rows:
            self.tracker.evaluation(row)
        scores = [row["score"] for row in rows]
        if scores[0] is None:
            return f"return {evaluation.returns.mean():.1f}"
        return f"score {np.mean(np.array(scores, dtype=float)):.1f}"

    def _log_metrics(self, phase: str, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        now = time.perf_counter()
        speed = (self.agent.updates - self._clock_updates) / max(now - self._clock, 1e-9)
        self._clock, self._clock_updates = now, self.agent.updates
        values = {name: tensor.double().cpu().numpy() for name, tensor in info.items()}
        values |= {name: value for name, value in getattr(self, "_cosines", {}).items() if phase == "online"}
        for m, seed in enumerate(self.seeds):
            row: dict[str, Any] = {"phase": phase, "env_steps": env_steps, "updates": self.agent.updates, "seed": seed}
            row |= {name: float(value[m]) for name, value in values.items()}
            row |= dict(signals[m])
            row["time/updates_per_s"] = speed
            self.tracker.metrics(row)
        for name, value in values.items():
            if not np.isfinite(value).all():
                seed = self.seeds[int(np.argmin(np.isfinite(value)))]
                raise Diverged(
                    f"training diverged: {name} of seed {seed} is {value[~np.isfinite(value)][0]} after "
                    f"{self.agent.updates} updates; lower the learning rates, or scale the rewards. "
                    f"What was logged is in {self.out}"
                )

    def _manifest(self) -> dict[str, Any]:
        config = self.config
        return {
            "format": 1,
            "status": "running",
            "command": sys.argv,
            "config": config.to_dict(),
            "task": {
                **{
                    k: v
                    for k, v in asdict(self.task).items()
                    if k in ("id", "env_id", "domain", "ref_random", "ref_expert", "ref_source")
                },
                "reward_scale": self.reward_map.scale,
                "reward_shift": self.reward_map.shift,
            },
            "dataset": self.forked.dataset
            if self.dataset is None and self.forked is not None
            else None
            if self.dataset is None
            else _describe(self.dataset),
            "agent": self.agent.name,
            "online": self.agent.online_choice,
            "hyper": self.agent.config.to_dict(),
            "seeds": list(self.seeds),
            "device": _device_name(self.agent.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "started": _now(),
            "finished": None,
        }

    def _picture(self) -> None:
        from o2o_smooth.training.pictures import draw_run  # matplotlib is slow to import

        draw_run(self.out)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"o2o_smooth": o2o_smooth.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if (commit := _commit()) is not None:
        found["commit"] = commit
    return found


def _commit() -> str | None:
    """The commit of a source checkout, marked where it has changes; None for an installed package."""
    root = Path(o2o_smooth.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ("git", "-C", str(root))
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "") if head.returncode == 0 else None


def _describe(dataset: Dataset) -> dict[str, Any]:
    returns = dataset.transitions.episode_returns
    return {
        "id": dataset.id,
        "provenance": dataset.provenance,
        "sha256": dataset.sha256,
        "transitions": len(dataset.transitions),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "note": dataset.note,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
