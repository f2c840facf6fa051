"""Finds NaN and infinity while a run learns, before they are stepped into the parameters where that can be.

On a CPU every update's losses are looked at between the gradients and the step: what is found leaves parameters,
moments and counters as they were before the update. A gradient that is broken while its loss is not shows in the next
loss, or in Adam's second moments, which are looked at now and then; no NaN and no infinity ever leaves them again.

On a GPU nothing may wait: there one number is computed now and then and read when it has arrived, and the batches of
the updates since the last good look are drawn again. Draws are a hash of (seed, name, update), so they are the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.plan import Plan
from o2o_smooth.agents.readings import Readings
from o2o_smooth.data.batch import Batch, Drawn, gathered
from o2o_smooth.data.buffer import concatenate
from o2o_smooth.errors import O2OError
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.hygiene import TendedLearner
from o2o_smooth.training.learner import Source

ORDER = ("critic", "value", "actor", "temperature")  # what breaks others comes before them
LOSSES = tuple(f"{name}/loss" for name in ORDER)
LIMIT = 1e30  # of a loss: beyond it the squares of gradients overflow, and the parameter never moves again
MOST_BATCHES = 256  # updates whose batches are kept

Kind = Literal["loss", "gradient"]
Batches = Mapping[str, Batch]  # who sees it ("offline", "online", or "both" objectives) -> rows


class NotFinite(O2OError):
    """A loss or a gradient is NaN or infinite.

    Attributes:
        fault: What is known about it.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text())
        self.fault = fault


@dataclass(frozen=True)
class Fault:
    """What broke, where and when."""

    kind: Kind
    component: str
    """The first in the order in which one breaks another."""
    components: tuple[str, ...]
    """All that are broken."""
    member: int
    """The first member that is."""
    members: tuple[int, ...]
    """All members that are."""
    seed: int
    value: float
    objectives: tuple[str, ...]
    """Whose term of the component: names of objectives."""
    updates: tuple[int, ...]
    """The update it came from, by the number of updates before it; several where only a span is known."""
    batches: Sequence[Batches]
    """What those updates saw, of the member, (1, B, ...)."""
    losses: Mapping[str, float]
    """Of the member, as far as they are known."""
    before_step: bool
    """Whether the agent is still as it was before that update."""

    def text(self) -> str:
        """What happened, in words."""
        return f"{self.component}/{self.kind} of seed {self.seed} is {self.value} {self.when()} ({self.terms()})"

    def when(self) -> str:
        """When it happened."""
        first, last = self.updates[0], self.updates[-1]
        return f"after {first} updates" if first == last else f"in one of the updates {first} to {last}"

    def terms(self) -> str:
        """Whose term it is."""
        return f"objective {' and '.join(self.objectives)}"


class _Seen(NamedTuple):
    """An update, or several in one launch, and what drawing its rows again needs."""

    updates: int
    many: int
    online_rows: int
    mix: Mix | None  # None: before the switch


class Guard:
    """See the module docstring.

    Args:
        every: Updates between looks at moments, and on a GPU at anything.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._due = every
        # Drawn rows are gathered again where they are wanted; in a full ring the oldest may be another by then.
        self._previous: tuple[int, Plan, Batch | Drawn, Batch | Drawn] | None = None
        self._launched: deque[_Seen] = deque(maxlen=MOST_BATCHES)
        self._flag: Tensor | None = None  # on its way from the device
        self._event: torch.cuda.Event | None = None

    # One update at a time

    def __call__(
        self, agent: Agent, plan: Plan, source: Batch | Drawn, target: Batch | Drawn, readings: Readings
    ) -> None:
        """Look at an update whose gradients are made and whose step is not.

        Raises:
            NotFinite: A loss is broken, or a gradient of an update before this one was.
        """
        raw, total = readings.raw, 0.0
        for name in LOSSES:
            loss = raw.get(name)
            if loss is not None:
                total += sum(loss.tolist())
        if not -LIMIT < total < LIMIT:
            self._examine(agent, plan, source, target, raw)
        self._due -= 1
        if self._due <= 0:
            self._due = self.every
            self.look(agent)
        self._previous = (agent.updates, plan, source, target)

    def look(self, agent: Agent) -> None:
        """Look at the moments now, as before a checkpoint that is to be a good one.

        Raises:
            NotFinite: They are broken.
        """
        if not math.isfinite(float(_sum_of_moments(agent))):
            self._examine_state(agent)

    def _examine(
        self, agent: Agent, plan: Plan, source: Batch | Drawn, target: Batch | Drawn, raw: Mapping[str, Tensor]
    ) -> None:
        self._examine_state(agent)
        losses = {name: raw[f"{name}/loss"].double().cpu() for name in ORDER if f"{name}/loss" in raw}
        broken = {name: ~(loss.abs() < LIMIT) for name, loss in losses.items()}
        components = [name for name, mask in broken.items() if mask.any()]
        if not components:
            return
        mask = torch.stack([broken[name] for name in components]).any(0)
        component = components[0]
        member = int(broken[component].nonzero()[0])
        raise NotFinite(
            Fault(
                "loss",
                component,
                tuple(components),
                member,
                tuple(mask.nonzero().flatten().tolist()),
                agent.seeds[member],
                float(losses[component][member]),
                _objectives(agent, plan, component, member, raw),
                (agent.updates,),
                [_seen_by(plan, source, target, member)],
                {name: float(loss[member]) for name, loss in _losses(raw).items()},
                before_step=True,
            )
        )

    def _examine_state(self, agent: Agent) -> None:
        """Raise where moments or parameters are broken."""
        broken = broken_members(agent)
        if not broken:
            return
        component = next(name for name in ORDER if name in broken)
        mask = torch.stack(list(broken.values())).any(0)
        member = int(broken[component].nonzero()[0])
        updates: tuple[int, ...] = (agent.updates,)
        batches: list[Batches] = []
        objectives = {"offline": agent.offline.name, "online": agent.online.name}
        if self._previous is not None:
            number, plan, source, target = self._previous
            updates, batches = (number,), [_seen_by(plan, source, target, member)]
            sides = [side for side in ("offline", "online") if component in getattr(plan, side)]
            objectives = {side: objectives[side] for side in sides or objectives}
        raise NotFinite(
            Fault(
                "gradient",
                component,
                tuple(name for name in ORDER if name in broken),
                member,
                tuple(mask.nonzero().flatten().tolist()),
                agent.seeds[member],
                _broken_value(agent, component, member),
                tuple(dict.fromkeys(objectives.values())),
                updates,
                batches,
                {},
                before_step=False,
            )
        )

    # Several updates in a launch

    def launched(self, learner: GuardedLearner, info: Metrics, updates: int, mix: Mix | None) -> None:
        """Some updates are in the device's queue; `info` are the metrics of the last one.

        Raises:
            NotFinite: A number that was sent for earlier has arrived, and is broken.
        """
        agent = learner.agent
        rows = 0 if learner.online_rows is None else len(learner.online_rows)
        self._launched.append(_Seen(agent.updates - updates, updates, rows, mix))
        self._due -= updates
        if self._due > 0 or not self._arrived():
            return
        if self._flag is not None and not -LIMIT < float(self._flag) < LIMIT:
            self.examine(learner, info)
        first = self._asked
        while self._flag is not None and self._launched and self._launched[0].updates < first:
            self._launched.popleft()  # they were good
        self._due, self._asked = self.every, agent.updates
        self._send(agent, [info[name] for name in LOSSES if name in info])

    _asked = 0  # updates of the agent when the latest number was sent for

    def _arrived(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def _send(self, agent: Agent, losses: Sequence[Tensor]) -> None:
        """Send for one number that is finite where all moments and losses are."""
        total = torch.stack([_sum_of_moments(agent), *(loss.sum() for loss in losses)]).double().sum()
        if total.device.type != "cuda":
            self._flag = total
            return
        self._flag = torch.empty((), dtype=torch.float64, pin_memory=True)
        self._flag.copy_(total, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def examine(self, learner: GuardedLearner, info: Metrics) -> None:
        """Say exactly what is broken, now with waiting; `info` are the metrics of the latest update.

        Raises:
            NotFinite: Something is.
        """
        agent = learner.agent
        losses = _losses(dict(info))
        try:
            self._previous = None
            self._examine_state(agent)
        except NotFinite as error:
            fault = error.fault
        else:
            wrong = [n for n in ORDER if n in losses and not bool((losses[n].abs() < LIMIT).all())]
            if not wrong:
                return  # a sum of good numbers that was too large
            mask = ~(losses[wrong[0]].abs() < LIMIT)
            member = int(mask.nonzero()[0])
            fault = Fault(
                "loss", wrong[0], tuple(wrong), member, tuple(mask.nonzero().flatten().tolist()), agent.seeds[member],
                float(losses[wrong[0]][member]), (agent.offline.name, agent.online.name), (), [], {}, before_step=False,
            )  # fmt: skip
        numbers: list[int] = []
        batches: list[Batches] = []
        for seen in list(self._launched):
            for number in range(seen.updates, seen.updates + seen.many):
                if len(numbers) < MOST_BATCHES:
                    numbers.append(number)
                    drawn = learner.drawn_again(number, seen.online_rows, seen.mix)
                    batches.append({who: _of_member(batch, fault.member) for who, batch in drawn.items()})
        own = {name: float(loss[fault.member]) for name, loss in losses.items()}
        names = fault.objectives
        if all(seen.mix is None for seen in self._launched):
            names = (agent.offline.name,)
        raise NotFinite(
            Fault(
                fault.kind, fault.component, fault.components, fault.member, fault.members, fault.seed, fault.value,
                names, tuple(numbers) or (agent.updates,), batches, own, before_step=False,
            )
        )  # fmt: skip


class GuardedLearner(TendedLearner):
    """A learner whose updates are looked at by a `Guard`, once there is one."""

    guard: Guard | None = None

    def offline_updates(self, count: int) -> Metrics:
        """See `Learner`."""
        if self.guard is None or not self._alone():
            info = super().offline_updates(count)
            if self.guard is not None:
                self.guard.launched(self, info, count, None)
            return info
        self.agent.watch = self.guard
        return super().offline_updates(count)

    def online_updates(self, mixes: Sequence[Mix]) -> Metrics:
        """See `Learner`."""
        if self.guard is None or not self._alone():
            info = super().online_updates(mixes)
            if self.guard is not None:
                self.guard.launched(self, info, len(mixes), mixes[-1])
            return info
        self.agent.watch = self.guard
        return super().online_updates(mixes)

    def _alone(self) -> bool:
        """Whether updates can be looked at one by one: only where nobody waits for a device."""
        return not self.grouped and self.agent.device.type == "cpu"

    def drawn_again(self, updates: int, online_rows: int, mix: Mix | None) -> Batches:
        """The rows that the update after `updates` updates saw, as far as they have not been written over.

        Args:
            updates: Its number.
            online_rows: Online rows that could be sampled then.
            mix: Its weights; None: it was before the switch.
        """
        source: Source = "offline" if mix is None else self.source(mix)
        if source == "offline":
            return {"both": self._rows_of("offline_rows", updates)}
        assert mix is not None
        share = self.share(mix)
        if share == self.batch_size:
            target = self._rows_of(self.share_name, updates)
        else:
            assert self.online_rows is not None
            index = self.agent.draws.integers("online_rows", updates, self.batch_size, online_rows)
            target = self.online_rows.gather(index[:, share:])
            if share:
                target = concatenate(self._rows_of(self.share_name, updates, share), target)
        if source == "online":
            return {"both": target}
        return {"offline": self._rows_of("offline_rows", updates), "online": target}

    def _rows_of(self, name: str, updates: int, rows: int | None = None) -> Batch:
        assert self.offline_rows is not None
        index = self.agent.draws.integers(name, updates, self.batch_size, len(self.offline_rows))
        return self.offline_rows.gather(index[:, :rows])


def _sum_of_moments(agent: Agent) -> Tensor:
    return torch.stack([moment.sum() for own in agent.optimizer.second.values() for moment in own]).sum()


def broken_members(agent: Agent) -> dict[str, Tensor]:
    """Components with NaN or infinity in parameters or moments: component -> which members (M,), on the CPU."""
    optimizer = agent.optimizer
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameters in optimizer.components.items():
            tensors: list[Tensor] = [*optimizer.second[name], *parameters]
            if math.isfinite(float(torch.stack([tensor.sum() for tensor in tensors]).sum())):
                continue
            fine = torch.stack([t.isfinite().reshape(len(t), -1).all(1) for t in tensors]).all(0).cpu()
            if not fine.all():
                found[name] = ~fine
    return found


def _broken_value(agent: Agent, component: str, member: int) -> float:
    """The first broken number of a component."""
    optimizer = agent.optimizer
    for tensor in [*optimizer.components[component], *optimizer.second[component]]:
        own = tensor.detach()[member].flatten()
        wrong = own[~own.isfinite()]
        if len(wrong):
            return float(wrong[0])
    return math.nan


def _losses(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All losses among metrics, also those of the two objectives apart, (M,)."""
    suffix = "/loss"
    return {n.removesuffix(suffix): v.double().cpu() for n, v in raw.items() if n.endswith(suffix)}


def _objectives(agent: Agent, plan: Plan, component: str, member: int, raw: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The objectives whose term of a component is broken; both where neither is by itself."""
    names = {"offline": agent.offline.name, "online": agent.online.name}
    live = [side for side in names if component in getattr(plan, side)]
    wrong = []
    for side in live:
        own = raw.get(f"{side}/{component}/loss")
        if own is not None and not abs(float(own[member])) < LIMIT:
            wrong.append(side)
    return tuple(dict.fromkeys(names[side] for side in wrong or live or names))


def _seen_by(plan: Plan, source: Batch | Drawn, target: Batch | Drawn, member: int) -> Batches:
    if target is source or plan.one_batch:
        return {"both": _of_member(gathered(source), member)}
    return {"offline": _of_member(gathered(source), member), "online": _of_member(gathered(target), member)}


def _of_member(batch: Batch, member: int) -> Batch:
    """A member's rows, (1, B, ...), on the CPU and apart from memory that is written over."""
    return Batch(*(x[member : member + 1].detach().cpu().clone() for x in batch))
