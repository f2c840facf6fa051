"""The learner on a GPU: several updates a launch, from a captured CUDA graph, and nothing waits for anything.

A program (`launch.Program`) is run as it stands the first time that it is needed, which also warms it up; the second
time it is captured, and from then on replayed. Elsewhere this is the plain learner.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.plan import Movement
from o2o_smooth.agents.readings import Readings
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.store import row_width
from o2o_smooth.draws import CounterDraws
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.capture import CudaCapture
from o2o_smooth.training.config import Regime
from o2o_smooth.training.launch import LARGEST, Capture, Inputs, Launch, Program, Share, Step, step_values
from o2o_smooth.training.learner import Learner, Source

Graphs = Literal["auto", "on", "off"]
MOST_NUMBERS = 2**23  # of one draw or batch in a launch, so that large populations do not pay in memory


class GraphedLearner(Learner):
    """A learner that gives a CUDA device several updates at once.

    The metrics that it returns can be read until the next update.

    Args:
        agent: The agent.
        batch_size: Rows per objective and member.
        offline_rows: The dataset's rows, shared by all members; None without offline data.
        online_rows: What has been collected; may be set later, at the switch.
        regime: See `SmoothingConfig.regime`.
        graphs: auto: on a CUDA device, and if a capture fails the same updates go on without it, after a warning. on:
            the same, but both a CPU and a failed capture are errors. off: the plain learner.
        capture: Another way to capture, whatever the device; the agent's draws must be `CounterDraws`.

    Raises:
        ConfigError: `graphs="on"` without a CUDA device.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        batch_size: int,
        offline_rows: ReplayBuffer | None = None,
        online_rows: ReplayBuffer | None = None,
        regime: Regime = "retain",
        graphs: Graphs = "auto",
        capture: Capture | None = None,
    ) -> None:
        super().__init__(
            agent, batch_size=batch_size, offline_rows=offline_rows, online_rows=online_rows, regime=regime
        )
        on_cuda = agent.device.type == "cuda"
        if graphs == "on" and not on_cuda and capture is None:
            raise ConfigError(f"graphs='on' needs a CUDA device, the agent is on {agent.device}; take auto or off")
        self.graphs = graphs
        self.grouped = capture is not None or (on_cuda and graphs != "off")
        self.capture = CudaCapture(agent.device) if capture is None and self.grouped else capture
        self.programs: dict[Launch, Program] = {}
        self._launches = 0
        self._bound: tuple[object, ...] = ()

    def offline_update(self) -> Metrics:
        """See `Learner`."""
        return self.offline_updates(1) if self.grouped else super().offline_update()

    def online_update(self, mix: Mix) -> Metrics:
        """See `Learner`."""
        return self.online_updates([mix]) if self.grouped else super().online_update(mix)

    def offline_updates(self, count: int) -> Metrics:
        """See `Learner`."""
        if not self.grouped:
            return super().offline_updates(count)
        return self._updates([self.agent.pure] * count, lambda mix: "offline")

    def online_updates(self, mixes: Sequence[Mix]) -> Metrics:
        """See `Learner`."""
        if not self.grouped:
            return super().online_updates(mixes)
        self.mix = mixes[-1]
        return self._updates(mixes, self.source)

    def _updates(self, mixes: Sequence[Mix], source: Callable[[Mix], Source]) -> Metrics:
        self._bind()
        sights = [(source(mix), self._share_kind(mix)) for mix in mixes]
        sights = [("offline", "none") if sight[0] == "offline" else sight for sight in sights]
        done, program = 0, None
        while done < len(mixes):
            alike = next((i for i in range(done, len(mixes)) if sights[i] != sights[done]), len(mixes)) - done
            size = self._size(alike)
            program = self._launch(mixes[done : done + size], *sights[done])
            done += size
        assert program is not None
        launch = self._launches
        return _Latest(program.metrics, lambda: self._launches == launch)

    def _launch(self, mixes: Sequence[Mix], source: Source, share: Share) -> Program:
        """Some updates in one launch."""
        agent, adam = self.agent, self.agent.optimizer.on_device
        level = adam.level()
        steps: list[Step] = []
        movements: list[Movement] = []
        values = np.zeros((len(mixes), *self._inputs.values.shape[1:]), np.float32)
        for k, mix in enumerate(mixes):
            plan, movement = agent.plans(
                mix, updates=agent.updates + k, one_batch=source != "both", frozen=agent.frozen
            )
            steps.append(Step(plan, movement.whole & level, movement.following))
            level -= movement.partly
            movements.append(movement)
            step_values(values[k], mix, movement, self.share(mix))
        launch = Launch(source, share, tuple(steps))
        program = self.programs.get(launch)
        self._require_rows(source, share)
        adam.upload()
        self._inputs.write(agent.updates, 0 if self.online_rows is None else len(self.online_rows), values)
        self._launches += 1
        if program is None:
            program = self._program(launch)
            self._first(program)
            self.programs[launch] = program
        else:
            self._again(program)
        self._inputs.launched(len(mixes))
        for movement in movements:
            adam.count(movement.components)
        agent.updates += len(mixes)
        return program

    def _first(self, program: Program) -> None:
        if self.capture is None:
            program.work()
        else:
            self.capture.warm_up(program.work)

    def _again(self, program: Program) -> None:
        if program.replay is None and self.capture is not None:
            try:
                program.replay = self.capture(program.work)
            except RuntimeError as error:  # nothing has run: a capture only records
                if self.graphs == "on":
                    raise ConfigError(f"CUDA graphs were asked for, and the capture failed: {error}") from error
                warnings.warn(
                    f"CUDA graphs are off, updates go on without them and are slower: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self.capture = None
        (program.replay or program.work)()

    def _program(self, launch: Launch) -> Program:
        return Program(
            launch,
            self.agent,
            batch_size=self.batch_size,
            offline_rows=self.offline_rows,
            online_rows=self.online_rows,
            share_name=self.share_name,
            inputs=self._inputs,
        )

    def _bind(self) -> None:
        """Begin anew where something that programs hold has been replaced: the agent at the switch, rows."""
        agent = self.agent
        now = (agent, agent.plans, agent.draws, self.offline_rows, self.online_rows, self.regime)
        if len(now) == len(self._bound) and all(a is b for a, b in zip(now, self._bound, strict=True)):
            return
        if not isinstance(agent.draws, CounterDraws):
            raise ConfigError("updates can only be captured with an agent whose draws are CounterDraws")
        self._bound = now
        self.programs = {}
        self._inputs = Inputs(agent.members, agent.device)
        needs = [n for o in (agent.offline, agent.online) for n in {**o.normal_noise, **o.uniform_noise}.values()]
        row = 2 * row_width(agent.obs_dim, agent.action_dim)
        numbers = agent.members * self.batch_size * max([row, *(n * agent.action_dim for n in needs)])
        self._most = max(1, min(LARGEST, MOST_NUMBERS // numbers))

    def _size(self, updates: int) -> int:
        """How many of so many updates go into one launch: few different sizes, each at one place of the rhythm."""
        period = self.agent.plans.period
        size = 1 << (min(updates, self._most).bit_length() - 1)
        phase = self.agent.updates % period
        if phase:
            return min(size, period - phase)
        return size - size % period if size > period else size

    def _share_kind(self, mix: Mix) -> Share:
        share = self.share(mix)
        return "none" if share == 0 else "all" if share == self.batch_size else "some"

    def _require_rows(self, source: Source, share: Share) -> None:
        """Refuse what the plain learner refuses; on the device nobody would notice."""
        if self.offline_rows is None and (source != "online" or share != "none"):
            raise ConfigError("this step needs offline rows, and the run has none")
        if source != "offline" and share != "all" and not self.online_rows:
            raise ConfigError("this step needs online rows, and none are collected")


class _Latest(Readings):
    """Metrics that the next launch writes over."""

    def __init__(self, raw: Mapping[str, Tensor], fresh: Callable[[], bool]) -> None:
        super().__init__(raw)
        self._fresh = fresh

    def __getitem__(self, name: str) -> Tensor:
        if not self._fresh():
            raise RuntimeError("these metrics have been written over by a later update; read them before it")
        return super().__getitem__(name)
