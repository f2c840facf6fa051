"""Updates from a tape: the operations of a step that is due again, on memory that stays (`kernels.tape`).

A step is known by its plan, the shapes of its rows, and where the parameters lie. What moves between two of its updates
is written into memory that the tape reads: the rows, the noise, the weights. Learning rates, bias corrections and
masks are the optimiser's, which is called as ever.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from o2o_smooth.agents.blending import PER_GRADIENT
from o2o_smooth.agents.heads import encode_batch
from o2o_smooth.agents.networks import ACTION_LIMIT, MLP
from o2o_smooth.agents.plan import Plan
from o2o_smooth.agents.readings import Readings
from o2o_smooth.agents.stacked import kernels_take
from o2o_smooth.data.batch import Batch, Drawn
from o2o_smooth.draws import Draws
from o2o_smooth.kernels.cpu import Pool, threads
from o2o_smooth.kernels.rows import Encoder
from o2o_smooth.kernels.tape import Tape, Unrepeatable, record
from o2o_smooth.smoothing.objective import Mix

if TYPE_CHECKING:
    from o2o_smooth.agents.base import Agent

NOISE_AHEAD = 16  # updates whose noise is drawn at once
NOISE_BYTES = 1 << 17  # of it at most
MOST = 12  # steps kept; a step's intermediate results stay in memory with it
SEEN_BEFORE = 1  # times that a step is done in the ordinary way, which also makes what it keeps


class _Key(NamedTuple):
    plan: Plan
    source: tuple[int, ...]
    target: tuple[int, ...]
    threads: int
    precision: str


class Tapes:
    """The tapes of an agent's steps.

    Args:
        agent: Whose.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = weakref.proxy(agent)
        self._steps: dict[_Key, _Step] = {}
        self._seen: dict[_Key, int] = {}
        self._bound: tuple[object, ...] = ()
        self._able = False
        self._addresses: tuple[int, ...] = ()
        self._parameters: list[Tensor] = []
        self._learning: Sequence[Tensor] = ()  # those that are stepped
        self._nets: list[MLP] = []
        self._views: list[tuple[int, ...]] = []  # where the kernels' view of each net points
        self._noise = _Noise()
        self._pool: Pool = {}

    def update(self, plan: Plan, source: Batch | Drawn, target: Batch | Drawn, mix: Mix) -> Readings | None:
        """Put the step's gradients into the parameters' `.grad`; returns its metrics.

        Args:
            plan: Of the step.
            source: The offline objective's rows, as they come from a buffer.
            target: The online objective's; the same object where there is one batch.
            mix: Weights.

        Returns:
            None where the step is not on a tape and has to be done in the ordinary way.
        """
        agent = self._agent
        # Modes that mix gradients and not losses go another way than `Agent.backward`.
        if not (agent.replay and kernels_take(_memory(source)) and plan.mode not in PER_GRADIENT) or agent.compile:
            return None
        if not self._bind():
            return None
        key = _Key(plan, _shape(source), _shape(target), threads(), agent.precision)
        step = self._steps.get(key)
        if step is None:
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if seen != SEEN_BEFORE + 1:  # not yet; or no longer, since it could not be recorded
                return None
            step = _Step(agent, plan, source, target, self._noise)
            step.write(source, target, mix)
            try:
                step.record(self._learning, self._pool)
            except Unrepeatable:
                return None
            while len(self._steps) >= MOST:
                oldest = next(iter(self._steps))
                del self._steps[oldest], self._seen[oldest]  # it may come back
            self._steps[key] = step
            return step.readings()
        step.write(source, target, mix)
        step.replay(self._learning)
        return step.readings()

    def count(self) -> int:
        """Steps on tapes."""
        return len(self._steps)

    def _bind(self) -> bool:
        """Begin anew where something that tapes hold is another one; says whether the agent's steps can be taped."""
        agent = self._agent
        now = (agent.networks, agent.offline, agent.online, agent.settings, agent.draws, agent.optimizer)
        if not (len(self._bound) == len(now) and all(a is b for a, b in zip(now, self._bound, strict=True))):
            self._bound, self._addresses, self._noise = now, (), _Noise()
            self._parameters = list(agent.networks.parameters())
            self._learning = agent.optimizer.parameters
            self._nets = [net for net in agent.networks.modules() if isinstance(net, MLP)]
            # Only for objectives that say so themselves: one derived from them may do what a tape does not see.
            own = all(type(one).__dict__.get("repeatable", False) for one in (agent.offline, agent.online))
            self._able = own and type(agent.draws) is Draws
        at = tuple([p.data_ptr() for p in self._parameters])
        if at != self._addresses:
            self._addresses, self._steps, self._seen, self._views, self._pool = at, {}, {}, [], {}
        natives = [net.native for net in self._nets if net.native is not None]
        views = [native.at for native in natives]
        if len(views) != len(self._views) or any(a is not b for a, b in zip(views, self._views, strict=True)):
            for net in self._nets:  # others may have acted with other parameters in the place of these
                if net.native is not None:
                    net.native.bind(net.parts)
            self._views = [native.at for native in natives]
        return self._able


def _memory(rows: Batch | Drawn) -> Tensor:
    return rows.packed.rows if isinstance(rows, Drawn) else rows.obs


def _shape(rows: Batch | Drawn) -> tuple[int, ...]:
    """M, B, O."""
    return rows.shape if isinstance(rows, Drawn) else rows.obs.shape


class _Ahead(NamedTuple):
    """Numbers of a draw for steps that follow each other."""

    first: int
    stop: int
    address: int
    numbers: Tensor  # (stop - first, M, ...)


class _Noise:
    """Noise of updates that follow each other, drawn for several at once.

    Between two updates all that a draw needs leaves the caches, and a draw is a function of its step alone.
    """

    def __init__(self) -> None:
        self._drawn: dict[object, _Ahead] = {}

    def write(self, draws: Draws, kind: str, name: str, step: int, out: Tensor) -> None:
        """Put the draw of a step into `out`, (M, ...)."""
        key, size = (draws.seeds, kind, name, out.shape), out.numel() * out.element_size()
        ahead = self._drawn.get(key)
        if ahead is None or not ahead.first <= step < ahead.stop:
            # Many only where the last ones were used up: other steps that come between have draws of their own.
            count = min(NOISE_AHEAD, NOISE_BYTES // size) if ahead is not None and step == ahead.stop else 1
            draw: Callable[..., Tensor] = getattr(draws, kind)
            if count < 2:
                self._keep(key, _Ahead(step + 1, step + 1, 0, out))  # nothing is left of it
                draw(name, step, out.shape[1:], out=out)
                return
            ahead = self._keep(key, self._draw(draw, name, step, count, out))
        ctypes.memmove(out.data_ptr(), ahead.address + (step - ahead.first) * size, size)

    def _keep(self, key: object, ahead: _Ahead) -> _Ahead:
        self._drawn[key] = ahead
        if len(self._drawn) > MOST:
            del self._drawn[next(iter(self._drawn))]
        return ahead

    @staticmethod
    def _draw(draw: Callable[..., Tensor], name: str, step: int, count: int, out: Tensor) -> _Ahead:
        numbers = out.new_empty((count, *out.shape))
        for k, part in enumerate(numbers):
            draw(name, step + k, out.shape[1:], out=part)
        return _Ahead(step, step + count, numbers.data_ptr(), numbers)


class _Step:
    """One step on a tape."""

    def __init__(self, agent: Agent, plan: Plan, source: Batch | Drawn, target: Batch | Drawn, ahead: _Noise) -> None:
        self.agent, self.plan, self.ahead = agent, plan, ahead
        self.source = _Rows(agent, _shape(source)[1])
        self.target = self.source if target is source else _Rows(agent, _shape(target)[1])
        rows = self.source.batch.action.shape[1:]
        normal, uniform = agent.plans.noise(plan)
        self.noise = {name: torch.empty((agent.members, n, *rows)) for name, n in (normal | uniform).items()}
        self.draws = [("normal", name, self.noise[name]) for name in normal]
        self.draws += [("uniform", name, self.noise[name]) for name in uniform]
        self.weights = {name: torch.empty(agent.members) for name, kind in plan.kinds if kind == "mixed"}
        self.tape = Tape()
        self.raw: dict[str, Tensor] = {}
        self.gradients: list[Tensor | None] = []
        self.latest: weakref.ref[Readings] | None = None

    def write(self, source: Batch | Drawn, target: Batch | Drawn, mix: Mix) -> None:
        """Bring what moves to where the tape reads it."""
        if self.latest is not None and (readings := self.latest()) is not None:
            readings.settle()  # somebody still holds them
        self.source.write(source)
        if self.target is not self.source:
            self.target.write(target)
        for kind, name, out in self.draws:
            self.ahead.write(self.agent.draws, kind, name, self.agent.updates, out)
        for name, tensor in self.weights.items():
            tensor.copy_(torch.from_numpy(mix.weights[name]))

    def record(self, parameters: Sequence[Tensor], pool: Pool) -> None:
        """Do the step and write it down.

        Raises:
            Unrepeatable: As `kernels.tape.record`.
        """
        agent = self.agent
        agent.networks.set_precision(agent.precision)
        try:
            with record(pool) as self.tape:
                self.raw = agent.backward(self.plan, self.source.batch, self.target.batch, self.noise, self.weights)
        finally:
            agent.networks.set_precision("fp32")
        self.gradients = [p.grad for p in parameters]
        self.tape.prune([*self.raw.values(), *(g for g in self.gradients if g is not None)])

    def replay(self, parameters: Sequence[Tensor]) -> None:
        """Do it again."""
        self.tape.replay()
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient

    def readings(self) -> Readings:
        """Metrics of the latest time; they are copied before the next one, if they are still held then."""
        readings = Readings(self.raw, shared=True)
        self.latest = weakref.ref(readings)
        return readings


class _Rows:
    """Encoded rows in memory that stays."""

    def __init__(self, agent: Agent, rows: int) -> None:
        self.networks = agent.networks
        members, obs_dim = agent.members, agent.obs_dim
        joined = torch.empty((members, rows, obs_dim + agent.action_dim))
        following = torch.empty((members, rows, obs_dim))
        self.made = joined, following
        self.rest = torch.empty((4, members, rows))
        reward, terminated, truncated, mc_return = self.rest
        self.batch = Batch(
            joined[..., :obs_dim], joined[..., obs_dim:], reward, following, terminated, truncated, mc_return
        )
        self.encoder: Encoder | None = None
        self.encoded_by: tuple[Tensor, ...] = ()

    def write(self, batch: Batch | Drawn) -> None:
        """Encode a batch into it."""
        networks = self.networks
        scales = (networks.obs_mean, networks.obs_std, networks.action_center, networks.action_half)
        if isinstance(batch, Drawn) and not kernels_take(networks.obs_mean):
            batch = batch.batch()
        if isinstance(batch, Drawn):
            if self.encoder is None or any(a is not b for a, b in zip(scales, self.encoded_by, strict=True)):
                self.encoder, self.encoded_by = Encoder(scales, ACTION_LIMIT, *self.made, self.rest), scales
            self.encoder(batch.packed, batch.size, batch.index)
            return
        encode_batch(batch.obs, batch.next_obs, batch.action, scales, ACTION_LIMIT, out=self.made)
        own = self.batch
        own.reward.copy_(batch.reward)
        own.terminated.copy_(batch.terminated)
        own.truncated.copy_(batch.truncated)
        own.mc_return.copy_(batch.mc_return)
