"""One run: pretrain offline, switch, fine-tune online with a smoothed objective.

All seeds of a run are members of one population: one learner, one vector environment, one evaluator. Several runs can
share a population (`population.run_population`); each then writes the folder that it would have written alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.plan import Planner
from o2o_smooth.agents.storage import (
    take_members,
)
from o2o_smooth.data.batch import Batch, FloatArray
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import BrokenStep, Collector
from o2o_smooth.data.normalize import observation_statistics
from o2o_smooth.draws import make_draws
from o2o_smooth.envs import Task, make_vector_env
from o2o_smooth.errors import O2OError, ParityError
from o2o_smooth.smoothing import COMPONENTS, JointController, Mix
from o2o_smooth.training.audit import Audit, draws_per_row, offline_audit_rows, rhythm, saved_audit_rows
from o2o_smooth.training.audit_rates import learning_rates, rate_warnings
from o2o_smooth.training.checkpoint import SwitchRecord, find_checkpoint
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.continued import Continued, OnlinePauses
from o2o_smooth.training.evaluate import Evaluation, Evaluator
from o2o_smooth.training.faults import settle
from o2o_smooth.training.finetune import OnlineSettings, finetune, overlaps
from o2o_smooth.training.guard import Guard, GuardedLearner, NotFinite
from o2o_smooth.training.keeping import FOLDER, serials
from o2o_smooth.training.output import Diverged, Output, Values, own_metrics
from o2o_smooth.training.parity import check_parity
from o2o_smooth.training.parity_walks import Paths
from o2o_smooth.training.prepare import default_out, make_controller, prepare
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.rollback import going_on, rolled, times
from o2o_smooth.training.seeding import online_seed
from o2o_smooth.training.stopping import Interrupted, Stopped, listening
from o2o_smooth.training.threads import set_threads

__all__ = ["Diverged", "Run", "run"]

ONLINE_EVALUATIONS = 1_000_000_000  # evaluation index of the switch; offline evaluations count updates from 0
SHOW_EVERY = 64  # offline updates
PARITY_S = 5.0  # that the check at the switch may take before it is given up for somebody who wants to stop
STOP_S = 0.5  # about as long as a stretch of offline updates takes before somebody who wants to stop is heard


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
    if config.checkpoints.auto_resume:
        from o2o_smooth.training.resume import found_run, resume

        out = Path(config.out) if config.out is not None else default_out(config)
        if found_run(config, out) is not None:
            return resume(out, progress, task=config.task)
    set_threads(config, len(config.seeds))
    home = Path(config.out) if config.out is not None else default_out(config)
    return going_on(lambda: Run(prepare(config, progress), progress, name).do(), home, config, progress)[0]


class Run(Continued):
    """A run in progress, or several that share a population; see `Continued` for its arguments."""

    def _make_learner(self) -> GuardedLearner:
        learner = GuardedLearner(
            self.agent,
            batch_size=self.config.batch_size,
            regime=self.config.smoothing.regime,
            graphs=self.config.graphs,
        )
        if self.config.faults.nan_check_every:
            learner.guard = Guard(self.config.faults.nan_check_every)
        return learner

    # The whole

    def do(self) -> list[Path]:
        """Pretrain, switch, fine-tune; returns the folders of the runs.

        Raises:
            Interrupted: SIGTERM or Ctrl-C; there is a checkpoint.
        """
        with listening(self.request, self.progress.note):
            return self._do()

    def _do(self) -> list[Path]:
        config, kept = self.config, None if self.kept is None else self.kept.state
        status = "failed"
        try:
            self._open(kept)
            if self.dataset is not None:
                self.learner.offline_rows = ReplayBuffer.from_transitions(
                    self.dataset.transitions,
                    self.members,
                    discount=self.agent.config.discount,
                    reward_map=self.reward_map,
                    device=self.agent.device,
                    held_out=self.prepared.holdout.ranges,
                )
            if config.online_steps > 0:
                # Now rather than at the switch: memory that is not there should not cost a pretraining.
                self.learner.online_rows = self.online_rows = self._online_buffer()
            if kept is not None and kept["phase"] == "online":
                self._records = [SwitchRecord(**record) for record in kept["records"]]
                self._spread()
                audited = self._audit_rows()
            else:
                audited = self._switch(kept)
            if config.online_steps > 0:
                self.finetune(self._records, audited)
            for output in self.outputs:
                output.picture()
            status = "completed"
        except (NotFinite, BrokenStep) as error:
            self._diverged, told = settle(error, self, online=bool(self._controllers))
            raise told from error
        except Stopped:
            status = "interrupted"
            raise Interrupted(self.request.number or 0, self.prepared.out) from None
        except KeyboardInterrupt:  # a second Ctrl-C: as it stands
            status = "interrupted"
            raise Interrupted(signal.SIGINT, self.prepared.out) from None
        except O2OError:
            if self.keeper is not None and serials(self.keeper.folder):
                self.progress.note(f"checkpoints are kept; go on later with: o2o-smooth resume {self.prepared.out}")
            raise
        finally:
            closed = [
                output.close(status if self._diverged in (None, output) else "interrupted") for output in self.outputs
            ]
            unwritten = [failed for failed in closed if failed is not None]
            if self._evaluator is not None:
                self._evaluator.close()
            if self.keeper is not None:
                if status == "completed" and not unwritten:
                    self.keeper.clear([output.out / FOLDER for output in self.outputs])
                self.keeper.unlock()
            for failed in unwritten:
                self.progress.note(f"warning: how the run ended is not written down: {failed}")
        if unwritten:
            raise unwritten[0]
        return [output.out for output in self.outputs]

    def _switch(self, kept: Mapping[str, Any] | None) -> Batch | None:
        """Up to the switch, and what is written down there; gives the offline rows that audits look at."""
        if self.forked is None:
            self._records = self.pretrain(kept)
        else:
            self._records = [self.forked] * len(self.outputs)
        self._spread()
        audited = self._audit_rows()
        for output, record in zip(self.outputs, self._records, strict=True):
            output.switch(record, self.agent, audited)
        first = self.outputs[0].advice
        if self.forked is None and first is not None and first.comparison is not None:
            self.progress.note(f"at the switch: {first.sentence()}")
        return audited

    # Offline

    def pretrain(self, kept: Mapping[str, Any] | None = None) -> list[SwitchRecord]:
        """Offline updates; ends with the evaluation at the switch.

        Args:
            kept: The state of the checkpoint that it goes on from.
        """
        config, agent = self.config, self.agent
        if self.dataset is not None and agent.config.normalize_observations:
            agent.set_normalizer(*observation_statistics(self.dataset.transitions))
        log_every = config.log_every or max(1, config.offline_updates // 100)
        every = config.evaluation.offline_eval_every
        every = max(1, config.offline_updates // 4) if every is None else every
        rolls = self._rolls("offline")
        if any(rolls):
            agent.draws = make_draws(
                [rolled(s, n) for s, n in zip(agent.seeds, rolls, strict=True)], agent.device, agent.dtype
            )
        rates = learning_rates(agent)
        update, evaluate, stretch = 0, False, SHOW_EVERY
        if kept is not None:
            self._restore_agent()
            update, evaluate = int(kept["offline"]["update"]), bool(kept["offline"]["evaluate"])

        def keep() -> None:
            self._keep("offline", {"offline": {"update": update, "evaluate": evaluate}})

        try:
            while True:
                if evaluate:
                    self._evaluate("offline", 0, index=update)
                    evaluate = False
                self.request.check()
                if update and (update == config.offline_updates or (self.keeper is not None and self.keeper.due)):
                    keep()
                if update >= config.offline_updates:
                    break
                stops = [-update % n or n for n in (log_every, every, SHOW_EVERY) if n]
                count = min(config.offline_updates - update, stretch, *stops)
                begun = time.perf_counter()
                info = self.learner.offline_updates(count)
                if agent.device.type == "cpu":  # elsewhere it would decide what is launched together
                    stretch = max(1, int(STOP_S * count / max(time.perf_counter() - begun, 1e-6)))
                update += count
                if update % log_every == 0 or update == config.offline_updates:
                    self._log("offline", 0, info, [{}] * self.members)
                if update % SHOW_EVERY == 0 or update == config.offline_updates:
                    for output in self.outputs:
                        output.show("offline", update, config.offline_updates, "")
                evaluate = bool(every and update % every == 0 and update < config.offline_updates)
            evaluation = self._run_evaluation(ONLINE_EVALUATIONS, config.evaluation.switch_episodes)
        except Stopped:
            keep()
            raise
        return [output.record(evaluation, agent.updates, rates) for output in self.outputs]

    def _rolls(self, phase: str) -> list[int]:
        """How often every member was rolled back; a pretraining that several share counts for all of them."""
        found: dict[int, int] = {}
        for output in self.outputs:
            for member, seed in zip(output.positions(phase), output.seeds, strict=True):
                found[member] = max(found.get(member, 0), times(output.manifest, seed))
        return [found[member] for member in sorted(found)]

    def _spread(self) -> None:
        """At the switch: members that were pretrained once become as many as they are from now on."""
        members = self.prepared.members
        if self.forked is None and members.shares_pretraining:
            self.agent = take_members(
                self.agent, members.pretrained_as, config=members.hyper, overrides=members.overrides
            )
            self.learner.agent = self.agent

    # Online

    def _online_buffer(self) -> ReplayBuffer:
        config, agent = self.config, self.agent
        steps = -(-config.online_steps // config.num_envs) * config.num_envs
        capacity = min(config.buffer_size, steps)
        return ReplayBuffer(self.members, capacity, agent.obs_dim, agent.action_dim, device=agent.device)

    def finetune(self, records: Sequence[SwitchRecord], audited: Batch | None = None) -> None:
        """Interaction and smoothed updates for the online budget; `audited` are offline rows for audits to look at."""
        config, agent, streams = self.config, self.agent, self.prepared.members.streams
        budget, n = config.online_steps, config.num_envs
        kept = None if self.kept is None or self.kept.state["phase"] != "online" else self.kept.state["online"]
        members = list(zip(self.seeds, streams, strict=True))
        rolls = self._rolls("online")
        if any(streams) or any(rolls):
            seeds = [rolled(online_seed(s, k), n) for (s, k), n in zip(members, rolls, strict=True)]
            agent.draws = make_draws(seeds, agent.device, agent.dtype)
        self._controllers = [
            make_controller(output.config, self.task, members=len(output.seeds)) for output in self.outputs
        ]
        controller = self._controllers[0] if len(self._controllers) == 1 else JointController(self._controllers)
        if kept is None:
            self._compare_rates(records)
            self.check_parity()
        settings = OnlineSettings(
            env_steps=budget,
            utd=config.utd,
            update_after=config.update_after,
            warm_up_steps=config.hygiene.warm_up_steps,
            random_steps=config.random_steps,
            log_every=config.log_every or max(1, budget // 100),
            evaluate_at=config.evaluation.online_steps(budget),
            streams=streams,
        )
        hygiene = self._hygiene = self.learner.tend(
            config.hygiene, config.anchors, config.averaging, updates=settings.updates_due(-(-budget // n) * n)
        )
        if hygiene is not None and self.learner.grouped and hygiene.alone:
            self.progress.note(f"updates go one by one, without CUDA graphs, while {hygiene.alone} acts on them")
        if config.smoothing.regime == "discard":
            self.learner.offline_rows = None
        audit = self._audit(settings, audited)
        collector = self._resumed_collector(members, kept)
        if kept is not None:
            self._restore_agent()
            self._restore_online(kept, controller, audit)
        self._clock, self._clock_updates = time.perf_counter(), agent.updates
        pauses = OnlinePauses(self, collector, controller, audit)
        finetune(self.learner, collector, controller, settings, self, audit, pauses=pauses, resumed=kept)
        for output, record, own in zip(self.outputs, records, self._controllers, strict=True):
            output.final(record, agent, own, hygiene)
            output.online_data(self.online_rows, f"online steps of {agent.name}")

    def _collector(self, task: Task, envs: int, buffer: ReplayBuffer, seeds: Sequence[int]) -> Collector:
        """What collects, with so many environments per member."""
        config = self.config
        return Collector(
            make_vector_env(
                task,
                self.members * envs,
                vectorizer=config.vectorizer,
                supervision=config.environments.supervision(),
            ),
            self.members,
            buffer,
            reward_map=self.reward_map,
            discount=self.agent.config.discount,
            seeds=seeds,
            overlap=overlaps(config.overlap, config.vectorizer, self.agent.device),
            on_fault=lambda fault: self._env_failed(fault, fault.env // envs),
        )

    def check_parity(self) -> None:
        """See `parity`; what came out goes into the manifests.

        Raises:
            ParityError: The two paths disagree.
        """
        found = {"outcome": "unfinished", "remark": "the check did not come to an end"}
        begun = time.monotonic()

        def look() -> None:
            if time.monotonic() - begun > PARITY_S:
                self.request.check()

        if not self.config.switch.parity_check:
            found = {"outcome": "skipped", "remark": "--no-parity-check"}
        try:
            if self.config.switch.parity_check:
                rows, data = self.learner.offline_rows, self.dataset
                parity = check_parity(
                    Paths(
                        self.agent,
                        self.task,
                        self.reward_map,
                        lanes=min(2, self.config.num_envs),
                        evaluator=lambda task, envs: Evaluator(task, self.agent.seeds, envs=envs),
                        collector=self._collector,
                        look=look,
                    ),
                    pool=self.config.vectorizer == "envpool",
                    offline=None if rows is None or data is None else (rows, data.transitions),
                )
                found = parity.to_dict()
                if parity.outcome != "agree":
                    self.progress.note(f"parity check: {parity.remark}")
        except ParityError as error:
            found = {"outcome": "disagree", "culprit": error.culprit, "remark": str(error)}
            raise
        finally:
            for output in self.outputs:
                output.remember("parity", found)

    def _audit_rows(self) -> Batch | None:
        """The offline rows that audits look at; a fork without offline data has those of its checkpoint."""
        if self.learner.offline_rows is not None:
            return offline_audit_rows(self.learner.offline_rows, self.config.switch.audit_rows)
        if self.config.pretrained is None:
            return None
        return saved_audit_rows(find_checkpoint(Path(self.config.pretrained)), self.agent.device)

    def _audit(self, settings: OnlineSettings, audited: Batch | None) -> Audit | None:
        switch = self.config.switch
        if not switch.audit:
            return None
        when = rhythm(
            settings.updates_due(settings.env_steps),
            log_every=settings.log_every * settings.utd,
            every=switch.audit_every,
            draws=draws_per_row(self.agent),
        )

        for output in self.outputs:
            kind = "online" if audited is None else "offline"
            rows = switch.audit_rows if audited is None else len(audited.reward)
            output.remember("audit", {"compared_on": kind, "rows": rows, "every_updates": when.every})

        def write(env_steps: int, updates: int, values: Values) -> None:
            for output in self.outputs:
                output.audit(env_steps, self.agent.updates, updates, values)

        return Audit(self.learner, write, rhythm=when, count=switch.audit_rows, offline=audited)

    def _compare_rates(self, records: Sequence[SwitchRecord]) -> None:
        """Warn of learning rates that are not those of the pretraining."""
        now = learning_rates(self.agent)
        for output, record in zip(self.outputs, records, strict=True):
            if record.learning_rates is not None:
                own = {name: rates[list(output.arm.members)] for name, rates in now.items()}
                for line in rate_warnings(own, record.learning_rates, output.seeds):
                    self.progress.note(f"{output.label}{line}")

    def log(self, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        """See `Observer`."""
        self._log("online", env_steps, info, signals)

    def evaluate(self, env_steps: int) -> None:
        """See `Observer`."""
        budget = self.config.online_steps
        for output in self.outputs:
            output.show("online", min(env_steps, budget), budget, "evaluating")
        evaluation = self._evaluate("online", env_steps, index=ONLINE_EVALUATIONS + env_steps)
        for output, record, own in zip(self.outputs, self._records, self._controllers, strict=False):
            output.best(evaluation, record, self.agent, own, self._hygiene)

    def show(self, env_steps: int) -> None:
        """See `Observer`."""
        budget = self.config.online_steps
        for output in self.outputs:
            output.show("online", min(env_steps, budget), budget)

    # What is written down

    def _run_evaluation(self, index: int, episodes: int) -> Evaluation:
        agent, evaluation = self.agent, self.config.evaluation
        if self._evaluator is not None and self._evaluator.seeds != agent.seeds:
            self._evaluator.close()
            self._evaluator = None
        if self._evaluator is None:
            envs = min(evaluation.eval_envs, evaluation.eval_episodes)
            self._evaluator = Evaluator(
                self.task,
                agent.seeds,
                envs=envs,
                supervision=self.config.environments.supervision(),
                on_fault=lambda fault: self._env_failed(fault, fault.env // envs, evaluating=True),
            )

        def act(obs: FloatArray) -> FloatArray:
            self.request.check()
            return agent.act(obs)

        with self.learner.acting():
            return self._evaluator.run(act, episodes=episodes, index=index)

    def _evaluate(self, phase: str, env_steps: int, *, index: int) -> Evaluation:
        evaluation = self._run_evaluation(index, self.config.evaluation.eval_episodes)
        for output in self.outputs:
            output.evaluation(evaluation, phase, env_steps, self.agent.updates)
        return evaluation

    def _log(self, phase: str, env_steps: int, info: Metrics, signals: Sequence[Mapping[str, float]]) -> None:
        now = time.perf_counter()
        updates = self.agent.updates
        speed = (updates - self._clock_updates) / max(now - self._clock, 1e-9)
        self._clock, self._clock_updates = now, updates
        values = {name: tensor.double().cpu().numpy() for name, tensor in info.items()}
        errors: list[tuple[Output, Diverged]] = []
        for i, output in enumerate(self.outputs):
            seen: Values = values
            if len(self.outputs) > 1 and phase == "online":
                seen = self._own(i, values)
            own = [signals[m] for m in output.positions(phase)]
            try:
                output.metrics(phase, env_steps, updates, seen, own, speed)
            except Diverged as error:  # the others write their rows first
                errors.append((output, error))
        if errors:
            if self.learner.guard is not None:
                self.learner.guard.examine(self.learner, info)
            self._diverged = errors[0][0]
            raise errors[0][1]

    def _own(self, index: int, values: Values) -> Values:
        """The metrics of the latest update that one of the runs would have alone."""
        agent, controller, used = self.agent, self._controllers[index], self.learner.mix
        if used is None:
            return values
        own = list(self.outputs[index].arm.members)
        mix = Mix({name: w[own] for name, w in used.weights.items()}, used.offline_fraction, used.mode)
        frozen = {name: mask[own] for name, mask in agent.frozen.items()}
        planner = Planner(agent.offline, agent.online)
        plan, _ = planner(mix, updates=agent.updates - 1, one_batch=True, frozen=frozen)
        measured = any(controller.mix().kind(c) == "mixed" for c in COMPONENTS)
        return own_metrics(values, plan, measured=measured)
