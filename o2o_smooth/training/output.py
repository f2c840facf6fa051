"""One run folder: takes its members' part of what a population does, and looks as if they had been alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.agents import Agent
from o2o_smooth.agents.plan import Plan
from o2o_smooth.data.batch import Batch
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.errors import O2OError
from o2o_smooth.smoothing import COMPONENTS, SmoothingController
from o2o_smooth.training.advice import Advice, advise, followed
from o2o_smooth.training.audit import ROWS_FILE, audit_row
from o2o_smooth.training.audit_rates import Rates
from o2o_smooth.training.checkpoint import SwitchRecord, inherited, save_checkpoint
from o2o_smooth.training.evaluate import Evaluation
from o2o_smooth.training.hygiene import Hygiene
from o2o_smooth.training.manifest import describe_dataset, make_manifest, now, resumed_manifest
from o2o_smooth.training.online_data import write_online
from o2o_smooth.training.prepare import Arm, Prepared
from o2o_smooth.training.progress import ProgressSink
from o2o_smooth.training.replacing import remove_run
from o2o_smooth.training.tracking import LocalFiles, Sink, Tracker, check_sinks, open_sinks
from o2o_smooth.training.tracking.summary import stability_rows
from o2o_smooth.training.trees import encode

Values = Mapping[str, NDArray[Any]]  # metric -> (M,)
_SHOW_S = 0.1  # between two pictures of progress where several arms share the display


class Diverged(O2OError):
    """Training produced NaN or infinity."""


class Output:
    """See the module docstring.

    Args:
        prepared: What the population was prepared from.
        arm: Which of its runs this is.
        progress: Where notes and progress go.
        name: What the display calls it.
    """

    def __init__(self, prepared: Prepared, arm: Arm, progress: ProgressSink, name: str | None) -> None:
        self.prepared, self.arm, self.progress = prepared, arm, progress
        self.config, self.out, self.seeds = arm.config, arm.out, arm.config.seeds
        self.label = f"{name}: " if name else ""
        self.alone = len(prepared.arms) == 1
        self.manifest: dict[str, Any] = {}
        self.advice: Advice | None = None  # from the switch on
        self.remark = ""
        self._sinks: list[Sink] = []
        self._tracker: Tracker | None = None
        self._shown = -np.inf
        self._begun = time.monotonic()  # the clock on the wall may be put back
        self._updates = 0  # at the last evaluation
        self._broken = False  # whether an audit has found NaN or infinity
        self._best: float | None = None  # of the online evaluations, a mean over the run's seeds

    # Beginning and end

    def make_room(self) -> None:
        """Look whether the sinks can be had, and delete the run that is to be replaced."""
        config = self.config
        check_sinks(wandb=config.wandb, tensorboard=config.tensorboard, project=config.wandb_project)
        if config.overwrite:
            remove_run(self.out)

    def open_sinks(self, resumed: Mapping[str, Any] | None = None) -> None:
        """Make the manifest and open what else was asked for; a sink that is not installed is an error.

        Args:
            resumed: Of a run that goes on in its folder: what the manifest says of that.
        """
        if resumed is None:
            self.manifest = make_manifest(self.prepared, self.arm)
        else:
            self.manifest = resumed_manifest(self.out, make_manifest(self.prepared, self.arm), resumed)
        self._sinks = open_sinks(
            self.out,
            name=self.out.name,
            config={
                **self.manifest["config"],
                "dataset_used": self.manifest["dataset"],
                "score": self.manifest["score"],
            },
            seeds=self.seeds,
            wandb=self.config.wandb,
            tensorboard=self.config.tensorboard,
            project=self.config.wandb_project,
            warn=self.progress.note,
        )

    def open(self, positions: Mapping[str, int] | None = None) -> None:
        """Begin the run's files, or go on in them from `positions`."""
        self._tracker = Tracker(LocalFiles(self.out, positions), self._sinks, warn=self.progress.note)
        self._tracker.manifest(self.manifest)

    def close(self, status: str) -> O2OError | None:
        """Write down how the run ended; gives the error where that cannot be written, and closes all the same."""
        failed = None
        if self._tracker is not None:
            self._summarise()
            spent = time.monotonic() - self._begun + float(self.manifest.get("wall_s") or 0.0)
            self.manifest |= {"status": status, "finished": now(), "wall_s": round(spent, 3)}
            try:
                self._tracker.manifest(self.manifest)
            except O2OError as error:
                failed = error
            self._tracker.close(status if failed is None else "failed")
        return failed

    def _summarise(self) -> None:
        """Tell the sinks how the switch went; files need no telling."""
        if not self._sinks:
            return
        try:
            for row in stability_rows(self.out, self._updates):
                self.tracker.summary(row)
        except O2OError as error:  # the run itself is over and kept
            self.progress.note(f"warning: no summary for W&B and TensorBoard: {error}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: where the files end, and what was remembered of the rows in them."""
        return {
            "positions": self.tracker.positions(),
            "updates": self._updates,
            "broken": self._broken,
            "best": self._best,
            "remark": self.remark,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; the files are opened at their positions."""
        self._updates, self._broken = int(state["updates"]), bool(state["broken"])
        self._best, self.remark = state["best"], str(state["remark"])

    @property
    def tracker(self) -> Tracker:
        """The run's files and sinks; `open` comes first."""
        if self._tracker is None:
            raise RuntimeError("the output is not open")
        return self._tracker

    # Evaluations

    def positions(self, phase: str) -> Sequence[int]:
        """Where the run's members are in the population; before the switch it may be smaller."""
        return self.arm.members if phase == "online" else self.arm.pretrained_as

    def evaluation(self, evaluation: Evaluation, phase: str, env_steps: int, updates: int) -> None:
        """Write down an evaluation of the whole population, and remember how the run does."""
        self._updates = updates
        own = evaluation.of(self.positions(phase))
        for row in self._rows(own, phase, env_steps, updates):
            self.tracker.evaluation(row)
        self._remember(own)

    def _remember(self, own: Evaluation) -> None:
        """What stands beside the progress."""
        scores = self.prepared.task.score(own.returns)
        unit, mean = ("return", own.returns.mean()) if scores is None else ("score", scores.mean())
        data = self.manifest["score"][f"behaviour_{unit}"]
        policy, behaviour = (f"{x:.{0 if abs(x) >= 1000 else 1}f}" for x in (mean, 0.0 if data is None else data))
        # Beside an arm's name 80 columns have no room for the data's.
        self.remark = f"{unit} {policy}" + ("" if data is None or self.label else f" (data {behaviour})")

    def _rows(self, own: Evaluation, phase: str, env_steps: int, updates: int) -> list[dict[str, Any]]:
        return own.rows(
            self.prepared.task,
            phase=phase,
            env_steps=env_steps,
            updates=updates,
            seeds=self.seeds,
            provenance=self.manifest["score"]["provenance"],
        )

    def record(self, evaluation: Evaluation, updates: int, rates: Rates) -> SwitchRecord:
        """What the evaluation at the switch says of the run's members; `rates`: of learning, when pretraining began."""
        own = evaluation.of(self.positions("switch"))
        self._remember(own)
        prepared, config = self.prepared, self.config
        return SwitchRecord(
            task=prepared.task.id,
            dataset=None if prepared.dataset is None else describe_dataset(prepared.dataset),
            reward_scale=prepared.reward_map.scale,
            reward_shift=prepared.reward_map.shift,
            offline_updates=config.offline_updates,
            settings=inherited(config),
            rows=self._rows(own, "switch", 0, updates),
            returns=own.returns.tolist(),
            learning_rates={k: [float(v[m]) for m in self.positions("switch")] for k, v in rates.items()},
            held_out=prepared.holdout.ranges,
        )

    def switch(self, record: SwitchRecord, agent: Agent, audited: Batch | None = None) -> None:
        """Write down the switch; `audited` are the offline rows that audits look at."""
        for row in record.rows:
            self.tracker.evaluation(row)
        self.advice = advise(record, self.prepared.task)
        self.manifest["advice"] = self.advice.to_dict()
        if self.config.online_steps > 0:
            self.manifest["advice"]["followed"] = followed(self.advice, self.manifest["config"]["smoothing"])
        self.tracker.manifest(self.manifest)
        files = {} if audited is None else {ROWS_FILE: audited._asdict()}
        folder = self.out / "checkpoints" / "switch"
        save_checkpoint(folder, agent, record, members=self._saved(agent), files=files)

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Put something into the manifest, at once."""
        self.manifest[name] = dict(value)
        self.tracker.manifest(self.manifest)

    def final(
        self, record: SwitchRecord, agent: Agent, controller: SmoothingController, hygiene: Hygiene | None = None
    ) -> None:
        """Keep the end of the run."""
        folder, members = self.out / "checkpoints" / "final", self._saved(agent)
        files = None if hygiene is None else hygiene.files(members)
        save_checkpoint(folder, agent, record, _json(controller), members=members, files=files)

    def best(
        self, evaluation: Evaluation, record: SwitchRecord, agent: Agent, controller: SmoothingController, hygiene: Any
    ) -> None:
        """Keep the agent of the best online evaluation."""
        own = evaluation.of(self.positions("online"))
        scores = self.prepared.task.score(own.returns)
        value = float((own.returns if scores is None else scores).mean())
        if not self.config.checkpoints.keep_best or (self._best is not None and value <= self._best):
            return
        self._best = value
        folder, members = self.out / "checkpoints" / "best", self._saved(agent)
        files = None if hygiene is None else hygiene.files(members)
        save_checkpoint(folder, agent, record, _json(controller), members=members, files=files)

    def _saved(self, agent: Agent) -> Sequence[int] | None:
        return None if len(self.arm.members) == agent.members else self.arm.members

    # Metrics

    def metrics(
        self,
        phase: str,
        env_steps: int,
        updates: int,
        values: Values,
        signals: Sequence[Mapping[str, float]],
        speed: float,
    ) -> None:
        """Write down the metrics of the population's latest update.

        Args:
            phase: See `positions`.
            env_steps: Per member.
            updates: Of the agent.
            values: Of the whole population.
            signals: Of this run's members, one mapping each.
            speed: Updates per second.

        Raises:
            Diverged: A metric is NaN or infinite; the rows are written first.
        """
        positions = self.positions(phase)
        for seed, m, signal in zip(self.seeds, positions, signals, strict=True):
            row: dict[str, Any] = {"phase": phase, "env_steps": env_steps, "updates": updates, "seed": seed}
            row |= {name: float(value[m]) for name, value in values.items()}
            row |= dict(signal)
            row["time/updates_per_s"] = speed
            self.tracker.metrics(row)
        for name, value in values.items():
            own = value[list(positions)]
            if not np.isfinite(own).all():
                seed = self.seeds[int(np.argmin(np.isfinite(own)))]
                raise Diverged(
                    f"{self.label}training diverged: {name} of seed {seed} is {own[~np.isfinite(own)][0]} after "
                    f"{updates} updates; lower the learning rates, or scale the rewards. "
                    f"What was logged is in {self.out}"
                )

    def audit(self, env_steps: int, updates: int, online_updates: int, values: Values) -> None:
        """Write down an audit of the whole population; what is NaN or infinite draws a remark."""
        for seed, m in zip(self.seeds, self.positions("online"), strict=True):
            own = audit_row(values, m)
            row = {"phase": "online", "env_steps": env_steps, "updates": updates, "seed": seed}
            self.tracker.audit({**row, "switch/updates": online_updates, **own})
            broken = [name for name, value in own.items() if not np.isfinite(value)]
            if broken and not self._broken:
                self._broken = True
                names = ", ".join(broken)
                self.progress.note(f"{self.label}audit: {names} of seed {seed} not finite after {updates} updates")

    # The rest

    def online_data(self, buffer: ReplayBuffer, made_by: str) -> None:
        """Keep what the run's members collected, if that is wanted."""
        if not self.config.save_online:
            return
        try:
            write_online(
                self.out,
                buffer,
                self.seeds,
                members=self.arm.members,
                num_envs=self.config.num_envs,
                reward_map=self.prepared.reward_map,
                record={"task": self.prepared.task.id, "provenance": "generated", "made_by": made_by},
            )
        except O2OError as error:  # a full disk should not cost the run
            self.progress.note(f"warning: the online data are not kept: {error}")

    def show(self, phase: str, done: int, total: int, remark: str | None = None) -> None:
        """Show how far the run is."""
        moment = time.monotonic()
        if remark is None and not self.alone and done < total and moment - self._shown < _SHOW_S:
            return
        self._shown = moment
        self.progress.update(f"{self.label}{phase}", done, total, self.remark if remark is None else remark)

    def picture(self) -> None:
        """Draw the run."""
        from o2o_smooth.training.pictures import draw_run  # matplotlib is slow to import

        draw_run(self.out)


def _json(controller: SmoothingController) -> dict[str, Any]:
    state: dict[str, Any] = encode(controller.state_dict(), {})  # evidence may be infinite
    return state


def own_metrics(values: Values, plan: Plan, *, measured: bool) -> dict[str, NDArray[Any]]:
    """The metrics that some members of a population would have alone.

    Others may be in their ramp while these have left it: then the population computes losses that have no weight for
    them, and tells the two objectives' metrics apart by a prefix.

    Args:
        values: Metrics of the population.
        plan: What the members' step is made of.
        measured: Whether their gradients are measured, as they are in the ramp.
    """
    found: dict[str, NDArray[Any]] = {}
    sides = {"offline": plan.offline, "online": plan.online}
    both = bool(plan.offline) and bool(plan.online)
    for full, value in values.items():
        name = full
        head, _, rest = full.partition("/")
        if head in sides:
            component, _, metric = rest.partition("/")
            if component not in sides[head] or (not both and metric == "loss"):
                continue
            name = full if both else rest
        elif (head in COMPONENTS and head not in plan.offline | plan.online) or (
            full.endswith("gradient_cosine") and not measured
        ):
            continue
        found[name] = value
    return found
