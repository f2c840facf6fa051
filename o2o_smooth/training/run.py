"""One run: pretrain offline, switch, fine-tune online with a smoothed objective.

All seeds of a run are members of one population: one learner, one vector environment, one evaluator.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.agents import CQLConfig
from o2o_smooth.agents.base import Metrics
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector, random_policy
from o2o_smooth.data.normalize import observation_statistics
from o2o_smooth.envs import make_vector_env
from o2o_smooth.errors import O2OError
from o2o_smooth.smoothing import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS
from o2o_smooth.training.checkpoint import SwitchRecord, inherited, save_checkpoint
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.evaluate import Evaluation, Evaluator
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.manifest import describe_dataset, make_manifest, now
from o2o_smooth.training.online_data import write_online
from o2o_smooth.training.prepare import Prepared, prepare
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.seeding import Stream, env_seeds, generator
from o2o_smooth.training.tracking import LocalFiles, Tracker, open_sinks

ONLINE_EVALUATIONS = 1_000_000_000  # evaluation index of the switch; offline evaluations count updates from 0
SHARED_FLOPS = 5e7  # a matmul below this takes half a millisecond; two threads lose more than that by waiting
NORMS_EVERY = 100  # updates between measurements of gradient norms where the curve is in effective weight


class Diverged(O2OError):
    """Training produced NaN or infinity."""


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
    threads = config.threads or default_threads(config)
    if threads is not None:
        torch.set_num_threads(threads)
    return Run(prepare(config, progress), progress, name).do()


def default_threads(config: RunConfig[Any]) -> int | None:
    """One thread where a layer's matmul is too small to share; None leaves torch's choice."""
    width = max(config.hyper.hidden_dims)
    actions = 3 * config.hyper.cql_actions if isinstance(config.hyper, CQLConfig) else 1
    flops = 2 * len(config.seeds) * config.hyper.num_critics * config.batch_size * actions * width**2
    return 1 if flops < SHARED_FLOPS else None


class Run:
    """The state of a run in progress."""

    def __init__(self, prepared: Prepared, progress: ProgressSink, name: str | None) -> None:
        self.prepared = prepared
        self.config, self.task, self.agent = prepared.config, prepared.task, prepared.agent
        self.dataset, self.reward_map, self.forked = prepared.dataset, prepared.reward_map, prepared.forked
        self.out, self.progress = prepared.out, progress
        self.label = f"{name}: " if name else ""
        self.members, self.seeds = self.agent.members, self.agent.seeds
        self.learner = Learner(self.agent, batch_size=self.config.batch_size, regime=self.config.smoothing.regime)
        self._cosines: dict[str, NDArray[Any]] = {}
        self._remark = ""
        self._clock = time.perf_counter()
        self._clock_updates = self.agent.updates

    # The whole

    def do(self) -> Path:
        """Pretrain, switch, fine-tune; returns the run's folder."""
        config = self.config
        if config.overwrite and self.out.is_dir():
            shutil.rmtree(self.out)
        manifest = make_manifest(self.prepared)
        self.origin: dict[str, Any] = manifest["score"]
        # Sinks that the user asked for and that are not installed are an error before anything is written.
        sinks = open_sinks(
            self.out,
            name=self.out.name,
            config={**manifest["config"], "dataset_used": manifest["dataset"], "score": manifest["score"]},
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
                self.learner.offline_rows = ReplayBuffer.from_transitions(
                    self.dataset.transitions,
                    self.members,
                    discount=self.agent.config.discount,
                    reward_map=self.reward_map,
                    device=self.agent.device,
                )
            if config.online_steps > 0:
                # Now rather than at the switch: memory that is not there should not cost a pretraining.
                self.learner.online_rows = self.online_rows = self._online_buffer()
            record = self.forked if self.forked is not None else self.pretrain()
            for row in record.rows:
                self.tracker.evaluation(row)
            save_checkpoint(self.out / "checkpoints" / "switch", self.agent, record)
            if config.online_steps > 0:
                self.finetune(record)
            self._picture()
            status = "completed"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            manifest |= {"status": status, "finished": now()}
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
            info = self.learner.offline_update()
            if update % log_every == 0 or update == config.offline_updates:
                self._log_metrics("offline", 0, info, [{}] * self.members)
            if update % 50 == 0 or update == config.offline_updates:
                self.progress.update(f"{self.label}offline", update, config.offline_updates)
            if every and update % every == 0 and update < config.offline_updates:
                self._evaluate("offline", 0, index=update, episodes=config.evaluation.eval_episodes)
        evaluation = self._run_evaluation(ONLINE_EVALUATIONS, config.evaluation.switch_episodes)
        rows = self._rows(evaluation, "switch", 0)
        return SwitchRecord(
            task=self.task.id,
            dataset=None if self.dataset is None else describe_dataset(self.dataset),
            reward_scale=self.reward_map.scale,
            reward_shift=self.reward_map.shift,
            offline_updates=config.offline_updates,
            settings=inherited(config),
            rows=rows,
            returns=evaluation.returns.tolist(),
        )

    # Online

    def _online_buffer(self) -> ReplayBuffer:
        config, agent = self.config, self.agent
        steps = -(-config.online_steps // config.num_envs) * config.num_envs
        capacity = min(config.buffer_size, steps)
        return ReplayBuffer(self.members, capacity, agent.obs_dim, agent.action_dim, device=agent.device)

    def finetune(self, record: SwitchRecord) -> None:
        """Interaction and smoothed updates for the online budget."""
        config, agent = self.config, self.agent
        smoothing, budget, n = config.smoothing, config.online_steps, config.num_envs
        controller = smoothing.controller(members=self.members, lanes=n, random_return=self.task.ref_random)
        if smoothing.regime == "discard":
            self.learner.offline_rows = None
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
                    info = self.learner.online_update(controller.mix())
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
                    self.progress.update(f"{self.label}online", min(t, budget), budget, "evaluating")
                    score = self._evaluate(
                        "online", t, index=ONLINE_EVALUATIONS + t, episodes=config.evaluation.eval_episodes
                    )
                    self._remark = score
                self.progress.update(f"{self.label}online", min(t, budget), budget, self._remark)
        finally:
            collector.close()
        save_checkpoint(self.out / "checkpoints" / "final", agent, record, controller.state_dict())
        if config.save_online:
            made_by = f"online steps of {agent.name}"
            try:
                write_online(
                    self.out,
                    self.online_rows,
                    self.seeds,
                    num_envs=n,
                    reward_map=self.reward_map,
                    record={"task": self.task.id, "provenance": "generated", "made_by": made_by},
                )
            except O2OError as error:  # a full disk should not cost the run
                self.progress.note(f"warning: the online data are not kept: {error}")

    def _measure_gradients(self, controller: SmoothingController) -> None:
        report = self.learner.gradients(controller.mix())
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
        rows = self._rows(evaluation, phase, env_steps)
        for row in rows:
            self.tracker.evaluation(row)
        scores = self.task.score(evaluation.returns)
        unit, mean = ("return", evaluation.returns.mean()) if scores is None else ("score", scores.mean())
        data = self.origin[f"behaviour_{unit}"]
        policy, behaviour = (f"{x:.{0 if abs(x) >= 1000 else 1}f}" for x in (mean, 0.0 if data is None else data))
        if data is None or self.label:  # beside an arm's name 80 columns have no room for it
            return f"{unit} {policy}"
        return f"{unit} {policy} (data {behaviour})"

    def _rows(self, evaluation: Evaluation, phase: str, env_steps: int) -> list[dict[str, Any]]:
        return evaluation.rows(
            self.task,
            phase=phase,
            env_steps=env_steps,
            updates=self.agent.updates,
            seeds=self.seeds,
            provenance=self.origin["provenance"],
        )

    def _log_metrics(self, phase: str, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        now = time.perf_counter()
        speed = (self.agent.updates - self._clock_updates) / max(now - self._clock, 1e-9)
        self._clock, self._clock_updates = now, self.agent.updates
        values = {name: tensor.double().cpu().numpy() for name, tensor in info.items()}
        values |= self._cosines
        self._cosines = {}  # of this line alone: they are not measured once a ramp has ended
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

    def _picture(self) -> None:
        from o2o_smooth.training.pictures import draw_run  # matplotlib is slow to import

        draw_run(self.out)
