"""Several updates as one piece of work for the device, which a CUDA graph can capture.

Everything that differs between two launches of the same program stands in tensors of `Inputs`: the update's number, how
many online rows there are, the weights, which members move. What is decided on the host (which terms exist, whose rows
they see) is the program's `Launch`. So neither a moving weight nor a growing buffer, a moving share of offline rows or
another member at the end of its ramp makes another program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.device_adam import Following, Together
from o2o_smooth.agents.plan import Movement, Plan
from o2o_smooth.data.batch import Batch
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.transfer import to_device
from o2o_smooth.draws import CounterDraws
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.training.learner import Source

LARGEST = 16  # updates in a launch
_C = len(COMPONENTS)
_MASKS, _MOVING, _SHARE, _ROWS = _C, 2 * _C, 2 * _C + 1, 2 * _C + 2  # rows of an update's inputs, behind the weights
Share = Literal["none", "some", "all"]  # offline rows in the batch that the online objective sees


@dataclass(frozen=True)
class Step:
    """What the host decides about one update."""

    plan: Plan
    together: Together
    following: Following


@dataclass(frozen=True)
class Launch:
    """What the host decides about several updates in a row."""

    source: Source
    share: Share
    steps: tuple[Step, ...]


class Inputs:
    """What a program reads from the device at every launch, in tensors that stay where they are.

    Args:
        members: M.
        device: Where they are.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self.device = device
        self.update = torch.zeros((), dtype=torch.int64, device=device)  # the agent's; a program counts it on
        self.online_rows = torch.zeros((), dtype=torch.int64, device=device)
        self.values = torch.zeros((LARGEST, _ROWS, members), device=device)  # float32, as the rows
        self._update = self._online_rows = 0
        self._values = np.zeros(self.values.shape, np.float32)

    def write(self, update: int, online_rows: int, values: NDArray[np.float32]) -> None:
        """Bring up what differs from what is there; nobody waits.

        Args:
            update: The agent's number of updates.
            online_rows: Online rows that can be sampled.
            values: From `step_values`, (K, rows, M).
        """
        if update != self._update:
            self.update.fill_(update)
        if online_rows != self._online_rows:
            self.online_rows.fill_(online_rows)
        self._update, self._online_rows = update, online_rows
        mine = self._values[: len(values)]
        if not np.array_equal(mine, values):
            mine[:] = values
            self.values[: len(values)].copy_(to_device(values, self.device), non_blocking=True)

    def launched(self, updates: int) -> None:
        """A program has counted the updates on."""
        self._update += updates


def step_values(out: NDArray[np.float32], mix: Mix, movement: Movement, share: int) -> None:
    """An update's weights, masks and offline rows, into (rows, M)."""
    for i, name in enumerate(COMPONENTS):
        out[i] = mix.weights[name]
        mask = movement.components.get(name)
        out[_MASKS + i] = 0.0 if mask is None else mask
    out[_MOVING] = movement.targets
    out[_SHARE] = share


class Capture(Protocol):
    """A way to turn work into something that repeats it without the host."""

    def warm_up(self, work: Work) -> None:
        """Do the work as it stands, before it is captured."""
        ...

    def __call__(self, work: Work) -> Work:
        """Record the work without doing it; what is returned does it."""
        ...


class Work(Protocol):
    """Something to do on the device."""

    def __call__(self) -> None:
        """Queue it."""
        ...


class Program:
    """The updates of one `Launch`; see the module docstring.

    Args:
        launch: What they are.
        agent: Whose updates; its draws are `CounterDraws`.
        batch_size: Rows per objective and member.
        offline_rows: The dataset's rows, where they are needed.
        online_rows: The online rows, where they are needed.
        share_name: What the draw of the online objective's offline rows is called.
        inputs: What the program reads.
    """

    def __init__(
        self,
        launch: Launch,
        agent: Agent,
        *,
        batch_size: int,
        offline_rows: ReplayBuffer | None,
        online_rows: ReplayBuffer | None,
        share_name: str,
        inputs: Inputs,
    ) -> None:
        self.launch, self.agent, self.batch_size, self.inputs = launch, agent, batch_size, inputs
        self.offline_rows, self.online_rows, self.share_name = offline_rows, online_rows, share_name
        self.replay: Work | None = None  # the captured work
        self.metrics: dict[str, Tensor] = {}  # of the last update; written over by the next launch

    def work(self) -> None:
        """Queue all updates."""
        launch, inputs = self.launch, self.inputs
        updates = inputs.update + torch.arange(len(launch.steps), device=inputs.device)  # (K,)
        source, target = self._rows(updates)
        noises = self._noise(updates)
        metrics: Mapping[str, Tensor] = {}
        for k, step in enumerate(launch.steps):
            rows = slice(k * self.batch_size, (k + 1) * self.batch_size)
            mine = Batch(*(x[:, rows] for x in source))
            metrics = self._step(
                step,
                mine,
                mine if target is source else Batch(*(x[:, rows] for x in target)),
                noises[k],
                inputs.values[k],
            )
        inputs.update.add_(len(launch.steps))
        if not self.metrics:
            self.metrics = {name: torch.empty_like(value) for name, value in metrics.items()}
        torch._foreach_copy_(list(self.metrics.values()), list(metrics.values()))

    def _step(
        self, step: Step, source: Batch, target: Batch, noise: Mapping[str, Tensor], values: Tensor
    ) -> Mapping[str, Tensor]:
        agent, kinds = self.agent, dict(step.plan.kinds)
        weights = {name: values[i] for i, name in enumerate(COMPONENTS) if kinds[name] == "mixed"}
        metrics, gradients = agent.gradients(step.plan, source, target, noise, weights)
        agent.optimizer.on_device.step(
            gradients,
            {name: values[_MASKS + i] for i, name in enumerate(COMPONENTS)},
            step.together,
            step.following,
            values[_MOVING],
            agent.settings.host("tau"),
        )
        return metrics

    def _rows(self, updates: Tensor) -> tuple[Batch, Batch]:
        """The rows of all updates for both objectives, encoded, (M, K B, ...)."""
        agent = self.agent
        if self.launch.source == "offline":
            own = agent.encode(self._offline("offline_rows", updates))
            return own, own
        target = agent.encode(self._online(updates))
        if self.launch.source == "online":
            return target, target
        return agent.encode(self._offline("offline_rows", updates)), target

    def _offline(self, name: str, updates: Tensor) -> Batch:
        assert self.offline_rows is not None
        return self._gather(self.offline_rows, name, updates, len(self.offline_rows))

    def _online(self, updates: Tensor) -> Batch:
        """What the online objective sees: offline rows first, then online rows."""
        share = self.launch.share
        if share == "all":
            return self._offline(self.share_name, updates)
        assert self.online_rows is not None
        online = self._gather(self.online_rows, "online_rows", updates, self.inputs.online_rows)
        if share == "none":
            return online
        offline = self._offline(self.share_name, updates)
        shares = self.inputs.values[: len(updates), _SHARE, :1]  # (K, 1)
        first = (torch.arange(self.batch_size, device=updates.device) < shares).view(1, -1)  # (1, K B)

        def pick(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(first if x.dim() == 2 else first[..., None], x, y)

        return Batch(*map(pick, offline, online))

    def _gather(self, rows: ReplayBuffer, name: str, updates: Tensor, high: int | Tensor) -> Batch:
        index = self._draws.integers(name, updates, self.batch_size, high)  # (K, M, B)
        return rows.gather(index.transpose(0, 1).flatten(1))

    @property
    def _draws(self) -> CounterDraws:
        assert isinstance(self.agent.draws, CounterDraws)
        return self.agent.draws

    def _noise(self, updates: Tensor) -> Sequence[Mapping[str, Tensor]]:
        """Every update's draws by name, (M, n, B, A) each, made once for all updates."""
        normal: dict[str, int] = {}
        uniform: dict[str, int] = {}
        needs = [self.agent.plans.noise(step.plan) for step in self.launch.steps]
        for own in needs:
            for counts, mine in zip((normal, uniform), own, strict=True):
                counts |= {name: max(n, counts.get(name, 0)) for name, n in mine.items()}
        shape = self.batch_size, self.agent.action_dim
        drawn = {name: self._draws.normal(name, updates, (n, *shape)) for name, n in normal.items()}
        drawn |= {name: self._draws.uniform(name, updates, (n, *shape)) for name, n in uniform.items()}
        # A draw of fewer numbers is the beginning of a larger one.
        return [
            {name: drawn[name][k, :, :n] for counts in own for name, n in counts.items()} for k, own in enumerate(needs)
        ]
