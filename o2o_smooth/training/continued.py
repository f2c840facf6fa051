"""What a run does about stopping and going on: its folders, its checkpoints, and putting back what they hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from o2o_smooth.agents.storage import (
    agent_state,
    read_json,
    read_tensors,
    restore_agent,
    restore_replaced,
)
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector
from o2o_smooth.data.replay_files import Replay, read_rows
from o2o_smooth.data.sources import ONLINE_FOLDER
from o2o_smooth.envs import Task
from o2o_smooth.envs import state as env_state
from o2o_smooth.envs.supervision import Fault, Gone
from o2o_smooth.errors import CheckpointError, EnvError
from o2o_smooth.smoothing import Mix, SmoothingController
from o2o_smooth.training.audit import Audit
from o2o_smooth.training.checkpoint import SwitchRecord
from o2o_smooth.training.env_faults import tell_fault
from o2o_smooth.training.evaluate import Evaluator
from o2o_smooth.training.guard import GuardedLearner
from o2o_smooth.training.hygiene import Hygiene
from o2o_smooth.training.keeping import FOLDER, ROWS, Keeper, Kept
from o2o_smooth.training.output import Output
from o2o_smooth.training.prepare import Prepared
from o2o_smooth.training.progress import ProgressSink
from o2o_smooth.training.request import write_request
from o2o_smooth.training.seeding import Stream, env_seeds, resumed_index
from o2o_smooth.training.stopping import StopRequest
from o2o_smooth.training.trees import Unkeepable


class Continued:
    """The state of a run in progress, or of several that share a population.

    Args:
        prepared: What to run.
        progress: Where progress goes.
        name: What the display calls arms without a name.
        keeper: Of a run that goes on in its folders; it holds the lock.
        kept: The checkpoint that it goes on from; None: there was none yet.
    """

    def __init__(
        self,
        prepared: Prepared,
        progress: ProgressSink,
        name: str | None = None,
        *,
        keeper: Keeper | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.prepared = prepared
        self.config, self.task, self.agent = prepared.config, prepared.task, prepared.agent
        self.dataset, self.reward_map, self.forked = prepared.dataset, prepared.reward_map, prepared.forked
        self.progress = progress
        self.members, self.seeds = len(prepared.members.seeds), prepared.members.seeds
        self.outputs = [Output(prepared, arm, progress, arm.name or name) for arm in prepared.arms]
        self.learner = self._make_learner()
        self.online_rows: ReplayBuffer  # once it is clear that the run goes online
        self.resumed, self.kept = keeper is not None, kept
        self.request = StopRequest()
        self.keeper = keeper
        if keeper is not None:
            keeper.go_on(kept)
        elif self.config.checkpoints.save_checkpoints:
            self.keeper = Keeper(prepared.out / FOLDER, self.config.checkpoints)
        self._records: Sequence[SwitchRecord] = ()
        self._hygiene: Hygiene | None = None
        self._uncaptured: str | None = None  # why environments cannot be captured; None: they can
        self._controllers: list[SmoothingController] = []  # of the outputs
        self._diverged: Output | None = None
        self._evaluator: Evaluator | None = None
        self._clock = time.perf_counter()
        self._clock_updates = self.agent.updates

    def _make_learner(self) -> GuardedLearner:
        raise NotImplementedError

    # Folders

    def _open(self, kept: Mapping[str, Any] | None) -> None:
        """Begin the folders, or go on in them."""
        said: dict[str, Any] | None = None
        if self.resumed:
            said = {"checkpoint": None}
            if kept is not None and self.kept is not None:
                said = {"checkpoint": self.kept.serial, "phase": kept["phase"], **kept["at"]}
            if self.keeper is not None:
                self.keeper.forget_after(0 if self.kept is None else self.kept.serial)
            for output in self.outputs:
                for folder in (output.out, output.out / "checkpoints", output.out / ONLINE_FOLDER):
                    restore_replaced(folder)
        else:
            for output in self.outputs:
                output.make_room()
            if self.keeper is not None:  # before anything else is there: a kill must leave a run that can be resumed
                self.keeper.lock()
                write_request(self.prepared)
        for output in self.outputs:
            output.open_sinks(said)
        nothing: Mapping[str, int] | None = {} if self.resumed else None
        for i, output in enumerate(self.outputs):
            output.open(nothing if kept is None else kept["outputs"][i]["positions"])
            if kept is not None:
                output.load_state(kept["outputs"][i])

    # Environments

    def _collector(self, task: Task, envs: int, buffer: ReplayBuffer, seeds: Sequence[int]) -> Collector:
        """What collects, with so many environments per member."""
        raise NotImplementedError

    def _env_failed(self, fault: Fault, member: int, *, evaluating: bool = False) -> None:
        """Tell the runs whose member's environment failed."""
        phase = "online" if self._controllers else "offline"
        for output in self.outputs:
            if member in output.positions(phase):
                tell_fault(output, fault, evaluating=evaluating)

    def _resumed_collector(self, members: Sequence[tuple[int, int]], kept: Mapping[str, Any] | None) -> Collector:
        """What collects for the run, at its beginning or where a checkpoint was."""
        n = self.config.num_envs
        states = None if kept is None else kept["envs"]
        anew = kept is not None and states is None
        if kept is not None and self.kept is not None:
            rows = self.kept.rows
            read_rows(self.online_rows, self.kept.folder.parent / ROWS, rows["segments"], int(rows["written"]))
        seeds = [
            s
            for seed, stream in members
            for s in env_seeds(
                seed,
                Stream.TRAIN_ENV,
                n,
                resumed_index(stream, int(kept["collector"]["env_steps"])) if anew and kept is not None else stream,
            )
        ]
        collector = self._collector(self.task, n, self.online_rows, seeds)
        try:
            self._uncaptured = env_state.why_not(collector.envs)
            if kept is None:
                if self._uncaptured is not None and self.keeper is not None:
                    self.progress.note(
                        f"this run, if stopped, resumes with new episodes: the environments' state cannot be kept "
                        f"({self._uncaptured})"
                    )
            elif states is not None:
                env_state.restore(collector.envs, states)
                collector.load_state(kept["collector"])
            else:
                cut = collector.begin_anew(kept["collector"])
                self._note_cut(cut)
        except BaseException:
            collector.close()
            raise
        return collector

    def _note_cut(self, cut: int) -> None:
        """Tell of episodes that could not be gone on with."""
        self.progress.note(
            f"the environments begin new episodes, the {cut} that were running are cut short: their state could not be "
            f"kept ({self._uncaptured or 'when the checkpoint was written'})"
        )
        for output in self.outputs:
            output.manifest["resumed"][-1]["episodes_cut"] = cut
            output.remember(
                "resumed_with_new_episodes", {"reason": self._uncaptured, "times": self._times_anew(output)}
            )

    @staticmethod
    def _times_anew(output: Output) -> int:
        return sum("episodes_cut" in entry for entry in output.manifest["resumed"])

    # Checkpoints

    def due(self) -> bool:
        """Whether a checkpoint is wanted now, or somebody wants to stop."""
        return self.request.number is not None or (self.keeper is not None and self.keeper.due)

    def _keep(
        self, phase: str, state: Mapping[str, Any], collector: Collector | None = None, begun: float | None = None
    ) -> None:
        """Keep a checkpoint; one of networks that hold NaN would be of no use. `begun`: when its making began."""
        keeper = self.keeper
        if keeper is None:
            return
        begun = time.monotonic() if begun is None else begun
        description, tensors = agent_state(self.agent, None)
        broken = next((name for name, x in tensors.items() if not bool(torch.isfinite(x).all())), None)
        if broken is not None:
            self.progress.note(f"warning: no checkpoint is kept, '{broken}' is not finite; the last good one stays")
            keeper.put_off()
            return
        kept = {
            "phase": phase,
            "at": {"env_steps": 0 if collector is None else collector.env_steps, "updates": self.agent.updates},
            "outputs": [output.state() for output in self.outputs],
            "records": [asdict(record) for record in self._records],
            "mix": None if self.learner.mix is None else self.learner.mix.to_dict(),
            **state,
        }
        files: dict[str, Any] = {"agent.json": description, "agent.safetensors": tensors}
        if self._hygiene is not None:
            files |= self._hygiene.files()
        replay = None if collector is None else Replay.of(collector)
        try:
            keeper.write(kept, files, replay, begun=begun)
        except Unkeepable as error:
            if "online" not in state or state["online"]["envs"] is None:
                raise
            self._uncaptured = f"together with the rest, {error}"
            self.progress.note(f"warning: this run, if stopped, resumes with new episodes: {error}")
            kept["online"] = {**state["online"], "envs": None}
            keeper.write(kept, files, replay, begun=begun)

    def _restore_agent(self) -> None:
        """Put the agent of the checkpoint in place of the one there is, and what tends it."""
        assert self.kept is not None
        folder = self.kept.folder
        tensors = read_tensors(folder / "agent.safetensors")
        restore_agent(self.agent, read_json(folder / "agent.json"), tensors, folder)
        if self._hygiene is not None:
            file = folder / "hygiene.safetensors"
            tended = read_tensors(file) if file.is_file() else {}
            self._hygiene.load_state_dict(tended, read_json(folder / "hygiene.json"))
        mix = self.kept.state["mix"]
        self.learner.mix = None if mix is None else Mix.from_dict(mix)

    def _restore_online(self, kept: Mapping[str, Any], controller: SmoothingController, audit: Audit | None) -> None:
        try:
            controller.load_state_dict(kept["controller"])
            if audit is not None and kept["audit"] is not None:
                audit.load_state(kept["audit"])
        except (KeyError, TypeError, ValueError) as error:
            assert self.kept is not None
            raise CheckpointError(f"{self.kept.folder} does not fit the run: {error}") from None


@dataclass
class OnlinePauses:
    """See `finetune.Pauses`."""

    run: Continued
    collector: Collector
    controller: SmoothingController
    audit: Audit | None

    def due(self) -> bool:
        """See `Pauses`."""
        return self.run.due()

    def stopping(self) -> bool:
        """See `Pauses`."""
        return self.run.request.number is not None

    def keep(self, capture: Callable[[], dict[str, Any]]) -> None:
        """See `Pauses`."""
        run, collector = self.run, self.collector
        begun = time.monotonic()
        state = {
            **capture(),
            "envs": None,
            "controller": self.controller.state_dict(),
            "audit": None if self.audit is None else self.audit.state(),
            "collector": collector.state(),
        }
        if run._uncaptured is None:
            try:
                state["envs"] = env_state.capture(collector.envs)
            except Gone as error:
                if not self.stopping():  # the next step makes it anew
                    run.progress.note(f"a checkpoint is put off: {error}")
                    return
                run.progress.note(f"warning: this run resumes with new episodes: {error}")
            except EnvError as error:  # an environment that has changed its mind should not cost the run
                run._uncaptured = str(error)
                run.progress.note(f"warning: this run, if stopped, resumes with new episodes: {error}")
        run._keep("online", {"online": state}, collector, begun)
        run.request.check()
